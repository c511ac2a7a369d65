"""Sweeps: the same table however often they are killed, failures that stop nothing, a study that processes share."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from polyp_difom.cache.errors import CacheError, RunError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import distill as stage_two
from polyp_difom.pipeline import runs
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.sweep.arrays import shared_arrays
from polyp_difom.pipeline.sweep.folder import SweepConfig, SweepFolder
from polyp_difom.pipeline.sweep.local import run_local
from polyp_difom.pipeline.sweep.results import best_row, reason, rows
from polyp_difom.pipeline.sweep.run import Local, sweep
from polyp_difom.pipeline.sweep.worker import work

MakeSweep = Callable[..., tuple[SweepFolder, SweepConfig]]
GRID = "objective=none,multiscale seed=0..1"


def table(folder: SweepFolder) -> list[dict[str, str]]:
    """The results without what depends on time."""
    with folder.results.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in ("seconds", "latency_ms")} for row in csv.DictReader(file)]


def weights(folder: SweepFolder) -> dict[str, bytes]:
    return {path.parts[-3]: path.read_bytes() for path in sorted(folder.path.glob("runs/*/checkpoints/last.safetensors"))}


def forked(task: Callable[[], None]) -> int:
    """Process number of a child that does the task and leaves."""
    child = os.fork()
    if child == 0:
        try:
            task()
        finally:
            os._exit(0)
    return child


def dies_at(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this process ends at the given epoch that it logs, counted over all trials."""
    log, calls = runs.RunFolder.log, [0]

    def counted(self: runs.RunFolder, record: dict) -> None:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        log(self, record)

    monkeypatch.setattr(runs.RunFolder, "log", counted)


@pytest.mark.parametrize("epoch", [1, 4, 8])
def test_a_killed_sweep_ends_with_the_table_and_weights_of_an_uninterrupted_one(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    whole, config = make_sweep(GRID, "whole")
    work(whole, config)
    folder, config = make_sweep(GRID, "killed")

    def killed() -> None:
        dies_at(epoch, monkeypatch)
        work(folder, config)

    _, status = os.waitpid(forked(killed), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    states = [row.state for row in rows(folder)]
    assert states.count("interrupted") == 1
    assert states.count("finished") == (epoch - 1) // 2
    work(folder, config)
    assert table(folder) == table(whole)
    assert weights(folder) == weights(whole)
    assert len(weights(folder)) == 4


def test_finished_trials_are_not_trained_again(make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, config = make_sweep(GRID)
    work(folder, config)
    monkeypatch.setattr(stage_two.Trainer, "fit", lambda *_: pytest.fail("trained again"))
    work(folder, config)


def test_a_trial_that_fails_is_listed_and_stops_nothing(make_sweep: MakeSweep) -> None:
    folder, config = make_sweep("learning_rate=1e30,1e-3 seed=0")
    work(folder, config)
    bad, good = rows(folder)
    assert bad.state == "failed"
    assert bad.error is not None
    assert "diverged" in bad.error
    assert good.state == "finished"
    assert best_row([bad, good]) == good
    assert "diverged" in table(folder)[0]["error"]


def test_failed_trials_go_on_when_that_is_asked_for(make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, config = make_sweep("seed=0..1")
    with monkeypatch.context() as patched:
        patched.setattr(stage_two.Trainer, "validate", lambda self: 1 / 0)
        work(folder, config)
    assert [row.state for row in rows(folder)] == ["failed", "failed"]
    assert "ZeroDivisionError" in reason(rows(folder)[0])
    work(folder, config)
    assert [row.state for row in rows(folder)] == ["failed", "failed"]
    sweep(None, folder.path, resume=True, retry_failed=True)
    assert [row.state for row in rows(folder)] == ["finished", "finished"]
    with pytest.raises(UsageError, match="--resume"):
        sweep(None, folder.path, retry_failed=True)


def test_running_out_of_memory_fails_that_trial_alone(make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    step = stage_two.Trainer.fit

    def hungry(self: stage_two.Trainer, *args: object) -> None:
        if self.config.seed == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(self, *args)

    monkeypatch.setattr(stage_two.Trainer, "fit", hungry)
    folder, config = make_sweep("seed=0..1")
    work(folder, config)
    assert [row.state for row in rows(folder)] == ["failed", "finished"]
    assert "4 frames at once" in (rows(folder)[0].error or "")


def test_a_store_that_changes_while_the_sweep_runs_stops_it_and_it_can_go_on(
    make_sweep: MakeSweep, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(str(store.location), tmp_path / "copy.zarr"))
    folder, config = make_sweep("seed=0..1", cache=str(copy))
    fit = stage_two.Trainer.fit

    def pruned_meanwhile(self: stage_two.Trainer, *args: object) -> None:
        fit(self, *args)
        (copy / "done/c/0").rename(tmp_path / "aside")

    monkeypatch.setattr(stage_two.Trainer, "fit", pruned_meanwhile)
    with pytest.raises(CacheError, match="incomplete"):
        work(folder, config)
    assert [row.state for row in rows(folder)] == ["finished", "interrupted"]
    monkeypatch.setattr(stage_two.Trainer, "fit", fit)
    (tmp_path / "aside").rename(copy / "done/c/0")
    work(folder, config)
    assert [row.state for row in rows(folder)] == ["finished", "finished"]


def test_a_full_disk_stops_the_sweep_and_is_no_trials_failure(make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, config = make_sweep("seed=0..1")

    def full(*_: object) -> None:
        raise RunError("cannot write") from OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(runs, "write_bytes", full)
        with pytest.raises(RunError, match="cannot write"):
            work(folder, config)
    assert [row.state for row in rows(folder)] == ["interrupted", "waiting"]
    work(folder, config)
    assert [row.state for row in rows(folder)] == ["finished", "finished"]


def test_a_trial_whose_process_dies_again_and_again_is_given_up(make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, config = make_sweep("seed=0..1")

    def killed() -> None:
        dies_at(1, monkeypatch)
        work(folder, config)

    for _ in range(3):
        os.waitpid(forked(killed), 0)
    work(folder, config)
    first, second = rows(folder)
    assert first.state == "failed"
    assert "died 3 times" in (first.error or "")
    assert second.state == "finished"


def test_two_processes_share_one_study_and_no_trial_runs_twice(make_sweep: MakeSweep) -> None:
    pytest.importorskip("optuna")
    folder, config = make_sweep("learning_rate=1e-4..1e-2 epochs=1", sampler="tpe", trials=6)
    children = [forked(lambda: work(folder, config)) for _ in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    found = rows(folder)
    assert [row.number for row in found] == list(range(6))
    assert {row.state for row in found} <= {"finished", "pruned"}
    assert len({row.settings["learning_rate"] for row in found}) == 6
    assert all(record.starts == (0,) for record in folder.records())
    assert len({record.host for record in folder.records()}) == 2


def test_a_killed_guided_sweep_goes_on_with_the_same_draws(make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    asked = {"sampler": "tpe", "trials": 3}
    whole, config = make_sweep("learning_rate=1e-4..1e-2", "whole", **asked)
    work(whole, config)
    folder, config = make_sweep("learning_rate=1e-4..1e-2", "killed", **asked)

    def killed() -> None:
        dies_at(4, monkeypatch)
        work(folder, config)

    os.waitpid(forked(killed), 0)
    work(folder, config)
    assert table(folder) == table(whole)
    assert weights(folder) == weights(whole)


def test_settings_drawn_twice_are_trained_once(make_sweep: MakeSweep) -> None:
    pytest.importorskip("optuna")
    folder, config = make_sweep("seed=0..1", sampler="tpe", trials=5)
    work(folder, config)
    found = rows(folder)
    assert [row.state for row in found] == ["finished"] * 5
    assert len(list(folder.path.glob("runs/*"))) == len({row.settings["seed"] for row in found})
    twin = next(row for row in found if row.same_as is not None)
    assert twin.val_dice == found[twin.same_as or 0].val_dice


def test_two_goals_give_a_front(make_sweep: MakeSweep) -> None:
    optuna = pytest.importorskip("optuna")
    folder, config = make_sweep("seed=0..3 epochs=1", sampler="tpe", trials=2, optimise=("dice", "latency"))
    folder.students.write_text('{"unet:4": {"latency_ms": 2.5}}')
    work(folder, config)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder.journal)))
    told = optuna.load_study(study_name="sweep", storage=storage).trials
    assert [trial.values[1] for trial in told] == [2.5, 2.5]


@pytest.mark.parametrize("threads", [1, 2], ids=["forked", "from a server"])
def test_workers_share_one_copy_of_the_store_and_a_killed_one_is_replaced(
    make_sweep: MakeSweep, store: FeatureStore, threads: int
) -> None:
    folder, config = make_sweep(GRID, "side-by-side", jobs=2, threads=threads)
    arrays = shared_arrays(store, config, torch.device("cpu"), Progress())
    assert arrays is not None
    assert all(array.is_shared() for array in arrays.values())
    assert not any("/s32/" in key and "spectrum" in key for _, key in arrays)
    victims: list[int] = []

    def look() -> None:
        if not victims:
            working = [record for record in folder.records() if record.state == "running"]
            victims.extend(int(record.host.split()[1]) for record in working[:1])
            for victim in victims:
                os.kill(victim, signal.SIGKILL)

    run_local(folder, config, arrays, Progress(), look)
    assert [row.state for row in rows(folder)] == ["finished"] * 4
    whole, config = make_sweep(GRID, "whole", threads=threads)
    work(whole, config)
    assert table(folder) == table(whole)
    assert weights(folder) == weights(whole)


def test_an_error_of_a_worker_is_the_sweeps_error(make_sweep: MakeSweep, tmp_path: Path) -> None:
    folder, config = make_sweep(GRID)
    with pytest.raises(CacheError, match="nowhere"):
        run_local(folder, config.model_copy(update={"cache": str(tmp_path / "nowhere.zarr")}), None, Progress())


def test_a_sweep_is_not_begun_over_another_one(make_sweep: MakeSweep, store: FeatureStore) -> None:
    folder, config = make_sweep("seed=0")
    with pytest.raises(RunError, match="--resume"):
        sweep(config, folder.path)
    changed = SweepConfig(**{**config.model_dump(), "factors": {**config.factors, "seed": (0, 5)}})
    with pytest.raises(UsageError, match="other settings"):
        sweep(changed, folder.path, resume=True)
    stranger = folder.path / "notes.txt"
    (folder.path / "sweep.yaml").unlink()
    stranger.write_text("mine")
    with pytest.raises(RunError, match="no sweep wrote"):
        sweep(config, folder.path, overwrite=True)
    assert stranger.exists()


def test_an_old_sweep_stays_where_the_one_that_is_to_replace_it_cannot_begin(make_sweep: MakeSweep, tmp_path: Path) -> None:
    folder, config = make_sweep("seed=0")
    mistyped = config.model_copy(update={"cache": str(tmp_path / "mistyped.zarr")})
    with pytest.raises(CacheError, match="mistyped"):
        sweep(mistyped, folder.path, overwrite=True)
    assert folder.exists


def test_a_sweep_is_not_begun_among_other_files(make_sweep: MakeSweep, tmp_path: Path) -> None:
    _, config = make_sweep("seed=0")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").touch()
    with pytest.raises(RunError, match="exists already"):
        sweep(config, mine, join=True)
    with pytest.raises(RunError, match="exists already"):
        sweep(config, mine / "notes.txt")
    with pytest.raises(RunError, match="cannot be made"):
        sweep(config, mine / "notes.txt" / "under")


def test_two_that_begin_in_one_folder_at_once_do_not_mix(make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, config = make_sweep("seed=0")
    begun = (folder.path / "sweep.yaml").read_text()
    (folder.path / "sweep.yaml").unlink()
    clear = SweepFolder.clear

    def overtaken(self: SweepFolder, overwrite: bool) -> None:
        clear(self, overwrite)
        (folder.path / "sweep.yaml").write_text(begun)

    monkeypatch.setattr(SweepFolder, "clear", overtaken)
    with pytest.raises(RunError, match="exists already"):
        sweep(config, folder.path)


def test_factors_in_another_order_are_the_same_trials(make_sweep: MakeSweep) -> None:
    folder, config = make_sweep(GRID)
    turned = config.model_copy(update={"factors": dict(reversed(config.factors.items()))})
    assert turned.planned() != config.planned() == folder.agreed(turned).planned()


def test_a_sweep_goes_on_over_its_own_store_with_its_own_threads(make_sweep: MakeSweep) -> None:
    folder, config = make_sweep("seed=0", threads=2)
    assert folder.agreed(config.model_copy(update={"threads": None})).threads == 2
    with pytest.raises(UsageError, match="threads = 1 now"):
        folder.agreed(config.model_copy(update={"threads": 1}))
    with pytest.raises(CacheError, match="not the store"):
        folder.agreed(config.model_copy(update={"reads": {**(config.reads or {}), "frames": "another"}}))


def test_trials_that_were_stopped_again_and_again_go_on_when_resumed(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config = make_sweep("seed=0")

    def killed() -> None:
        dies_at(1, monkeypatch)
        work(folder, config)

    for _ in range(3):
        os.waitpid(forked(killed), 0)
    folder.students.write_text('{"unet:4": {}}')
    sweep(None, folder.path, resume=True)
    assert [row.state for row in rows(folder)] == ["finished"]


def test_students_that_an_older_version_did_not_measure_are_measured_when_resumed(make_sweep: MakeSweep) -> None:
    folder, config = make_sweep("objective=none,paper seed=0 epochs=1")
    asked = list[tuple[str, ...]]()

    class Measures(Local):
        def facts(self, names: tuple[str, ...], *_: Any) -> dict[str, dict[str, Any]]:
            asked.append(names)
            return {name: {"latency_ms": 3.0} for name in names}

        def run(self, *_: Any) -> None:
            pass

    folder.students.write_text('{"unet:4": {"latency_ms": 2.5}}')
    for _ in range(2):
        sweep(config, folder.path, resume=True, engine=Measures())
    assert asked == [("unet:4 with latents",)]
    assert {name: held["latency_ms"] for name, held in folder.facts().items()} == {"unet:4": 2.5, "unet:4 with latents": 3.0}
