"""Connected regions of a mask: boxes, scores, COCO run lengths, polygons.

Shapes: h w the picture's size, k points of a polygon.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, label

from polyp_difom.pipeline.overlays import outlines

_EIGHT_NEIGHBOURS = np.ones((3, 3), np.int8)


@dataclass(frozen=True, eq=False)
class Region:
    """One connected region, diagonal neighbours included.

    Attributes:
        left, top: of its box, pixels.
        mask: bool, the region within its box.
        score: mean probability over the region.
    """

    left: int
    top: int
    mask: NDArray[np.bool_]
    score: float

    @property
    def area(self) -> int:
        """Pixels."""
        return int(self.mask.sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, width, height) in pixels, as COCO has it."""
        return self.left, self.top, self.mask.shape[1], self.mask.shape[0]


def find_regions(mask: NDArray[np.bool_], probability: NDArray[np.float32]) -> list[Region]:
    """Regions of a mask [h, w], largest first."""
    labels, _ = label(mask, _EIGHT_NEIGHBOURS)
    found = []
    for number, (rows, columns) in enumerate(find_objects(labels), start=1):
        inside = labels[rows, columns] == number
        score = float(probability[rows, columns][inside].mean(dtype=np.float64))
        found.append(Region(columns.start, rows.start, inside, score))
    return sorted(found, key=lambda region: -region.area)


def run_lengths(region: Region, size: tuple[int, int]) -> list[int]:
    """COCO's uncompressed run lengths of one region in a picture of `size` = (h, w).

    Column by column, alternately outside and inside, beginning with outside (0 if the first pixel is inside).
    """
    height, width = size
    columns, rows = np.nonzero(region.mask.T)
    inside = (columns + region.left) * height + rows + region.top  # ascending positions in column-major order
    breaks = np.flatnonzero(np.diff(inside) > 1)
    starts, ends = inside[np.r_[0, breaks + 1]], inside[np.r_[breaks, inside.size - 1]] + 1
    edges = np.r_[0, np.stack([starts, ends], axis=1).ravel(), height * width]
    counts = np.diff(edges).tolist()
    return counts if counts[-1] else counts[:-1]


def polygons(region: Region, tolerance: float = 1.0) -> list[NDArray[np.float64]]:
    """Outer borders of a region, each [k, 2] as (x, y) in picture pixels; points at most `tolerance` off are dropped.

    Parts that touch at a corner only have a polygon each; holes are left out, polygons cannot hold them.
    """
    outer = [path for path in outlines(region.mask) if _signed_area(path) > 0]
    return [_simplified(path, tolerance) + np.array([region.left, region.top]) for path in outer]


def _signed_area(path: NDArray[np.float64]) -> float:
    """Positive for borders walked with the mask on the right (y points down), negative for those of holes."""
    x, y = path.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(np.roll(x, -1), y)) / 2


def _simplified(path: NDArray[np.float64], tolerance: float) -> NDArray[np.float64]:
    """Ramer-Douglas-Peucker on a closed path, cut at its first point and at the one farthest from it."""
    far = int(np.argmax(np.hypot(*(path - path[0]).T)))
    closed = np.concatenate([path, path[:1]])
    kept, pending = {0, far}, [(0, far), (far, len(path))]
    while pending:
        begin, end = pending.pop()
        chord = closed[end] - closed[begin]
        offsets = closed[begin + 1 : end] - closed[begin]
        if not len(offsets):
            continue
        distance = np.abs(chord[0] * offsets[:, 1] - chord[1] * offsets[:, 0]) / np.hypot(*chord)
        worst = int(np.argmax(distance))
        if distance[worst] > tolerance:
            middle = begin + 1 + worst
            kept.add(middle)
            pending += [(begin, middle), (middle, end)]
    if len(kept) < 3:  # a sliver: its farthest corner makes it a polygon again
        chord = closed[far] - closed[0]
        kept.add(int(np.argmax(np.abs(chord[0] * (path - path[0])[:, 1] - chord[1] * (path - path[0])[:, 0]))))
    return path[sorted(kept)]
