"""Augmentation on the device: stored views exactly, colour freely, affine by resampling the cached maps.

Frames, masks and maps share the frame's unit square, so one matrix moves all of them. A resampled map is not the
teacher's map of the moved frame; that approximation is confined to `affine` and can be switched off.
Shapes: b batch, s frame side, c channels, h w grid.
"""

from __future__ import annotations

import math

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


def flip_views(tensor: Tensor, views: Tensor, axes: list[tuple[int, ...]]) -> Tensor:
    """Each row of [b, ..., h, w] under its own view; `axes[v]` are the axes that view v reverses."""
    out = tensor.clone()
    for view, reversed_axes in enumerate(axes):
        rows = (views == view).nonzero().squeeze(1).to(tensor.device)
        if reversed_axes and len(rows):
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


def resample(tensor: Tensor, matrices: Tensor, mode: str = "bilinear") -> Tensor:
    """Float [b, c, h, w] moved by matrices [b, 2, 3]; what lies outside is mirrored in, alike for frames, masks and maps."""
    grid = F.affine_grid(matrices.to(tensor.device), list(tensor.shape), align_corners=False)
    return F.grid_sample(tensor, grid, mode=mode, padding_mode="reflection", align_corners=False)


def draw_colour(generator: torch.Generator, b: int) -> Tensor:
    """Brightness, contrast, saturation and three channel gains for each of b frames, float [b, 6, 1, 1]."""
    return torch.cat([uniform(generator, 1 - COLOUR, 1 + COLOUR, b, n, 1, 1) for n in (1, 1, 1, 3)], 1)


def jitter_colour(frames: Tensor, colour: Tensor) -> Tensor:
    """Frames [b, 3, s, s] in 0..1 under what `draw_colour` drew."""
    brightness, contrast, saturation, gains = colour.to(frames.device).split((1, 1, 1, 3), 1)
    frames = frames * brightness * (1 + (gains - 1) / 2)
    frames = (frames - (mean := frames.mean((1, 2, 3), keepdim=True))) * contrast + mean
    grey = frames.mean(1, keepdim=True)
    return ((frames - grey) * saturation + grey).clamp(0, 1)
