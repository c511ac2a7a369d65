"""How many maps a second each score takes, on one core and on drawn blobs.

Shapes: s side of a square map.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import ndimage

from polyp_difom.pipeline.evaluation.calibration import band_bins
from polyp_difom.pipeline.evaluation.measures import count_lesions, hausdorff95
from polyp_difom.pipeline.evaluation.metrics import score_set
from polyp_difom.pipeline.evaluation.scoring import PROTOCOLS, THRESHOLD, Case
from polyp_difom.pipeline.evaluation.structure import e_curve, s_measure, weighted_f


@dataclass(frozen=True)
class MetricSpeed:
    """Maps a second for one group of scores; `protocol` is empty for a measure that is the same under all."""

    name: str
    protocol: str
    maps_per_second: float


def blob_case(size: int, seed: int) -> Case:
    """A drawn lesion (an ellipse with a wavy border, 2 to 20 % of the frame) and a soft, displaced map of it, both [s, s]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] / size
    y, x = rng.uniform(0.3, 0.7, 2)
    height, width = rng.uniform(0.08, 0.25, 2)
    angle = np.arctan2(rows - y, columns - x)
    wave = 1 + 0.15 * np.sin(rng.integers(2, 6) * angle + rng.uniform(0, 6))
    radius = np.hypot((rows - y) / height, (columns - x) / width) / wave
    noise = ndimage.gaussian_filter(rng.standard_normal((size, size)), size / 20) * size / 20
    probability = 1 / (1 + np.exp(10 * (radius - 1) + 2 * noise))
    return Case(str(seed), "blobs", probability.astype(np.float32), radius <= 1)


def bench_metrics(count: int = 200, size: int = 352, seed: int = 0) -> list[MetricSpeed]:
    """Time each protocol's overlap scores on `count` maps, and every slower measure by itself on `count` maps too."""
    cases = [blob_case(size, seed + number) for number in range(count)]
    doubles = [(case.probability.astype(np.float64), case.truth) for case in cases]
    masks = [(case.probability >= THRESHOLD, case.truth) for case in cases]
    timed: list[tuple[str, str, Callable[[], object]]] = [
        ("overlap", name, partial(score_set, name, "blobs", cases, "overlap")) for name in PROTOCOLS
    ]
    timed += [
        ("S-measure", "", lambda: [s_measure(*pair) for pair in doubles]),
        ("weighted F", "", lambda: [weighted_f(*pair) for pair in doubles]),
        ("E-measure", "", lambda: [e_curve(*pair) for pair in doubles]),
        ("HD95", "", lambda: [hausdorff95(*pair) for pair in masks]),
        ("calibration", "", lambda: [band_bins(case.probability, case.truth) for case in cases]),
        ("lesions", "", lambda: [count_lesions(case.truth) for case in cases]),
    ]
    speeds = []
    for name, protocol, work in timed:
        start = time.perf_counter()
        work()
        speeds.append(MetricSpeed(name, protocol, count / (time.perf_counter() - start)))
    return speeds
