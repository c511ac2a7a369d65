"""How the learning rate moves over a training: shares of its peak at a share of the training, 0..1."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

WARM_UP = 0.1
"""Share of the steps over which the one-cycle rate rises."""
RateName = Literal["one-cycle", "cosine", "constant"]


def one_cycle(progress: float) -> float:
    """Cosine up from 1/25 of the peak, cosine down to 0 (arXiv 1708.07120)."""
    if progress < WARM_UP:
        return 0.04 + 0.96 * _cosine_step(progress / WARM_UP)
    return 1 - _cosine_step((progress - WARM_UP) / (1 - WARM_UP))


def cosine(progress: float) -> float:
    """From the peak down to 0 along half a cosine, without a warm-up (arXiv 1608.03983)."""
    return 1 - _cosine_step(progress)


def constant(progress: float) -> float:
    """The peak throughout."""
    return 1.0


RATES: dict[RateName, Callable[[float], float]] = {"one-cycle": one_cycle, "cosine": cosine, "constant": constant}


def _cosine_step(t: float) -> float:
    return (1 - math.cos(t * math.pi)) / 2
