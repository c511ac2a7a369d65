"""What a measurement of training steps comes to: times, ratios, and when compiling pays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from polyp_difom.pipeline.bench.latency import Latency
from polyp_difom.pipeline.bench.machine import Machine


@dataclass(frozen=True)
class Way:
    """One kind of step.

    Attributes:
        median_ms, p95_ms, best_ms: a step, its batch included.
        fps: frames a second, from the median.
        epoch_seconds: of all steps of an epoch, from the median; validation comes on top.
        first_seconds: of the first call, which compiles and chooses kernels.
        steps: timed.
    """

    name: str
    median_ms: float
    p95_ms: float
    best_ms: float
    fps: float
    epoch_seconds: float
    first_seconds: float
    steps: int


@dataclass(frozen=True)
class Ratio:
    """How many times a step of `way` costs one of `over`: the median over turns taken side by side, and their extremes.

    Attributes:
        bar: what is promised, "<= 1.10"; empty where nothing is.
    """

    way: str
    over: str
    value: float
    low: float
    high: float
    bar: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Compiling:
    """What torch.compile costs and saves.

    Attributes:
        seconds: that compiling takes, with what earlier compilations of this student left in their cache.
        saved_ms: a step; negative where it costs.
        pays_from: steps from which on it is cheaper; None for never.
    """

    way: str
    seconds: float
    saved_ms: float
    share: float
    pays_from: int | None


@dataclass(frozen=True)
class TrainBench:
    """All figures of one measurement.

    Attributes:
        frames: frame-views of the epoch.
        stages: median milliseconds by way and part, see `stages.PARTS`.
    """

    machine: Machine
    student: str
    objective: str
    size: int
    batch: int
    precision: str
    frames: int
    teachers: list[str]
    ways: list[Way]
    ratios: list[Ratio]
    compiling: list[Compiling]
    stages: dict[str, dict[str, float]]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        found = asdict(self)
        return {**found.pop("machine"), **found}


def way_of(name: str, latency: Latency, first: float, each: int, batch: int, frames: int) -> Way:
    median, p95, best = (ms / each for ms in (latency.median_ms, latency.p95_ms, latency.best_ms))
    epoch = max(1, frames // batch) * median / 1e3
    return Way(name, median, p95, best, batch * 1e3 / median, epoch, first, latency.repeats * each)


def ratio_of(way: str, over: str, taken: Mapping[str, Latency], most: float | None, least: float | None) -> Ratio:
    """Of calls that were taken in turn, with what is wanted of it."""
    turns = np.divide(taken[way].turn_medians_ms, taken[over].turn_medians_ms)
    value = float(np.median(turns))
    bar, met = "", None
    if most is not None:
        bar, met = f"at most {most:.2f}", value <= most
    if least is not None:
        bar, met = f"at least {least:.0f}", value >= least
    return Ratio(way, over, value, float(turns.min()), float(turns.max()), bar, met)


def compiling_of(way: str, compiled: Latency, eager: Latency, first: float, each: int) -> Compiling:
    """From how many steps on compiling pays: what its first call took longer, over what each later step takes less."""
    share = 1 - 1 / compiled.speedup_over(eager)
    saved = share * eager.median_ms / each
    seconds = max(0.0, first - compiled.median_ms / 1e3)
    return Compiling(way, seconds, saved, share, math.ceil(seconds * 1e3 / saved) if saved > 0 else None)
