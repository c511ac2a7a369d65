"""Whether a map's probabilities can be taken at their word, where it matters: in a band around the lesion's border.

Far from the lesion nearly every pixel is easy background, and an error averaged over all of them is small for any map. So only
pixels within `BAND` of the truth's border count, on both sides.

Shapes: h, w the mask's own size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

BAND = 0.05
"""Half-width of the band, as a share of the frame's shorter side: 18 pixels of 352.

So wide, it holds 13 % of a Kvasir-SEG frame, nearly half of that lesion (44 %): wide enough for the zone where annotators and
networks differ, narrow enough that neither class is a safe guess.
"""
BINS = 15


@dataclass(frozen=True)
class ReliabilityRow:
    """Pixels whose probability falls into one bin: their mean probability, and the share of them that are lesion."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class Calibration:
    """Calibration over the band's pixels of a whole set.

    Attributes:
        ece: expected calibration error, |accuracy - confidence| averaged over pixels (Guo et al., ICML 2017, arXiv 1706.04599),
            here of the probability of lesion rather than of the likelier class, so that the bins cover 0 to 1.
        pixels: how many pixels the band holds.
        rows: one a bin of equal width that holds a pixel, from low to high (the reliability diagram).
    """

    ece: float
    pixels: int
    rows: tuple[ReliabilityRow, ...]


def band(truth: NDArray[np.bool_]) -> tuple[tuple[slice, slice], NDArray[np.bool_]] | None:
    """The band as a window of the frame and a mask of that window; None where the frame has no border to follow.

    That is so for an empty truth, and for one that fills the frame: the frame's own edge is no border.
    """
    if not truth.any() or truth.all():
        return None
    radius = max(BAND * min(truth.shape), 1.0)  # never less than the border pixels themselves
    margin = int(radius) + 1
    rows, columns = ndimage.find_objects(truth.astype(np.uint8))[0]
    window = (
        slice(max(rows.start - margin, 0), rows.stop + margin),
        slice(max(columns.start - margin, 0), columns.stop + margin),
    )
    inside = truth[window]
    distance = ndimage.distance_transform_edt(inside) + ndimage.distance_transform_edt(~inside)
    return window, distance <= radius


def band_bins(probability: NDArray[np.floating], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """One frame's sums [3, 15] by bin of probability: pixels, their probabilities, and how many are lesion."""
    found = band(truth)
    if found is None:
        return np.zeros((3, BINS))
    window, chosen = found
    values, lesion = probability[window][chosen].astype(np.float64), truth[window][chosen]
    bins = np.minimum((values * BINS).astype(np.intp), BINS - 1)
    return np.stack([np.bincount(bins, weights, BINS) for weights in (np.ones_like(values), values, lesion)])


def calibration(frames: Sequence[NDArray[np.float64]]) -> Calibration | None:
    """Pooled over the sums [3, 15] of frames; None where none of them has a band."""
    count, probability, lesion = np.sum(frames, axis=0)
    pixels = int(count.sum())
    if not pixels:
        return None
    filled = count > 0
    confidence, accuracy = probability[filled] / count[filled], lesion[filled] / count[filled]
    rows = zip(confidence.tolist(), accuracy.tolist(), count[filled].astype(int).tolist(), strict=True)
    return Calibration(
        ece=float(np.abs(probability - lesion).sum() / pixels),
        pixels=pixels,
        rows=tuple(ReliabilityRow(*row) for row in rows),
    )
