"""Wall-clock time of repeated calls, several candidates in turn, so that a drift of the machine hits them all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from polyp_difom.pipeline.progress import Progress

Name = TypeVar("Name", bound=Hashable)
CALLS_A_TURN = 5
"""Timed calls before the next candidate has its turn; one untimed call precedes them, for caches and sleeping threads."""


@dataclass(frozen=True)
class Latency:
    """Timed calls of one candidate.

    Attributes:
        median_ms, p95_ms, best_ms: milliseconds a call; a best far below the median says that other programs were at work.
        repeats: timed calls.
        turn_medians_ms: median of each turn, for ratios of candidates that were timed in turn.
    """

    median_ms: float
    p95_ms: float
    best_ms: float
    repeats: int
    turn_medians_ms: tuple[float, ...]

    def speedup_over(self, other: Latency) -> float:
        """How many times as fast as `other`: the median, over turns taken side by side, of the ratio of the turns' medians."""
        return float(np.median(np.divide(other.turn_medians_ms, self.turn_medians_ms)))


def measure(call: Callable[[], object], *, warmup: int, repeats: int) -> Latency:
    """Time one candidate alone; `call` must return only when its work is done."""
    for _ in range(warmup):
        call()
    return in_turn({"": call}, repeats=repeats)[""]


def in_turn(
    calls: Mapping[Name, Callable[[], object]], *, repeats: int, seconds: float = float("inf"), progress: Progress | None = None
) -> dict[Name, Latency]:
    """Time warm candidates round-robin, a few calls a turn.

    Args:
        calls: by name; each must return only when its work is done.
        repeats: timed calls a candidate.
        seconds: no further round begins once the rounds so far took this long for each candidate on average.
    """
    rounds = [range(begin, min(begin + CALLS_A_TURN, repeats)) for begin in range(0, repeats, CALLS_A_TURN)]
    turns: dict[Name, list[list[float]]] = {name: [] for name in calls}
    began = time.perf_counter()
    with (progress or Progress()).task("timing", len(rounds) * len(calls)) as advance:
        for timed in rounds:
            if time.perf_counter() - began > seconds * len(calls):
                break
            for name, call in calls.items():
                call()
                turns[name].append([_milliseconds(call) for _ in timed])
                advance(1)
    return {name: _latency(taken) for name, taken in turns.items()}


def _milliseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


def _latency(turns: list[list[float]]) -> Latency:
    every = np.concatenate(turns)
    medians = tuple(float(np.median(turn)) for turn in turns)
    return Latency(float(np.median(every)), float(np.percentile(every, 95)), float(every.min()), len(every), medians)
