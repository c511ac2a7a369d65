"""A sweep on a local Ray cluster: the table and weights of a plain one, whichever worker is killed; and what errors say."""

from __future__ import annotations

import csv
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from polyp_difom.cache.errors import CacheError, RunError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.shelf import Shelf
from polyp_difom.pipeline.sweep.folder import SweepConfig, SweepFolder
from polyp_difom.pipeline.sweep.results import rows
from polyp_difom.pipeline.sweep.run import sweep
from polyp_difom.pipeline.sweep.worker import work

pytest.importorskip("ray")
from polyp_difom.pipeline.engines import ray_sweep
from polyp_difom.pipeline.engines.ray_cluster import connected
from polyp_difom.pipeline.engines.ray_extract import Crew
from polyp_difom.pipeline.engines.ray_sweep import OnRay, plan_trials, run_trials, sweep_on_ray

MakeSweep = Callable[..., tuple[SweepFolder, SweepConfig]]
GRID = "objective=none,multiscale seed=0..1 epochs=8"


@pytest.fixture(scope="module")
def cluster() -> Iterator[ModuleType]:
    with connected(None, cpus=2) as ray:
        yield ray


@pytest.fixture
def engine() -> Iterator[OnRay]:
    with ExitStack() as stack:
        yield OnRay(stack, None, None)


def outcome(folder: SweepFolder) -> tuple[list[dict[str, str]], dict[str, bytes]]:
    """The results without what is measured of time or students, and all weights."""
    measured = {"seconds", "latency_ms", "parameters", "gmacs"}
    with folder.results.open(newline="") as file:
        table = [{name: row[name] for name in row.keys() - measured} for row in csv.DictReader(file)]
    weights = folder.path.glob("runs/*/checkpoints/*.safetensors")
    return table, {str(path.relative_to(folder.path)): path.read_bytes() for path in weights}


def kill_one_in_the_middle_of_an_epoch(folder: SweepFolder, killed: list[int]) -> None:
    """Stops the process of a trial that has some epochs but not all, and kills it if that is still so then."""
    deadline = time.monotonic() + 100
    while not killed and time.monotonic() < deadline:
        for record in folder.records():
            if record.state != "running" or not folder.run(record.trial).resume_state.is_file():
                continue
            process = int(record.host.split()[1])
            os.kill(process, signal.SIGSTOP)
            epochs = len(folder.run(record.trial).history())
            if 1 <= epochs < 7:
                killed.append(record.number)
            os.kill(process, signal.SIGKILL if killed else signal.SIGCONT)
            break
        time.sleep(0.005)


def test_a_worker_killed_in_the_middle_of_an_epoch_changes_neither_table_nor_weights(
    cluster: ModuleType, engine: OnRay, make_sweep: MakeSweep, store: FeatureStore, tmp_path: Path
) -> None:
    whole, config = make_sweep(GRID, "whole")
    work(whole, config)
    killed: list[int] = []
    folder = SweepFolder(tmp_path / "ray")
    killer = threading.Thread(target=kill_one_in_the_middle_of_an_epoch, args=(folder, killed))
    killer.start()
    sweep(config.model_copy(update={"jobs": 2}), folder.path, engine=engine)
    killer.join()
    assert engine.crew == Crew(2, 1, 0.0)
    starts = {record.number: record.starts for record in folder.records()}
    assert [number for number, begun in starts.items() if len(begun) > 1] == killed
    assert starts[killed[0]][1] >= 1
    assert len({record.host for record in folder.records()}) >= 2
    assert outcome(folder) == outcome(whole)
    assert folder.facts()["unet:4"]["latency_ms"] > 0
    shelf = Shelf(store, torch.device("cpu"), Progress())
    assert len(engine.held) > 4
    for (split, key), reference in engine.held.items():
        read = shelf.take(split, [key])[key]
        assert isinstance(read, torch.Tensor)
        assert np.array_equal(cluster.get(reference), read.numpy())


def test_a_sweep_begun_without_ray_is_resumed_on_it_and_trains_only_what_is_left(
    cluster: ModuleType, make_sweep: MakeSweep, tmp_path: Path
) -> None:
    folder, config = make_sweep("seed=0..2")
    work(folder, config.model_copy(update={"factors": {**config.factors, "seed": (0,)}}))
    done = folder.record(0)
    sweep_on_ray(None, folder.path, resume=True)
    assert [row.state for row in rows(folder)] == ["finished"] * 3
    assert folder.record(0) == done


def test_a_guided_search_shares_its_study_between_workers(cluster: ModuleType, make_sweep: MakeSweep, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    folder, config = make_sweep("learning_rate=1e-4..1e-2 epochs=1", sampler="tpe", trials=4, jobs=2)
    sweep_on_ray(config, folder.path, resume=True)
    assert [(row.number, row.state) for row in rows(folder)] == [(number, "finished") for number in range(4)]
    assert all(record.starts == (0,) for record in folder.records())


def test_arrays_are_views_of_the_object_store(cluster: ModuleType) -> None:
    reference = cluster.put(np.arange(10**6, dtype=np.uint8))
    tensor = ray_sweep._tensors({("train", "x"): reference}, 0.0)["train", "x"]
    assert tensor.data_ptr() == cluster.get(reference).ctypes.data


def test_a_store_or_folder_that_a_machine_does_not_see_is_named(
    cluster: ModuleType, engine: OnRay, make_sweep: MakeSweep, store: FeatureStore, tmp_path: Path
) -> None:
    folder, config = make_sweep("seed=0")
    engine.ready(config, store, Progress())
    lost = config.model_copy(update={"cache": str(tmp_path / "nowhere.zarr")})
    with pytest.raises(CacheError, match=r"(?s)does not see the store.*nowhere.zarr"):
        engine.run(folder, lost, None, Progress())
    with pytest.raises(RunError, match=r"(?s)does not see the sweep's folder.*elsewhere"):
        run_trials(tmp_path / "elsewhere", "", config, {}, 0.0)
    with pytest.raises(RunError, match="does not see the sweep's folder"):
        run_trials(folder.path, "of another sweep", config, {}, 0.0)


def test_workers_that_die_before_any_trial_begins_end_the_sweep(
    cluster: ModuleType, engine: OnRay, make_sweep: MakeSweep, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        os._exit(1)

    folder, config = make_sweep("seed=0")
    engine.ready(config, store, Progress())
    monkeypatch.setattr(ray_sweep, "run_trials", dies)
    monkeypatch.setattr(ray_sweep, "MOST_DEATHS", 1)
    with pytest.raises(RunError, match=r"(?s)die again and again.*2 deaths"):
        engine.run(folder, config, None, Progress())


BIG, SMALL, GPUS = {"CPU": 16.0}, {"CPU": 4.0}, {"CPU": 16.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("nodes", "asked", "trials", "gpus", "crew"),
    [
        ([BIG], {}, 100, None, Crew(16, 1, 0.0)),
        ([BIG], {}, 4, None, Crew(4, 4, 0.0)),
        ([BIG, SMALL], {}, 3, None, Crew(3, 5, 0.0)),
        ([BIG, SMALL], {"threads": 4}, 100, None, Crew(5, 4, 0.0)),
        ([BIG, SMALL], {"jobs": 2}, 100, None, Crew(2, 8, 0.0)),
        ([SMALL], {"threads": 8}, 100, None, Crew(1, 4, 0.0)),  # begun on a larger machine
        ([GPUS, BIG], {}, 100, None, Crew(2, 8, 1.0)),
        ([GPUS, BIG], {}, 100, 0.5, Crew(4, 4, 0.5)),
        ([GPUS], {"device": "cpu"}, 100, None, Crew(16, 1, 0.0)),
    ],
)
def test_trials_fill_the_cluster(
    nodes: list[dict[str, float]], asked: dict[str, object], trials: int, gpus: float | None, crew: Crew
) -> None:
    config = SweepConfig.model_validate({"cache": "x.zarr", "factors": {}, **asked})
    assert plan_trials(nodes, config, trials, gpus) == crew


@pytest.mark.parametrize(
    ("asked", "gpus"),
    [
        ({"jobs": 17, "device": "cpu"}, None),
        ({"jobs": 9, "threads": 2, "device": "cpu"}, None),
        ({"jobs": 3}, None),
        ({"jobs": 5}, 0.5),
        ({}, 2.0),
        ({"device": "cpu"}, 0.5),
        ({"device": "cuda"}, 0.0),
    ],
)
def test_trials_that_the_cluster_does_not_hold_are_refused(asked: dict[str, object], gpus: float | None) -> None:
    config = SweepConfig.model_validate({"cache": "x.zarr", "factors": {}, **asked})
    with pytest.raises(UsageError, match="gpus-per-trial"):
        plan_trials([GPUS], config, 100, gpus)
