"""One probability map against one mask, under named protocols that are never mixed.

Shapes: h, w the mask's own size; s the side of a squared frame.

What the protocols do, and where they differ:

==========  =================  ==========================================  ==================================
name        map and mask at    binarisation                                averaged over
==========  =================  ==========================================  ==================================
per-image   the original size  once, map >= 0.5                            frames
pranet      the original size  min-max per frame, then 256 thresholds      thresholds, then frames
pooled-6    squared frames     once, map >= 0.5                            runs of six frames, pixels pooled
==========  =================  ==========================================  ==================================

Every figure is of the map that its protocol binarises: as it is, or under `pranet` stretched. Structure measures, HD95 and
calibration are for whole frames, so `pooled-6` has none; a stretched map holds no probabilities: no calibration under `pranet`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from polyp_difom.cache.errors import DataError, UsageError
from polyp_difom.pipeline.evaluation.calibration import band_bins
from polyp_difom.pipeline.evaluation.measures import count_lesions, hausdorff95

THRESHOLD = 0.5
Measures = Literal["all", "overlap"]
"""What is computed: everything, or Dice, IoU, precision, recall and MAE only."""
_LEVELS = np.append(np.arange(256) / 255, np.inf)


@dataclass(frozen=True, eq=False)
class Case:
    """One prediction with its truth: probability float [h, w] in 0..1, truth bool [h, w]."""

    id: str
    dataset: str
    probability: NDArray[np.floating]
    truth: NDArray[np.bool_]


@dataclass(frozen=True)
class ImageScore:
    """What one frame (or, under `pooled-6`, one run of frames) scored; shares and scores in 0..1, None where not computed.

    Attributes:
        lesion_share: area of the truth over the area of the frame.
        mae: mean absolute error of the map (before any threshold).
        lesions: connected components of the truth.
        hd95: distance of the borders at threshold 0.5, pixels of the mask's own size.
        s_measure, weighted_f: structure measure and weighted F of the map.
        e_mean: E-measure, mean over 256 thresholds.
        frames: how many frames the row stands for (1, but up to 6 under `pooled-6`).
    """

    id: str
    dataset: str
    height: int
    width: int
    lesion_share: float
    dice: float
    iou: float
    precision: float
    recall: float
    mae: float
    lesions: int
    hd95: float | None = None
    s_measure: float | None = None
    weighted_f: float | None = None
    e_mean: float | None = None
    protocol: str = "per-image"
    frames: int = 1


@dataclass(frozen=True, eq=False)
class Scored:
    """A row, and what a set needs of it beyond the row: the E-measure at each threshold [256], the calibration sums [3, 15]."""

    row: ImageScore
    e_curve: NDArray[np.float64] | None = None
    bins: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Protocol:
    """A named way from maps to rows.

    Attributes:
        score: turns `group` cases (fewer at the end) into one row, with the slower measures or without.
        group: cases per row.
        squared: whether maps and masks are taken as squared frames instead of at their original size.
    """

    name: str
    summary: str
    score: Callable[[Sequence[Case], Measures], Scored]
    group: int = 1
    squared: bool = False


def scored(protocol: str, cases: Iterable[Case], measures: Measures = "all") -> Iterator[Scored]:
    """Score `cases` under a named protocol, in order; holds no more than one row's maps at a time.

    Raises:
        UsageError: there is no such protocol, or no such choice of measures.
        DataError: a case that cannot be scored.
    """
    chosen = get_protocol(protocol)
    if measures not in get_args(Measures):
        raise UsageError(f"unknown measures {measures!r}", wanted=f"one of: {', '.join(get_args(Measures))}")
    stream = iter(cases)
    while group := list(islice(stream, chosen.group)):
        for case in group:
            _check(case)
        yield chosen.score(group, measures)


def get_protocol(name: str) -> Protocol:
    """The protocol called `name`, or a UsageError with close matches."""
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    close = difflib.get_close_matches(name, PROTOCOLS, n=2, cutoff=0.4)
    raise UsageError(
        f"unknown protocol {name!r}",
        wanted=f"one of: {', '.join(PROTOCOLS)}",
        remedy=f"did you mean {' or '.join(close)}?" if close else None,
    )


def _score_per_image(cases: Sequence[Case], measures: Measures) -> Scored:
    """One threshold; a pixel is foreground when its value is >= 0.5.

    Nothing is skipped: truth and prediction both empty count as a perfect answer (Dice, IoU, precision, recall, weighted F 1).
    An empty truth alone makes all of these 0, an empty prediction alone all but weighted F, which grades the map itself.
    """
    (case,) = cases
    prediction = case.probability >= THRESHOLD
    row = _row(cases, "per-image", _overlap_at(prediction, case.truth), _mae(case.probability, case.truth))
    if measures == "overlap":
        return Scored(row)
    scored = _with_structure(row, case.probability.astype(np.float64), prediction, case.truth)
    if not prediction.any() and not case.truth.any():
        scored = replace(scored, row=replace(scored.row, weighted_f=1.0))
    return replace(scored, bins=band_bins(case.probability, case.truth))


def _score_pranet(cases: Sequence[Case], measures: Measures) -> Scored:
    """PraNet's MATLAB evaluation (Fan et al., MICCAI 2020), on the float map instead of its 8-bit picture.

    Maps saved with 8 bits first, as the authors save theirs, came out 0.2 points of Dice lower for two trained networks.
    The map is stretched to 0..1 by its own minimum and maximum; a constant map stays as it is (as `mapminmax` leaves it).
    At each threshold k/255, k = 0..255, a pixel is foreground when >= the threshold; Dice, IoU, precision and recall are 0
    wherever map and truth do not meet, so a frame without a lesion scores 0 whatever is predicted (so does weighted F).
    MAE and the structure measures are of the stretched map. HD95, which PraNet's code lacks, is of the stretched map at 0.5.
    The authors describe the average over thresholds in https://github.com/DengPingFan/PraNet/issues/19.
    """
    (case,) = cases
    values = case.probability.astype(np.float64)
    low, high = values.min(), values.max()
    if high > low:
        values = (values - low) / (high - low)
    reached = (values * 255).astype(np.intp)  # the highest threshold each pixel passes, but for the rounding of the product:
    reached -= values < _LEVELS[reached]
    reached += values >= _LEVELS[reached + 1]
    predicted = _passing(reached)
    shared = _passing(reached[case.truth])
    overlap = _overlap(shared, predicted, int(case.truth.sum())).mean(axis=1)
    row = _row(cases, "pranet", overlap, _mae(values, case.truth))
    return Scored(row) if measures == "overlap" else _with_structure(row, values, values >= THRESHOLD, case.truth)


def _with_structure(
    row: ImageScore, values: NDArray[np.float64], prediction: NDArray[np.bool_], truth: NDArray[np.bool_]
) -> Scored:
    """The row with HD95 of a prediction and the structure measures of the map [h, w] it was made from."""
    from polyp_difom.pipeline.evaluation.structure import e_curve, s_measure, weighted_f  # a second to import

    curve = e_curve(values, truth)
    measured = replace(
        row,
        hd95=hausdorff95(prediction, truth),
        s_measure=s_measure(values, truth),
        weighted_f=weighted_f(values, truth),
        e_mean=float(curve.mean()),
    )
    return Scored(measured, curve)


def _passing(reached: NDArray[np.intp]) -> NDArray[np.int64]:
    """How many pixels pass each of the 256 thresholds, given the highest one each passes: a histogram summed from the top."""
    return np.cumsum(np.bincount(reached.ravel(), minlength=256)[::-1])[::-1]


def _score_pooled(cases: Sequence[Case], measures: Measures) -> Scored:
    """Dice over the pooled pixels of up to six squared frames, as in Polyp-DiFoM's notebook (arXiv 2512.09307, at 352 x 352).

    Large lesions outweigh small ones and a missed lesion hides behind its neighbours: for comparison with that notebook only.
    The notebook leaves the grey edges of resized masks in the sums; here the truth is binary.
    """
    shapes = {case.truth.shape for case in cases}
    if len(shapes) > 1 or len(set(next(iter(shapes)))) > 1:
        raise DataError(
            "pooled-6 takes squared maps of one size",
            where=", ".join(case.id for case in cases),
            got=" and ".join(sorted(f"{height} x {width}" for height, width in shapes)),
            wanted="352 x 352 throughout",
            remedy="pass the frames as the network sees them, before resizing to the original size",
        )
    probability = np.stack([case.probability for case in cases])
    truth = np.stack([case.truth for case in cases])
    return Scored(_row(cases, "pooled-6", _overlap_at(probability >= THRESHOLD, truth), _mae(probability, truth)))


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("per-image", "threshold 0.5 at the original size, mean over frames", _score_per_image),
        Protocol("pranet", "min-max per frame, mean over 256 thresholds, then over frames", _score_pranet),
        Protocol("pooled-6", "threshold 0.5 on squared frames, pixels of six frames pooled", _score_pooled, 6, True),
    )
}


def _check(case: Case) -> None:
    probability, truth = case.probability, case.truth
    where = f"{case.dataset}/{case.id}"
    if probability.ndim != 2 or probability.shape != truth.shape or not truth.size:
        raise DataError(
            "prediction and mask differ in shape",
            where=where,
            got=f"prediction {list(probability.shape)}, mask {list(truth.shape)}",
            wanted="two equal shapes [height, width]",
            remedy="resize the prediction to the mask, never the mask to the prediction",
        )
    if truth.dtype != np.bool_:
        raise DataError(
            "the mask is not boolean", where=where, got=truth.dtype, wanted="bool", remedy="binarise the mask first: mask > 127"
        )
    low, high = float(probability.min()), float(probability.max())
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise DataError(
            "the prediction is no probability map",
            where=where,
            got=f"values from {low:g} to {high:g}",
            wanted="numbers in 0..1",
            remedy="pass probabilities (after the sigmoid); if they are NaN, retrain with a lower learning rate",
        )


def _overlap_at(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    predicted, actual = int(prediction.sum()), int(truth.sum())
    if predicted == actual == 0:
        return np.ones(4)
    return _overlap(np.asarray((prediction & truth).sum()), np.asarray(predicted), actual)


def _overlap(shared: NDArray[np.int64], predicted: NDArray[np.int64], actual: int) -> NDArray[np.float64]:
    """Dice, IoU, precision and recall [4, ...] from pixel counts; 0 where nothing is shared."""
    whole = predicted + actual
    return np.stack(
        [
            2 * shared / np.maximum(whole, 1),
            shared / np.maximum(whole - shared, 1),
            shared / np.maximum(predicted, 1),
            shared / max(actual, 1),
        ]
    )


def _mae(probability: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    return float(np.abs(probability.astype(np.float64) - truth).mean())


def _row(cases: Sequence[Case], protocol: str, overlap: NDArray[np.float64], mae: float) -> ImageScore:
    first = cases[0]
    height, width = first.truth.shape
    dice, iou, precision, recall = map(float, overlap)
    return ImageScore(
        id="+".join(case.id for case in cases),
        dataset=first.dataset,
        height=height,
        width=width,
        lesion_share=float(np.mean([case.truth.mean() for case in cases])),
        dice=dice,
        iou=iou,
        precision=precision,
        recall=recall,
        mae=mae,
        lesions=sum(count_lesions(case.truth) for case in cases),
        protocol=protocol,
        frames=len(cases),
    )
