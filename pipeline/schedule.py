"""How the learning rate moves over a training."""

from __future__ import annotations

import math

WARM_UP = 0.1
"""Share of the steps over which the one-cycle rate rises."""


def one_cycle(progress: float) -> float:
    """Share of the peak learning rate at a share of the training: cosine up from 1/25, cosine down to 0 (arXiv 1708.07120)."""
    if progress < WARM_UP:
        return 0.04 + 0.96 * _cosine_step(progress / WARM_UP)
    return 1 - _cosine_step((progress - WARM_UP) / (1 - WARM_UP))


def _cosine_step(t: float) -> float:
    return (1 - math.cos(t * math.pi)) / 2
