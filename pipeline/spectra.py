"""Spectra and bands of feature maps: orthonormal rfft2, a square low band, and its complement.

Shapes: b batch, c channels, h w grid, k = w // 2 + 1 columns of the half spectrum. All bands are real maps: the low
band is symmetric in +-k, so low + high = the map exactly and |low|^2 + |high|^2 = |map|^2.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor


def cutoff(h: int, w: int) -> int:
    """Largest integer wave number of the low band, min(h, w) // 6 (arXiv 2512.09307 keeps a third of each axis)."""
    return min(h, w) // 6


def spectrum(maps: Tensor) -> Tensor:
    """Orthonormal half spectrum of real maps [..., h, w] as complex64 [..., h, w // 2 + 1], computed in float32."""
    return torch.fft.rfft2(maps.float(), norm="ortho")


def inverse(spec: Tensor, h: int, w: int) -> Tensor:
    """Real float32 maps [..., h, w] of half spectra [..., h, w // 2 + 1]."""
    return torch.fft.irfft2(spec, s=(h, w), norm="ortho")


def column_weights(w: int, device: torch.device | None = None) -> Tensor:
    """Multiplicity of each half-spectrum column, float32 [w // 2 + 1]: 1 for column 0 and an even Nyquist, else 2.

    Parseval on the half spectrum holds only with these: sum |map|^2 = sum_k weight_k |spectrum_k|^2.
    """
    weights = torch.full((w // 2 + 1,), 2.0, device=device)
    weights[0] = 1.0
    if w % 2 == 0:
        weights[-1] = 1.0
    return weights


@cache
@torch.inference_mode(False)
def low_mask(h: int, w: int, device: torch.device | None = None) -> Tensor:
    """True where |ky| <= r and |kx| <= r, bool [h, w // 2 + 1], with r = cutoff(h, w); made once, not to be written to."""
    r = cutoff(h, w)
    ky = torch.fft.fftfreq(h, d=1.0 / h, device=device).abs()
    kx = torch.fft.rfftfreq(w, d=1.0 / w, device=device)
    return (ky[:, None] <= r + 0.5) & (kx[None, :] <= r + 0.5)


@cache
@torch.inference_mode(False)
def low_pass(n: int, r: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Projection [n, n] of n values onto their waves of number -r..r; made once, not to be written to."""
    apart = torch.arange(n, dtype=torch.float64)[:, None] - torch.arange(n, dtype=torch.float64)
    waves = [2 * torch.cos(2 * math.pi * k / n * apart) for k in range(1, r + 1)]
    return (torch.stack([torch.ones_like(apart), *waves]).sum(0) / n).to(device, dtype)


def split_bands(maps: Tensor) -> tuple[Tensor, Tensor]:
    """(low, high) bands of maps [..., h, w], float32, low + high = maps.

    Split after resampling to the student's grid, never before: the cut-off counts waves per frame, not per cell.
    The low band is a box of waves, so rows and columns are filtered apart, in real arithmetic.
    """
    maps = maps.float()
    (h, w), r = maps.shape[-2:], cutoff(*maps.shape[-2:])
    rows, columns = (low_pass(n, r, maps.device, maps.dtype) for n in (h, w))
    if maps.ndim == 4 and maps.is_contiguous(memory_format=torch.channels_last):
        cells = maps.movedim(1, -1)  # [b, h, w, c], as it lies in memory
        low = (rows @ (columns @ cells).flatten(2)).view_as(cells).movedim(-1, 1)
    else:
        low = rows @ maps @ columns
    return low, maps - low


def energy(spec: Tensor, w: int) -> Tensor:
    """Sum of |map|^2 over the grid, from the half spectrum [..., h, w // 2 + 1]; returns [...]."""
    power = torch.view_as_real(spec).square().sum(-1)
    return (power * column_weights(w, spec.device)).sum((-2, -1))


def pack(spec: Tensor) -> Tensor:
    """Complex [..., h, k] as real pairs (re, im) [..., h, k, 2], the stored form."""
    return torch.view_as_real(spec)


def unpack(pairs: Tensor) -> Tensor:
    """Real pairs [..., h, k, 2] of any float dtype as complex64 [..., h, k]."""
    return torch.view_as_complex(pairs.float().contiguous())


def low_block(spec: Tensor) -> Tensor:
    """The low band's coefficients alone: complex [..., h, k] -> [..., 2r + 1, r + 1], rows in order 0..r, -r..-1.

    The grid is taken as square (frames are), so r = h // 6.
    """
    h = spec.shape[-2]
    r = cutoff(h, h)
    return torch.cat([spec[..., : r + 1, : r + 1], spec[..., h - r :, : r + 1]], dim=-2)


def spectrum_shape(cells: int, kind: str) -> tuple[int, int, int]:
    """Stored shape (rows, columns, 2) of one channel's spectrum on a cells x cells grid; kind "full" or "low"."""
    r = cutoff(cells, cells)
    return (cells, cells // 2 + 1, 2) if kind == "full" else (2 * r + 1, r + 1, 2)
