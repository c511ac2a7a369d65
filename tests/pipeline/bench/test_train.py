"""Training steps timed in turn: figures that fit together, real steps under the watch, teachers that give the store's maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyp_difom.cache.errors import UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import augment, schema
from polyp_difom.pipeline import trainer as trainer_module
from polyp_difom.pipeline.bench import stages as watching
from polyp_difom.pipeline.bench import train as bench
from polyp_difom.pipeline.bench.drawn import drawn_training, stand_ins
from polyp_difom.pipeline.bench.latency import Latency
from polyp_difom.pipeline.bench.online import Online
from polyp_difom.pipeline.bench.train import bench_train
from polyp_difom.pipeline.bench.train_figures import TrainBench, compiling_of, ratio_of, way_of
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.spectra import spectrum
from polyp_difom.pipeline.teachers.protocol import load_teacher
from polyp_difom.pipeline.trainer import Trainer

from ...conftest import Heard

TEACHER = "dinov2:small"


@pytest.fixture
def benching(monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainBench]:
    """A measurement of a tiny student with a few calls, unless told otherwise."""
    monkeypatch.setattr(bench, "WATCHED_STEPS", 1)
    monkeypatch.setattr(bench, "BATCHES_DRAWN", {"cpu": 2})
    values: dict[str, Any] = {"size": 64, "batch": 2, "device": "cpu", "precision": "float32", "repeats": 2}
    return lambda student="unet:4", **changes: bench_train(student, **{**values, **changes})


@pytest.fixture
def trainer(distilling: Callable[..., Any], store: FeatureStore) -> Callable[..., Trainer]:
    return lambda **changes: Trainer(distilling(**changes), store, Progress())


def test_figures_fit_together(benching: Callable[..., TrainBench]) -> None:
    found = benching(frames=9)
    assert [way.name for way in found.ways] == ["none", "multiscale"]
    for way in found.ways:
        assert way.epoch_seconds == pytest.approx(4 * way.median_ms / 1e3)
        assert way.fps == pytest.approx(2e3 / way.median_ms)
        assert way.steps == 2
    (ratio,) = found.ratios
    assert ratio.low <= ratio.value <= ratio.high
    assert (ratio.way, ratio.over, ratio.met) == ("multiscale", "none", ratio.value <= 1.1)
    taught, control = found.stages["multiscale"], found.stages["none"]
    assert {part for part, ms in taught.items() if ms == 0} <= {"rest of the feed", "rest of the step"}
    assert control["gather maps"] == control["affine: maps"] == 0
    assert control["distance to teachers"] < taught["distance to teachers"]


def test_the_watch_sees_real_steps_and_leaves_nothing_behind(trainer: Callable[..., Trainer]) -> None:
    originals = augment.flip_views, augment.resample, torch.Tensor.backward, trainer_module.supervise
    watched, plain = trainer(), trainer()
    watching.stages({"": (watched, watched.batches(0), 3)}, repeats=2)
    batches = plain.batches(0)
    for _ in range(3):
        plain.step(next(batches), 3)
    for one, other in zip(watched.student.state_dict().values(), plain.student.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert originals == (augment.flip_views, augment.resample, torch.Tensor.backward, trainer_module.supervise)
    assert "features" not in vars(watched.student)


def test_a_part_does_not_count_what_is_inside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 3.5])  # the outer part begins, the inner one begins and ends, the outer one ends
    monkeypatch.setattr(watching.time, "perf_counter", lambda: next(clock))
    watch = watching.Stopwatch(torch.device("cpu"))
    inner = watch.around(lambda number: number + 1, lambda number: f"inner {number}")
    with watch.part("outer"):
        assert inner(1) == 2
    assert watch.taken == {"outer": 1500.0, "inner 1": 2000.0}


def test_teachers_in_the_loop_give_what_the_store_holds(
    trainer: Callable[..., Trainer], store: FeatureStore, tiny_teacher: Path
) -> None:
    student = trainer()
    online = Online([load_teacher(TEACHER, str(tiny_teacher))], student)
    frames = torch.from_numpy(store.read(schema.IMAGE, np.arange(3))).float() / 255
    targets = online(frames)
    assert set(targets.maps) == set(student.objective.keys)
    for (name, scale), maps in targets.maps.items():
        held = torch.from_numpy(store.read(schema.embedding_key(name, scale), np.array([[row, 0] for row in range(3)])))
        torch.testing.assert_close(maps, held.float(), rtol=2e-3, atol=2e-3)


def test_spectra_are_made_in_the_loop_for_an_objective_that_reads_those(
    trainer: Callable[..., Trainer], tiny_teacher: Path
) -> None:
    teacher = load_teacher(TEACHER, str(tiny_teacher))
    frames = torch.rand(2, 3, 64, 64)
    maps, spectra = (Online([teacher], trainer(objective=name))(frames) for name in ("multiscale", "paper"))
    assert spectra.spectra
    for key in set(spectra.spectra) & set(maps.maps):
        torch.testing.assert_close(spectra.spectra[key], spectrum(maps.maps[key]))


def test_teachers_run_once_for_each_step_and_read_no_cached_maps(
    benching: Callable[..., TrainBench], store: FeatureStore, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    teacher = load_teacher(TEACHER, str(tiny_teacher))
    teacher.register_forward_hook(lambda module, inputs, maps: seen.append(len(inputs[0])))
    monkeypatch.setattr(bench, "load_teachers", lambda *_: [teacher])
    found = benching(cache=str(store.location), size=None, teachers=[TEACHER], batch=4)
    assert [ratio.over for ratio in found.ratios] == ["none", "multiscale"]
    assert found.ratios[1].bar == "at least 10"
    assert seen == [4] * (1 + 1 + 2)  # the first call, one untimed, two timed
    assert (found.size, found.teachers) == (64, [TEACHER])


def test_a_drawn_store_holds_the_named_teachers_shapes(tmp_path: Path) -> None:
    store = drawn_training(tmp_path / "drawn.zarr", stand_ins(2), 5, 2, 64, "bfloat16", Progress())
    store.require_complete()
    assert store.verify() == []
    assert (store.samples.split.count("train"), len(store), store.manifest.precision) == (5, 7, "bfloat16")
    assert store.read(schema.embedding_key("drawn:1", "s8")).shape == (7, 4, 64, 8, 8)
    assert set(np.unique(store.read(schema.MASK))) <= {0, 1}


# Compiling


def latency(*turns: float) -> Latency:
    return Latency(float(np.median(turns)), max(turns), min(turns), len(turns), turns)


def test_compiling_pays_once_its_seconds_are_saved() -> None:
    found = compiling_of("fast", latency(50, 50), latency(100, 100), first=4.05, each=10)
    assert (found.seconds, found.saved_ms, found.share) == pytest.approx((4.0, 5.0, 0.5))
    assert found.pays_from == 800
    assert compiling_of("slow", latency(120, 120), latency(100, 100), first=4.0, each=10).pays_from is None


def test_ratios_are_of_turns_side_by_side() -> None:
    taken = {"none": latency(10, 100), "taught": latency(11, 130)}
    found = ratio_of("taught", "none", taken, 1.1, None)
    assert (found.low, found.value, found.high) == pytest.approx((1.1, 1.2, 1.3))
    assert (found.bar, found.met) == ("at most 1.10", False)
    assert ratio_of("taught", "none", taken, None, 1.0).met
    assert way_of("taught", taken["taught"], 1.0, 10, batch=16, frames=5800).epoch_seconds == pytest.approx(362 * 7.05e-3)


def test_only_the_student_is_compiled_and_what_fails_is_left_out(
    benching: Callable[..., TrainBench], monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[str] = []

    def compile_(call: Callable[..., Any], *, mode: str, **_: Any) -> Callable[..., Any]:
        def fail(*args: Any) -> Any:
            raise RuntimeError("no compiler here")

        modes.append(mode)
        return call if mode == "default" else fail

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(bench, "MODES", {"cpu": {"compiled": "default", "graphs": "reduce-overhead"}})
    heard = Heard()
    found = benching(compile=True, progress=heard)
    assert modes == ["default", "reduce-overhead"]
    assert [way.name for way in found.ways] == ["none", "multiscale", "multiscale, compiled"]
    assert [verdict.way for verdict in found.compiling] == ["multiscale, compiled"]
    assert "multiscale, graphs failed: no compiler here" in heard.lines


# Refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"random": True}, "no teacher is named"),
        ({"objective": "none", "teachers": ["dinov2:small"]}, "reads no teacher"),
        ({"size": 50}, "multiple of 32"),
        ({"objective": "multiscael"}, "did you mean"),
        ({"teachers": ["clip"], "random": True}, "no random weights"),
    ],
)
def test_what_cannot_be_measured_is_refused(benching: Callable[..., TrainBench], changes: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        benching(**changes)


def test_a_store_must_fit(benching: Callable[..., TrainBench], store: FeatureStore) -> None:
    with pytest.raises(UsageError, match="another frame side"):
        benching(cache=str(store.location), size=128)
    with pytest.raises(UsageError, match="smaller than a batch"):
        benching(cache=str(store.location), batch=200)
