"""Area resampling of maps between grids that share the frame's unit square."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


@cache
def area_matrix(n_in: int, n_out: int) -> Tensor:
    """Float32 [n_out, n_in]: row i holds the share of each input cell in output cell i; rows sum to 1."""
    edges_in = torch.arange(n_in + 1, dtype=torch.float64) / n_in
    edges_out = torch.arange(n_out + 1, dtype=torch.float64) / n_out
    upper = torch.minimum(edges_out[1:, None], edges_in[None, 1:])
    lower = torch.maximum(edges_out[:-1, None], edges_in[None, :-1])
    return ((upper - lower).clamp_min(0) * n_out).float()


def area_resample(maps: Tensor, cells: int) -> Tensor:
    """Maps [..., h, w] averaged onto a cells x cells grid, [..., cells, cells]; exact at any ratio, up or down."""
    h, w = maps.shape[-2:]
    if (h, w) == (cells, cells):
        return maps
    rows, columns = (_matrix_on(n, cells, maps.device, maps.dtype) for n in (h, w))
    return rows @ maps @ columns.T


@cache  # copied once: a GPU would be waited for each time
@torch.inference_mode(False)
def _matrix_on(n_in: int, n_out: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return area_matrix(n_in, n_out).to(device, dtype)
