"""Augmentation on the device: stored views exactly, colour freely, affine by resampling the cached maps.

Frames, masks and maps share the frame's unit square, so one matrix moves all of them. A resampled map is not the
teacher's map of the moved frame; that approximation is confined to `affine` and can be switched off.
Shapes: b batch, s frame side, c channels, h w grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

ROTATION = 25.0
"""Largest rotation in degrees."""
ZOOM = 1.3
"""Largest magnification; its inverse is the smallest."""
SHIFT = 0.1
"""Largest shift as a share of the frame."""
AFFINE_SHARE = 0.5
"""Share of frames that are moved at all."""
COLOUR = 0.2
"""Half-width of brightness, contrast, saturation and per-channel gain around 1."""


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Uniform draws on the CPU, so that they are the same on every device."""
    return torch.empty(shape).uniform_(low, high, generator=generator)


def rows_by_view(views: Tensor, axes: list[tuple[int, ...]]) -> dict[tuple[int, ...], Tensor]:
    """Which rows of a batch are reversed along which axes, from their views [b]; `axes[v]` are those that view v reverses."""
    rows = {reversed_axes: (views == view).nonzero().flatten() for view, reversed_axes in enumerate(axes) if reversed_axes}
    return {reversed_axes: own for reversed_axes, own in rows.items() if len(own)}


def flip_views(tensor: Tensor, flips: Mapping[tuple[int, ...], Tensor]) -> Tensor:
    """Rows of [b, ..., h, w] reversed as `rows_by_view` says; the numbers lie on the tensor's device."""
    out = tensor.clone()
    for reversed_axes, rows in flips.items():
        out[rows] = tensor[rows].flip(reversed_axes)
    return out


def draw_affine(generator: torch.Generator, b: int, share: float = AFFINE_SHARE) -> Tensor:
    """Random maps of the unit square onto itself, float [b, 2, 3] as `affine_grid` takes them; `share` of them move."""
    angle = uniform(generator, -ROTATION, ROTATION, b) * math.pi / 180
    zoom = torch.exp(uniform(generator, -math.log(ZOOM), math.log(ZOOM), b))
    shift = uniform(generator, -2 * SHIFT, 2 * SHIFT, b, 2)
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    moved = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    still = uniform(generator, 0, 1, b) >= share
    moved[still] = torch.eye(2, 3)
    return moved


def resample(tensor: Tensor, matrices: Tensor, mode: str = "bilinear", grids: dict[torch.Size, Tensor] | None = None) -> Tensor:
    """Float [b, c, h, w] moved by matrices [b, 2, 3]; what lies outside is mirrored in, alike for frames, masks and maps.

    Args:
        grids: where the sampling grids of these matrices are kept, by (h, w), for others of the same size.
    """
    grids, size = {} if grids is None else grids, tensor.shape[-2:]
    if size not in grids:
        grids[size] = F.affine_grid(matrices.to(tensor.device), [len(tensor), 1, *size], align_corners=False)
    return F.grid_sample(tensor, grids[size], mode=mode, padding_mode="reflection", align_corners=False)


def draw_colour(generator: torch.Generator, b: int) -> Tensor:
    """Brightness, contrast, saturation and three channel gains for each of b frames, float [b, 6, 1, 1]."""
    return torch.cat([uniform(generator, 1 - COLOUR, 1 + COLOUR, b, n, 1, 1) for n in (1, 1, 1, 3)], 1)


def jitter_colour(frames: Tensor, colour: Tensor) -> Tensor:
    """Frames [b, 3, s, s] in 0..1 under what `draw_colour` drew."""
    brightness, contrast, saturation, gains = colour.split((1, 1, 1, 3), 1)
    frames = frames * brightness * (1 + (gains - 1) / 2)
    frames = (frames - (mean := frames.mean((1, 2, 3), keepdim=True))) * contrast + mean
    grey = frames.mean(1, keepdim=True)
    return ((frames - grey) * saturation + grey).clamp(0, 1)
