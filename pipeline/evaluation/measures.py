"""Distance between borders, and number of lesions.

Shapes: h, w the mask's own size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree


def hausdorff95(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """95th percentile of the distances between the borders of two masks [h, w], in pixels; the larger of both directions.

    A border is every mask pixel with a 4-neighbour outside the mask or the frame. Two empty masks are 0 apart; a mask and an
    empty one the frame's diagonal, sqrt(h^2 + w^2), so that a missed lesion counts against the mean instead of leaving it.
    """
    a, b = _border(prediction), _border(truth)
    if not len(a) or not len(b):
        return float(np.hypot(*truth.shape)) if len(a) or len(b) else 0.0
    there, back = KDTree(b).query(a)[0], KDTree(a).query(b)[0]
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _border(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Rows and columns [n, 2] of a mask's border pixels."""
    return np.argwhere(mask & ~ndimage.binary_erosion(mask))


def count_lesions(truth: NDArray[np.bool_]) -> int:
    """8-connected components of a mask [h, w], however small.

    Published masks have specks: 180 of Kvasir-SEG's 1,000 masks have several components, but 132 of these only one of 20 pixels
    or more; of CVC-ClinicDB's 612 masks it is 53 and 23.
    """
    return int(ndimage.label(truth, structure=np.ones((3, 3)))[1])
