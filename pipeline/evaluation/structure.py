"""How well a map keeps the lesion's structure: S-measure, weighted F and E-measure.

They are pysodmetrics', ports of the authors' MATLAB code that PraNet's evaluation uses. They are given the map that the
protocol scores as float64 and the truth as bool (`normalize=False`), neither stretched nor rounded to 8 bits here; for a map
that was read from an 8-bit picture this is what MATLAB reads. pysodmetrics takes a second to import: import this where needed.

Shapes: h, w the mask's own size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from py_sod_metrics import Emeasure, Smeasure, WeightedFmeasure


class _Smeasure(Smeasure):
    """pysodmetrics gives NaN where the centroid lies in the last row or column: the empty quadrant weighs nothing there."""

    def ssim(self, pred: NDArray[np.float64], gt: NDArray[np.bool_]) -> float:
        return super().ssim(pred, gt) if pred.size else 0.0


def s_measure(probability: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Structure measure with alpha 0.5 (Fan et al., ICCV 2017) of a map [h, w] in 0..1 against the truth [h, w].

    An empty truth scores 1 - mean of the map, a truth that fills the frame the mean of the map.
    """
    return float(_Smeasure().cal_sm(probability, truth))


def weighted_f(probability: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Weighted F-measure with beta 1 (Margolin et al., CVPR 2014) of a map [h, w] in 0..1; 0 for an empty truth.

    The authors smooth errors with zeros beyond the frame: a missed lesion keeps a little within three pixels of its edge.
    """
    return float(WeightedFmeasure().cal_wfm(probability, truth)) if truth.any() else 0.0


def e_curve(probability: NDArray[np.float64], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Enhanced-alignment measure (Fan et al., IJCAI 2018) of a map [h, w] at the thresholds k/255: [256], k = 0 first.

    The authors divide by h w - 1, so that a perfect map exceeds 1 by 1 / (h w - 1); here the curve ends at 1.
    An empty truth scores the share of pixels that stay background, a truth that fills the frame the share that is found.
    """
    measure = Emeasure()
    measure.step(probability, truth, normalize=False)
    return np.minimum(measure.changeable_ems[0][::-1], 1)
