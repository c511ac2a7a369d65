"""What is measured before a sweep: students' figures, and how many trials are fastest side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from multiprocessing import Pipe, get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from polyp_difom.cache.errors import RunError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.distill import DistillConfig
from polyp_difom.pipeline.memory import free_memory
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.students.protocol import build_student, parameter_count
from polyp_difom.pipeline.sweep import pace as pacing
from polyp_difom.pipeline.sweep import probe
from polyp_difom.pipeline.sweep.pace import Pace, side_by_side
from polyp_difom.pipeline.sweep.probe import choose_jobs, student_facts

CPU = torch.device("cpu")
Distilling = Callable[..., DistillConfig]
Choosing = Callable[..., tuple[int, int, str]]


@pytest.fixture
def choosing(store: FeatureStore, distilling: Distilling, monkeypatch: pytest.MonkeyPatch) -> Choosing:
    """choosing(steps a second of all by jobs, ...) -> the choice on a machine of eight cores."""

    def choose(
        rates: dict[int, float], trials: int = 8, memory: int = 1, free: int = 1000, **changes: Any
    ) -> tuple[int, int, str]:
        def timed(configs: Sequence[DistillConfig], seconds: float, arrays: object = None) -> list[Pace]:
            assert len({config.threads for config in configs}) == 1
            if len(configs) not in rates:
                raise RunError("the training's process died")
            step = len(configs) / rates[len(configs)]
            return [Pace(0.1, step, None, memory, 1, 1, ())] * len(configs)

        monkeypatch.setattr(probe, "cores", lambda: 8)
        monkeypatch.setattr(probe, "free_memory", lambda device: free)
        monkeypatch.setattr(probe, "BYTES_A_PARAMETER", 0)
        monkeypatch.setattr(probe, "side_by_side", timed)
        return choose_jobs([distilling(seed=n, **changes) for n in range(trials)], None, store, CPU, Progress())

    return choose


def test_students_are_measured_and_what_cannot_be_built_is_explained(store: FeatureStore) -> None:
    found = student_facts(["unet:4", "unet:x", "unet:4", "unet:4 with latents"], store, CPU, 1, Progress())
    assert list(found) == ["unet:4", "unet:x", "unet:4 with latents"]
    good, bad, larger = found.values()
    assert larger["parameters"] == parameter_count(build_student("unet:4", latents=True)) > good["parameters"]
    assert good["parameters"] == parameter_count(build_student("unet:4"))
    assert good["gmacs"] > 0
    assert good["latency_ms"] > 0
    assert good["error"] is None
    assert (good["device"], good["threads"]) == ("cpu", 1)
    assert bad["parameters"] is bad["gmacs"] is bad["latency_ms"] is None
    assert "unknown U-Net width 'x'" in bad["error"]


def test_a_student_too_large_for_the_device_is_told_before_it_takes_memory(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = []

    def building(*words: Any) -> Any:
        devices.append(torch.get_default_device().type)
        return build_student(*words)

    monkeypatch.setattr(probe, "build_student", building)
    monkeypatch.setattr(probe, "free_memory", lambda device: 10**6)
    facts = student_facts(["unet:4"], store, CPU, 1, Progress())["unet:4"]
    assert "too large for the device" in facts["error"]
    assert facts["parameters"] is None
    assert devices == ["meta"]


def test_one_trial_has_all_cores(choosing: Choosing) -> None:
    assert choosing({}, trials=1)[:2] == (1, 8)


@pytest.mark.parametrize(
    ("rates", "trials", "wanted"),
    [
        ({1: 1.0, 2: 1.5, 4: 2.5, 8: 4.0}, 8, (8, 1)),
        ({1: 1.0, 2: 1.5, 4: 1.55, 8: 9.0}, 8, (2, 4)),  # not 5 % faster: it looks no further
        ({1: 1.0, 2: 0.8}, 8, (1, 8)),
        ({1: 1.0, 2: 1.5, 4: 2.5, 8: 4.0}, 3, (2, 4)),  # no more than there are trials
        ({1: 1.0, 2: 1.5}, 8, (2, 4)),  # four did not run
    ],
)
def test_as_many_trials_as_are_faster(
    choosing: Choosing, rates: dict[int, float], trials: int, wanted: tuple[int, int]
) -> None:
    assert choosing(rates, trials)[:2] == wanted


def test_memory_limits_the_trials_and_the_reason_says_so(choosing: Choosing) -> None:
    jobs, threads, reason = choosing({1: 1.0, 2: 1.5, 4: 3.0}, memory=400, free=1000)
    assert (jobs, threads) == (2, 4)
    assert reason == (
        "2 side by side with 4 threads each: 1.5 steps/s against 1 of one trial at a time with 8 threads; memory would not hold 4"
    )


def test_threads_that_are_asked_for_limit_the_trials_on_the_cpu(choosing: Choosing) -> None:
    assert choosing({1: 1.0, 2: 2.0, 4: 4.0}, threads=4)[:2] == (2, 4)


def test_students_that_cannot_be_trained_do_not_stop_the_choice(choosing: Choosing) -> None:
    jobs, _, reason = choosing({}, student="unet:x")
    assert jobs == 1
    assert "could be timed" in reason


def test_real_trainings_side_by_side_are_timed_and_weighed(distilling: Distilling, finished_run: Any) -> None:
    paces = side_by_side([distilling(threads=1)] * 2, 0.05)
    assert len(paces) == 2
    for pace in paces:
        assert 0 < pace.step_seconds < 60
        assert pace.val_seconds
        assert pace.val_seconds > 0
        assert 2**20 < pace.memory < free_memory(CPU)
        size = (finished_run / "checkpoints" / "last.safetensors").stat().st_size
        assert 0 < size - pace.checkpoint_bytes < 30_000  # its header
        assert pace.resume_bytes > 2 * pace.checkpoint_bytes
        assert ("train", "frames/image") in pace.arrays


def test_what_is_wrong_with_a_training_crosses_from_its_process(distilling: Distilling) -> None:
    with pytest.raises(UsageError, match="unknown U-Net width"):
        side_by_side([distilling(threads=1), distilling(threads=1, student="unet:x")], 0.05)


def test_a_process_that_dies_without_a_word_is_an_error() -> None:
    ours, theirs = Pipe()
    theirs.close()
    with pytest.raises(RunError, match="died"):
        pacing._heard(ours)


def test_trainings_that_are_timed_end_with_the_process_that_started_them(distilling: Distilling) -> None:
    configs = [distilling(threads=1)] * 2
    starter = get_context("fork").Process(target=lambda: side_by_side(configs, 600.0))
    starter.start()
    assert starter.pid is not None
    until = time.monotonic() + 120
    while len(timed := children(starter.pid)) < 2:
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(1.0)  # until they train, or wait for one another
    starter.kill()
    starter.join()
    while left := [number for number in timed if lives(number)]:
        assert time.monotonic() < until, left
        time.sleep(0.05)


def children(parent: int) -> list[int]:
    numbers = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [number for number in numbers if fields(number)[1:2] == [str(parent)]]


def lives(number: int) -> bool:
    return fields(number)[:1] not in ([], ["Z"])


def fields(number: int) -> list[str]:
    """State, parent and more of a process; nothing of one that has ended."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
