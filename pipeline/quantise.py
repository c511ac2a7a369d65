"""Maps as int8: each channel of each scale is a whole number of its own steps.

Shapes: n samples, c channels, h w grid.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LEVELS = 127
"""Largest integer; -128 is left free, and stands for what was never written."""
CUTS = np.arange(3.0, 20.25, 0.25).tolist()
"""Where values may be cut off, in root mean squares of their channel."""


def fit_steps(maps: Tensor) -> Tensor:
    """The step of each channel, float32 [c], of maps [n, c, h, w]: its root mean square times one number for all channels.

    A coarse step rounds everything, a fine one cuts off the peaks: the number is that which moves the maps least in the mean
    square (four for normal values). One number for all, because a single channel's peaks are too rare to be learned from a
    few coarse maps: on LiteMedSAM's 4 x 4 cells steps fitted channel by channel lost 1.7 % of other frames' norm, not 1.1 %.
    """
    channels = maps.movedim(1, 0).flatten(1).float()
    sizes = channels.square().mean(1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float16).tiny)
    tried = [cut / LEVELS * sizes for cut in CUTS]
    moved = [(quantise(channels, steps) * steps - channels).square().sum().item() for steps in tried]
    return tried[int(np.argmin(moved))][:, 0]


def quantise(maps: Tensor, steps: Tensor) -> Tensor:
    """Maps as int8; `steps` must broadcast against them."""
    return (maps / steps).round().clamp(-LEVELS, LEVELS).to(torch.int8)


def relative_error(maps: Tensor, steps: Tensor) -> float:
    """Norm of what int8 changes in maps [n, c, h, w], over their norm; `steps` is [c]."""
    maps, steps = maps.float(), steps[:, None, None]
    norm = maps.norm().clamp_min(torch.finfo(torch.float32).tiny)
    return ((quantise(maps, steps) * steps - maps).norm() / norm).item()
