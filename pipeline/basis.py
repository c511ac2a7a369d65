"""The fixed linear map from a teacher's channels to the stored ones (PHI-S, arXiv 2410.01680).

Subtract the channel mean, rotate onto the leading principal directions, mix them by an orthogonal matrix, divide by
one scalar: every stored channel then has the same variance, and nothing about it is trained. Two plainer bases are there to
measure against: `pca` leaves the mixing out, `standard` keeps the teacher's own channels, each divided by its own deviation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from scipy.linalg import hadamard
from torch import Tensor

from polyp_difom.cache.manifest import BasisKind

Mixing = Literal["hadamard", "random-orthogonal", "none", "own-channels"]

ROUNDING = 1e-12
"""Variance below this share of the squared mean is beyond what float32 maps can express."""


@dataclass(frozen=True)
class Basis:
    """Teacher channels i -> stored channels c.

    Attributes:
        mean: float64 [i], channel means over train frames.
        rotation: float64 [c, i], orthonormal rows (principal directions, mixed); of `standard`, each chosen channel over its
            deviation.
        scale: the one scalar that brings the mean stored variance to 1.
        explained: float64 [i], share of variance along each principal direction (`standard`: of each channel), descending.
        mixing: "hadamard" or "random-orthogonal"; "none" of `pca` and `identity_basis`; "own-channels" of `standard`.
        steps: of maps that are stored as int8, by scale: what the integers are multiplied by, float32 [c].
    """

    mean: np.ndarray
    rotation: np.ndarray
    scale: float
    explained: np.ndarray
    mixing: Mixing
    steps: Mapping[str, np.ndarray] = field(default_factory=dict)

    def apply(self, maps: Tensor) -> Tensor:
        """Maps [b, i, h, w] -> standardised float32 [b, c, h, w]."""
        weight, mean = self._tables_on(maps.device)
        return torch.einsum("ci,bihw->bchw", weight, maps.float() - mean)

    @cached_property
    def _tables(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}

    def _tables_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Weight [c, i] and mean [i, 1, 1]; copied once, since a GPU would be waited for each time."""
        if device not in self._tables:
            weight, mean = torch.from_numpy(self.rotation / self.scale), torch.from_numpy(self.mean)[:, None, None]
            self._tables[device] = weight.to(device, torch.float32), mean.to(device, torch.float32)
        return self._tables[device]

    def variance(self, moments: Moments) -> float:
        """Mean stored-channel variance of maps with these moments (1 for those the basis was fitted on)."""
        rotated = self.rotation @ moments.covariance() @ self.rotation.T
        return float(np.trace(rotated) / len(rotated) / self.scale**2)

    def narrowing(self, channels: int, seed: int) -> np.ndarray:
        """From stored channels to those of the basis with fewer, float64 [k, c]: unmixes, keeps the leading k directions, mixes
        these and scales them to unit variance.

        Args:
            channels: k, at most c.
            seed: that this basis was fitted with.
        """
        leading = np.eye(len(self.rotation))[:channels]
        if self.mixing == "own-channels":
            return leading
        kept, held = (self.explained[:count].mean() for count in (channels, len(self.rotation)))
        ratio = np.sqrt(held / kept) if kept else 1.0
        if self.mixing == "none":
            return ratio * leading
        return ratio * mixing_matrix(channels, seed) @ mixing_matrix(len(self.rotation), seed).T[:channels]


class Moments:
    """Running first and second moments of channels, in float64 on the maps' own device."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None
        self._outer: Tensor | None = None

    def add(self, maps: Tensor) -> None:
        """Take in maps [b, i, h, w]; every cell is one observation."""
        cells = maps.movedim(1, -1).reshape(-1, maps.shape[1]).double()
        if self._sum is None or self._outer is None:
            self._sum, self._outer = cells.new_zeros(cells.shape[1]), cells.new_zeros(cells.shape[1], cells.shape[1])
        self.count += len(cells)
        self._sum += cells.sum(0)
        self._outer += cells.T @ cells

    def mean(self) -> np.ndarray:
        """Channel means, float64 [i]."""
        assert self._sum is not None, "no maps were added"  # noqa: S101
        return (self._sum / self.count).cpu().numpy()

    def covariance(self) -> np.ndarray:
        """Population covariance, float64 [i, i]."""
        assert self._outer is not None, "no maps were added"  # noqa: S101
        mean = self.mean()
        return (self._outer / self.count).cpu().numpy() - np.outer(mean, mean)


def mixing_kind(channels: int) -> Mixing:
    """Which orthogonal mixing a channel count gets: Hadamard (equal variances exactly) at powers of two."""
    return "hadamard" if channels & (channels - 1) == 0 else "random-orthogonal"


def mixing_matrix(channels: int, seed: int) -> np.ndarray:
    """Orthogonal float64 [c, c]: Sylvester's Hadamard at powers of two, else Haar-random from the seed."""
    if mixing_kind(channels) == "hadamard":
        return hadamard(channels).astype(np.float64) / np.sqrt(channels)
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((channels, channels)))
    return q * np.sign(np.diag(r))


def fit_basis(moments: Moments, channels: int, seed: int = 0, kind: BasisKind = "phi-s") -> Basis:
    """Fit to accumulated moments of TRAIN frames; channels must not exceed the teacher's own.

    Eigenvectors are signed so that their largest entry is positive: the same moments give the same basis. Constant maps,
    whose variance is rounding alone, keep scale 1.
    """
    if kind == "standard":
        return _own_channels(moments, channels)
    values, vectors = np.linalg.eigh(moments.covariance())
    values, vectors = values[::-1].clip(min=0.0), vectors[:, ::-1]
    leading = vectors[:, :channels].T
    peaks = leading[np.arange(channels), np.abs(leading).argmax(1)]
    leading = leading * np.sign(peaks)[:, None]
    mean, variance = moments.mean(), values[:channels].mean()
    return Basis(
        mean=mean,
        rotation=leading if kind == "pca" else mixing_matrix(channels, seed) @ leading,
        scale=float(np.sqrt(variance)) if variance > ROUNDING * np.square(mean).max() else 1.0,
        explained=_shares(values),
        mixing="none" if kind == "pca" else mixing_kind(channels),
    )


def _own_channels(moments: Moments, channels: int) -> Basis:
    """The channels of the largest variance, each divided by its own deviation."""
    mean, values = moments.mean(), np.diag(moments.covariance()).clip(min=0.0)
    order = np.argsort(-values, kind="stable")
    chosen = order[:channels]
    deviations = np.where(values > ROUNDING * np.square(mean).max(), np.sqrt(values), 1.0)
    rotation = np.eye(len(values))[chosen] / deviations[chosen, None]
    return Basis(mean=mean, rotation=rotation, scale=1.0, explained=_shares(values[order]), mixing="own-channels")


def _shares(values: np.ndarray) -> np.ndarray:
    return values / max(values.sum(), np.finfo(np.float64).tiny)


def identity_basis(channels: int) -> Basis:
    """Channels as they are, for maps whose values are to be kept: probabilities."""
    even = np.full(channels, 1 / channels)
    return Basis(mean=np.zeros(channels), rotation=np.eye(channels), scale=1.0, explained=even, mixing="none")
