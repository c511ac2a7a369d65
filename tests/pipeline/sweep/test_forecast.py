"""What a sweep will take: from real steps of a tiny store, and from steps of known length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from polyp_difom.cache.errors import RunError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.distill import DistillConfig
from polyp_difom.pipeline.sweep import forecast as forecasting
from polyp_difom.pipeline.sweep.folder import SweepConfig
from polyp_difom.pipeline.sweep.forecast import Forecast, forecast, last_end
from polyp_difom.pipeline.sweep.pace import Pace
from polyp_difom.pipeline.sweep.run import resolved
from polyp_difom.pipeline.sweep.space import Span, parse_grid

STEP, VAL, START = 2.0, 0.5, 7.0
KEYS = (("train", "frames/image"), ("val", "frames/image"))
Foreseeing = Callable[..., Forecast]


@pytest.fixture
def foreseeing(store: FeatureStore, tmp_path: Path) -> Foreseeing:
    def foresee(grid: str, **changes: Any) -> Forecast:
        values: dict[str, Any] = {"jobs": 2, "device": "cpu", "factors": parse_grid(grid)}
        config = SweepConfig(cache=str(store.location), **{**values, **changes})
        return forecast(resolved(config, store), store, tmp_path / "sweeps" / "x")

    return foresee


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[list[DistillConfig]]:
    """Steps of known length; the list of what was timed."""
    calls = []

    def pretend(configs: Sequence[DistillConfig], seconds: float, arrays: object = None) -> list[Pace]:
        calls.append(list(configs))
        return [Pace(START, STEP, VAL, 1, 1000, 5000, KEYS)] * len(configs)

    monkeypatch.setattr(forecasting, "side_by_side", pretend)
    return calls


def test_minutes_follow_from_steps_epochs_and_validation(foreseeing: Foreseeing, timed: list[list[DistillConfig]]) -> None:
    found = foreseeing("student=unet:4 batch-size=4 epochs=3,30 seed=0..1 learning-rate=1e-3,1e-4")
    assert len(found.trials) == 8
    assert len(timed) == 1  # what costs the same is timed once, beside as many others as there will be
    assert len(timed[0]) == 2
    epoch = 20 // 4 * STEP + 2 * VAL  # 20 train and 2 validation frames
    wanted = {epochs: (START + epochs * epoch) / 60 for epochs in (3, 30)}
    assert all(row.minutes == pytest.approx(wanted[row.settings["epochs"]]) for row in found.trials)
    assert found.minutes == pytest.approx(2 * sum(wanted.values()), abs=0.5)


def test_bytes_are_checkpoints_kept_and_states_of_running_trials(
    foreseeing: Foreseeing, timed: list[list[DistillConfig]], store: FeatureStore
) -> None:
    found = foreseeing("student=unet:4 seed=0..4")
    assert [row.bytes for row in found.trials] == [2 * 1000] * 5
    assert found.bytes == 5 * 2 * 1000 + 2 * 2 * 5000
    assert found.store_bytes == 22 * 3 * 64 * 64


def test_trials_that_cannot_be_trained_take_no_bytes(foreseeing: Foreseeing, timed: list[list[DistillConfig]]) -> None:
    assert foreseeing("student=unet:4,unet:x seed=0..1", jobs=3).bytes == 2 * 2 * 1000 + 2 * 2 * 5000
    assert foreseeing("student=unet:x seed=0..1", jobs=3).bytes == 0
    found = foreseeing("student=unet:4", sampler="tpe", trials=6, factors={"student": ("unet:4", "unet:x")})
    good = sum(row.bytes is not None for row in found.trials)
    assert 0 < good < 6
    assert found.bytes == good * (2 * 1000 + 5000) + 2 * min(2, good) * 5000


def test_what_will_not_fit_on_the_disk_is_refused(
    foreseeing: Foreseeing, timed: list[list[DistillConfig]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecasting, "free_space", lambda place: (place, 20_000))
    with pytest.raises(RunError, match="will not fit on the disk"):
        foreseeing("student=unet:4 seed=0..4")


def test_a_guided_search_is_foreseen_from_random_draws(foreseeing: Foreseeing, timed: list[list[DistillConfig]]) -> None:
    found = foreseeing(
        "student=unet:4", sampler="tpe", trials=6, factors={"student": ("unet:4",), "learning_rate": Span(1e-4, 1e-2, True)}
    )
    assert len(found.trials) == 6
    assert "random draws" in found.note
    assert found.bytes == 6 * (2 * 1000 + 5000) + 2 * 2 * 5000  # pruned trials keep what they could go on from


def test_real_steps_are_timed_and_nothing_is_written(foreseeing: Foreseeing, tmp_path: Path) -> None:
    found = foreseeing("student=unet:4,unet:x objective=none,multiscale batch-size=4 epochs=2")
    good, bad = found.trials[:2], found.trials[2:]
    assert all(0 < row.minutes < 10 and row.bytes and not row.note for row in good if row.minutes)
    assert all(row.minutes for row in good)
    assert [(row.minutes, row.bytes) for row in bad] == [(None, None)] * 2
    assert all("unknown U-Net width" in row.note for row in bad)
    assert found.reason == "as asked"
    assert not list(tmp_path.iterdir())


def test_trials_begin_where_a_worker_is_free() -> None:
    assert last_end([3, 1, 1, 1], 2) == 3
    assert last_end([1, 1, 1, 3], 2) == 4
    assert last_end([], 2) == 0
