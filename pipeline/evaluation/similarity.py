"""How alike two sets of features are: linear CKA, and what a linear map makes of one out of the other.

All of it is streaming: sums over samples are kept, never the samples. Shapes: n samples, p q channels of the two sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE = 1e-3
"""Added to the channels' variances, as a share of their mean: channels that are always zero must not stop the solution."""


def _added(sums: list[Tensor], terms: list[Tensor]) -> list[Tensor]:
    return [old + new for old, new in zip(sums, terms, strict=True)] if sums else terms


class PairSums:
    """Sums over samples x [n, p] and y [n, q] of which the unbiased HSIC of their linear kernels is made, float64.

    HSIC_1 of Song et al. (JMLR 13, 2012, equation 5) with K = x x' and L = y y', whose diagonals are left out, written so
    that no n x n matrix is ever needed.
    """

    def __init__(self) -> None:
        self.n = 0
        self._sums: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in further samples."""
        k, l = x.square().sum(1), y.square().sum(1)  # noqa: E741  (the kernels' diagonals)
        terms = [x.T @ y, x.sum(0), y.sum(0), l @ x, k @ y, k.sum(), l.sum(), k @ l]
        self._sums = _added(self._sums, terms)
        self.n += len(x)

    def hsic(self) -> float:
        """The estimate, without the factor 1 / (n (n - 3)), which CKA cancels; samples must be 4 or more."""
        n = self.n
        xy, x, y, lx, ky, k, l, kl = self._sums  # noqa: E741
        trace = xy.square().sum() - kl
        sums = (x.square().sum() - k) * (y.square().sum() - l)
        rows = x @ xy @ y - x @ lx - y @ ky + kl
        return float(trace + sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows)


class LinearCKA:
    """Linear centred kernel alignment (Kornblith et al., arXiv 1905.00414), from the unbiased estimates of HSIC.

    1 for features that differ by a rotation, a shift and a factor; about 0 for independent ones, however few the samples.
    Samples count as independent: neighbouring cells of a frame are not, so smooth maps stand a little above 0 by chance.
    """

    def __init__(self) -> None:
        self._pairs = PairSums(), PairSums(), PairSums()
        self._shift: tuple[Tensor, ...] = ()

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in features [n, p] and [n, q] of the same samples."""
        x, y = x.double(), y.double()
        self._shift = self._shift or (x.mean(0), y.mean(0))  # changes nothing but rounding
        x, y = x - self._shift[0], y - self._shift[1]
        for pair, sides in zip(self._pairs, ((x, y), (x, x), (y, y)), strict=True):
            pair.add(*sides)

    def value(self) -> float | None:
        """The alignment; None of fewer than 4 samples, or of features that do not vary."""
        if self._pairs[0].n < 4:
            return None
        both, own, other = (pair.hsic() for pair in self._pairs)
        return both / math.sqrt(own * other) if own > 0 and other > 0 else None


class LinearProbe:
    """Least squares from x to y with an intercept, and a trace of ridge."""

    def __init__(self) -> None:
        self._n = 0
        self._sums: list[Tensor] = []
        self._shift: tuple[Tensor, ...] = ()

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in features [n, p] and [n, q] of the same samples."""
        x, y = x.double(), y.double()
        self._shift = self._shift or (x.mean(0), y.mean(0))
        x, y = x - self._shift[0], y - self._shift[1]
        terms = [x.T @ x, x.T @ y, x.sum(0), y.sum(0)]
        self._sums = _added(self._sums, terms)
        self._n += len(x)

    def solve(self) -> Callable[[Tensor], Tensor]:
        """The map from features [b, p, h, w] to predictions [b, q, h, w], float32."""
        xx, xy, x, y = (total / self._n for total in self._sums)
        covariance = xx - torch.outer(x, x)
        ridge = max(RIDGE * float(covariance.diagonal().mean()), 1e-12)
        eye = torch.eye(len(x), dtype=x.dtype, device=x.device)
        weight = torch.linalg.solve(covariance + ridge * eye, xy - torch.outer(x, y))
        bias = self._shift[1] + y - (self._shift[0] + x) @ weight
        weight, bias = weight.T[:, :, None, None].float(), bias.float()
        return lambda maps: F.conv2d(maps, weight, bias)


class Fit:
    """How well predictions meet targets, both [b, c, h, w], over any number of batches."""

    def __init__(self) -> None:
        self._cells, self._channels = 0, 0
        self._sums: list[Tensor] = []

    def add(self, prediction: Tensor, target: Tensor) -> None:
        """Take in further maps."""
        p, t = prediction.double(), target.double()
        cosine = F.cosine_similarity(p, t, dim=1).sum()
        terms = [(p - t).square().sum(), t.square().sum(), t.sum((0, 2, 3)), cosine]
        self._sums = _added(self._sums, terms)
        self._cells, self._channels = self._cells + t[:, 0].numel(), t.shape[1]

    def explained(self) -> float | None:
        """Share of the targets' variance that the predictions explain, R squared; None of targets that do not vary."""
        residual, squares, sums, _ = self._sums
        variance = float(squares - sums.square().sum() / self._cells)
        return 1 - float(residual) / variance if variance > 1e-12 * self._cells else None

    def cosine(self) -> float | None:
        """Mean cosine of predicted and true channel vectors; None of one channel, where it would be a sign."""
        return float(self._sums[3]) / self._cells if self._channels > 1 else None
