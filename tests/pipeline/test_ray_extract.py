"""Stage one on a local Ray cluster: the bytes of a plain run, whichever worker is killed; and what errors say."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from polyp_difom.cache.errors import DataError, RunError, UsageError
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.plan import ExtractConfig

pytest.importorskip("ray")
from polyp_difom.pipeline.engines import ray_cluster
from polyp_difom.pipeline.engines.ray_cluster import answer, connected
from polyp_difom.pipeline.engines.ray_extract import Crew, extract_on_ray, plan_crew

Extracting = Callable[..., ExtractConfig]


@pytest.fixture(scope="module")
def cluster() -> Iterator[ModuleType]:
    with connected(None, cpus=4) as ray:
        yield ray


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a store but the lock and the ledger's seconds."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != ".lock" and not name.startswith("ledger/values/c")}


def kill_one_in_the_middle_of_a_shard(store: Path, killed: list[int]) -> None:
    """Stops the owner of a claim, and kills it if the claim still stands then."""
    deadline = time.monotonic() + 100
    while not killed and time.monotonic() < deadline:
        for claim in store.glob(".claims/*[0-9]"):
            try:
                process = int(claim.read_text().split()[1])
                os.kill(process, signal.SIGSTOP)
            except (FileNotFoundError, ProcessLookupError):
                continue
            if claim.exists():
                os.kill(process, signal.SIGKILL)
                killed.append(process)
                return
            os.kill(process, signal.SIGCONT)
        time.sleep(0.001)


def test_a_worker_killed_in_the_middle_of_a_shard_costs_nothing_but_that_shard(
    cluster: ModuleType, frames: Path, extracting: Extracting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "MOST_SAMPLES_PER_SHARD", 2)
    extract(extracting(frames, tmp_path / "plain.zarr"))
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_in_the_middle_of_a_shard, args=(tmp_path / "s.zarr", killed))
    killer.start()
    store = extract_on_ray(extracting(frames, tmp_path / "s.zarr"), workers=2)
    killer.join()
    assert len(killed) == 1
    assert store.is_complete
    assert len(store.shards) == 11
    assert files(tmp_path / "s.zarr") == files(tmp_path / "plain.zarr")


def test_a_workers_error_arrives_as_itself(cluster: ModuleType) -> None:
    def refuse() -> None:
        raise DataError("no image", where=Path("a.png"), got="text", wanted="a picture", remedy="remove it")

    with pytest.raises(DataError) as caught:
        answer(cluster, cluster.remote(refuse).remote(), "shard 2")
    assert not isinstance(caught.value, cluster.exceptions.RayTaskError)
    assert caught.value.message.splitlines() == [
        "no image", "  where:  a.png", "  got:    text", "  wanted: a picture", "  next:   remove it",
    ]  # fmt: skip


def test_any_other_error_of_a_worker_and_its_death_name_the_shard(cluster: ModuleType) -> None:
    def fail() -> None:
        raise KeyError("lost")

    def die() -> None:
        os._exit(1)

    with pytest.raises(RunError, match=r"(?s)failed at shard 3.*KeyError: 'lost'"):
        answer(cluster, cluster.remote(fail).remote(), "shard 3")
    with pytest.raises(RunError, match="could finish shard 4"):
        answer(cluster, cluster.remote(die).options(max_retries=0).remote(), "shard 4")


def test_an_address_that_does_not_answer_is_said_soon(cluster: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_cluster, "ANSWER_SECONDS", 2.0)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(RunError, match=f"(?s){address}.*refused"), connected(address):
            pass
        mute.listen()
        with pytest.raises(RunError, match=f"(?s){address}.*no answer in 2 s"), connected(address):
            pass
    with pytest.raises(UsageError, match="HOST:PORT"), connected("ray://head"):
        pass


def test_a_cluster_that_runs_answers_and_another_one_is_refused(cluster: ModuleType) -> None:
    present = cluster.get_runtime_context().gcs_address
    ray_cluster._check(present)
    with connected(present) as same:
        assert same.is_initialized()
    with pytest.raises(UsageError, match="another Ray cluster"), connected("127.0.0.1:1"):
        pass
    assert cluster.is_initialized()


def machine(cpus: float, gpus: float = 0) -> dict[str, Any]:
    return {"Alive": True, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {})}}


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "gpus", "crew"),
    [
        ([machine(16, 4), machine(16, 4)], "auto", None, None, Crew(8, 1, 1.0)),
        ([machine(16, 2)], "auto", None, 0.5, Crew(4, 1, 0.5)),
        ([machine(16, 2)], "cpu", None, None, Crew(1, 16, 0.0)),
        ([machine(16), machine(8)], "auto", None, None, Crew(2, 8, 0.0)),
        ([machine(16), machine(8)], "auto", 4, None, Crew(4, 4, 0.0)),
    ],
)
def test_workers_fill_the_gpus_or_else_the_machines(
    nodes: list[dict[str, Any]], device: str, workers: int | None, gpus: float | None, crew: Crew
) -> None:
    assert plan_crew(nodes, device, workers, gpus) == crew


@pytest.mark.parametrize(("workers", "gpus"), [(3, 1.0), (99, 0.0), (None, 1.5), (None, 4.0)])
def test_workers_that_the_cluster_does_not_hold_are_refused(workers: int | None, gpus: float) -> None:
    with pytest.raises(UsageError, match="gpus-per-worker"):
        plan_crew([machine(16, 2)], "auto", workers, gpus)
