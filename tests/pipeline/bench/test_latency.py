"""Timing, on a clock that the tests turn."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from polyp_difom.pipeline.bench import latency
from polyp_difom.pipeline.bench.latency import Latency, in_turn, measure


class Clock:
    """A machine whose calls take as long as they say, times `slowness`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slowness = 1.0
        self.calls: list[str] = []

    def work(self, name: str, *seconds: float) -> Callable[[], None]:
        """A call that takes these times in turn, over and over."""
        number = 0

        def call() -> None:
            nonlocal number
            self.now += seconds[number % len(seconds)] * self.slowness
            number += 1
            self.calls.append(name)

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock.now)
    return clock


def test_median_95th_percentile_and_best_are_those_of_the_timed_calls(clock: Clock) -> None:
    # warm-up takes 9 s; the turn's first call, untimed, 8 s; then 1 to 5 s
    found = measure(clock.work("a", 9, 8, 1, 2, 3, 4, 5), warmup=1, repeats=5)
    assert found.median_ms == pytest.approx(3000)
    assert found.p95_ms == pytest.approx(4800)
    assert found.best_ms == pytest.approx(1000)
    assert found.repeats == 5
    assert len(clock.calls) == 7


def test_candidates_take_turns(clock: Clock) -> None:
    in_turn({"a": clock.work("a", 1), "b": clock.work("b", 1)}, repeats=7)
    assert "".join(clock.calls) == "aaaaaa" + "bbbbbb" + "aaa" + "bbb"


def test_a_machine_that_slows_down_does_not_move_the_ratio(clock: Clock) -> None:
    quick, slow = clock.work("quick", 1), clock.work("slow", 3)

    def slowing(call: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            clock.slowness = 1 + len(clock.calls) // 12  # another speed every round
            call()

        return run

    found = in_turn({"quick": slowing(quick), "slow": slowing(slow)}, repeats=25)
    assert found["quick"].speedup_over(found["slow"]) == pytest.approx(3)
    assert len(set(found["quick"].turn_medians_ms)) == 5


def test_slow_candidates_stop_early_and_say_after_how_many_calls(clock: Clock) -> None:
    calls = {"a": clock.work("a", 2), "b": clock.work("b", 0.5)}
    found = in_turn(calls, repeats=30, seconds=10)
    assert [one.repeats for one in found.values()] == [10, 10]


def test_one_turn_is_always_taken(clock: Clock) -> None:
    assert in_turn({"a": clock.work("a", 100)}, repeats=30, seconds=1)["a"].repeats == 5


def test_a_speed_up_is_a_ratio_of_turns_taken_side_by_side() -> None:
    ours, theirs = Latency(2, 2, 1, 10, (1.0, 2.0, 3.0)), Latency(6, 6, 2, 10, (2.0, 6.0, 9.0))
    assert ours.speedup_over(theirs) == pytest.approx(3)
