"""Several processes fill one store: the same bytes as one, whoever is killed; and memory that does not hold a batch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from polyp_difom.cache.errors import CacheError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema, workers
from polyp_difom.pipeline.costs import break_even, cost_line
from polyp_difom.pipeline.extract import _own_device, extract
from polyp_difom.pipeline.plan import ExtractConfig
from polyp_difom.pipeline.teachers.protocol import Teacher
from polyp_difom.pipeline.workers import Part, part_of

from ..conftest import Heard

Extracting = Callable[..., ExtractConfig]

WORKERS = """
import json, os, sys, time
import torch
import transformers.models.dinov2.modeling_dinov2
from transformers import AutoModel  # here, so that no child pays for it
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.plan import ExtractConfig
torch.set_num_threads(1)
schema.MOST_SAMPLES_PER_SHARD = 2
config = ExtractConfig.model_validate_json(sys.argv[1])
children = []
for name, delay, environment in json.loads(sys.argv[2]):
    child = os.fork()
    if child == 0:
        os.environ.update(environment)
        real = FeatureStore.write_shard
        def slowed(self, number, *rest):
            os.write(1, f"{name} {os.getpid()} {number}\\n".encode())
            time.sleep(delay)
            real(self, number, *rest)
        FeatureStore.write_shard = slowed
        extract(config)
        os._exit(0)
    children.append(child)
print(*[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""
Role = tuple[str, float, dict[str, str]]
"""Name, seconds that each of its shards takes longer, environment."""


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a store but the lock and the ledger's seconds."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != ".lock" and not name.startswith("ledger/values/c")}


def start(config: ExtractConfig, roles: list[Role]) -> subprocess.Popen[str]:
    """Forks one worker a role; says "name process shard" as each shard is about to be written, and last all exit codes."""
    return subprocess.Popen(
        [sys.executable, "-c", WORKERS, config.model_dump_json(), json.dumps(roles)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def finished(workers: subprocess.Popen[str], before: list[str]) -> tuple[list[tuple[str, int]], list[str]]:
    """((worker, shard) of all that was written, exit codes)."""
    assert workers.stdout is not None
    lines = [*before, *workers.stdout.read().splitlines()]  # not `communicate`, which loses what `readline` read ahead
    workers.wait(timeout=60)
    return [(line.split()[0], int(line.split()[2])) for line in lines[:-1]], lines[-1].split()


@pytest.fixture
def whole(frames: Path, extracting: Extracting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files that one uninterrupted process makes: eleven shards."""
    monkeypatch.setattr(schema, "MOST_SAMPLES_PER_SHARD", 2)
    assert len(extract(extracting(frames, tmp_path / "whole.zarr")).shards) == 11
    return files(tmp_path / "whole.zarr")


def test_two_workers_share_the_shards_and_make_the_bytes_of_one(
    whole: dict[str, bytes], frames: Path, extracting: Extracting, tmp_path: Path
) -> None:
    workers = start(extracting(frames, tmp_path / "s.zarr"), [("a", 0.2, {}), ("b", 0.2, {})])
    written, codes = finished(workers, [])
    assert codes == ["0", "0"]
    assert sorted(shard for _, shard in written) == list(range(11))
    assert {name for name, _ in written} == {"a", "b"}
    assert files(tmp_path / "s.zarr") == whole


def test_of_three_ranks_one_is_killed_and_the_others_finish_its_part_with_the_same_bytes(
    whole: dict[str, bytes], frames: Path, extracting: Extracting, tmp_path: Path
) -> None:
    roles: list[Role] = [(str(r), 20.0 if r == 1 else 0.05, {"RANK": str(r), "WORLD_SIZE": "3"}) for r in range(3)]
    workers, heard = start(extracting(frames, tmp_path / "s.zarr"), roles), []
    assert workers.stdout is not None
    while not heard or not heard[-1].startswith("1 "):
        heard.append(workers.stdout.readline())
    _, process, shard = heard.pop().split()
    assert int(shard) % 3 == 1
    os.kill(int(process), signal.SIGKILL)  # as it is about to write a shard
    written, codes = finished(workers, heard)
    assert codes == ["0", str(-signal.SIGKILL), "0"]
    assert sorted(shard for _, shard in written) == list(range(11))
    assert files(tmp_path / "s.zarr") == whole


def test_a_part_keeps_to_its_shards_and_the_last_part_completes_the_store(
    whole: dict[str, bytes], frames: Path, extracting: Extracting, tmp_path: Path
) -> None:
    for part in range(2):
        store = extract(extracting(frames, tmp_path / "s.zarr", part_id=part, num_parts=2))
        assert store.pending() == ([1, 3, 5, 7, 9] if part == 0 else [])
    assert files(tmp_path / "s.zarr") == whole


def test_a_wrong_partition_waits_for_the_shards_that_another_worker_holds(
    whole: dict[str, bytes], frames: Path, extracting: Extracting, tmp_path: Path
) -> None:
    config = extracting(frames, tmp_path / "s.zarr", part_id=0, num_parts=1)
    first = start(config, [("first", 0.3, {})])
    assert first.stdout is not None
    first.stdout.readline()
    began = time.perf_counter()
    extract(config)
    assert time.perf_counter() - began > 0.2
    assert FeatureStore.open(config.cache).is_complete
    assert finished(first, ["first 0 0"])[1] == ["0"]
    assert files(tmp_path / "s.zarr") == whole


def test_parts_come_from_options_or_from_the_environment(frames: Path, extracting: Extracting, tmp_path: Path) -> None:
    environment = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    plain = extracting(frames, tmp_path / "s.zarr")
    assert part_of(plain, {}) == Part(0, 1)
    assert part_of(plain, environment) == Part(3, 4, local=1)
    assert part_of(plain.model_copy(update={"part_id": 1, "num_parts": 5}), environment) == Part(1, 5, helps=False)
    assert Part(1, 2).order([0, 1, 2, 3]) == [1, 3, 0, 2]
    assert Part(1, 2, helps=False).order([0, 1, 2, 3]) == [1, 3]
    for wrong in ({"part_id": 1}, {"num_parts": 2}, {"part_id": 2, "num_parts": 2}):
        with pytest.raises(UsageError):
            part_of(plain.model_copy(update=wrong), {})
    with pytest.raises(UsageError, match="no numbers"):
        part_of(plain, {"RANK": "first", "WORLD_SIZE": "4"})


@pytest.mark.parametrize(
    ("asked", "part", "taken"),
    [
        ("auto", Part(3, 4, local=3), "cuda:1"), ("cuda", Part(3, 4, local=3), "cuda:1"), ("cuda:0", Part(3, 4, local=3), "cuda:0"),
        ("cpu", Part(3, 4, local=3), "cpu"), ("cuda", Part(), "cuda"), ("auto", Part(3, 4, helps=False), "auto"),
    ],
)  # fmt: skip
def test_ranks_of_one_machine_take_a_gpu_each(asked: str, part: Part, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert _own_device(asked, part) == taken


def test_ranks_that_would_help_one_another_are_refused_at_a_url(
    frames: Path, extracting: Extracting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    url = f"memory://{tmp_path.name}/s.zarr"
    with pytest.raises(UsageError, match="cannot help one another at a URL"):
        extract(extracting(frames, Path("x")).model_copy(update={"cache": url}))


def test_a_part_at_a_url_does_not_wait_for_ever_for_part_0(
    frames: Path, extracting: Extracting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "SETUP_SECONDS", 0.0)
    config = extracting(frames, Path("x"), part_id=1, num_parts=2)
    with pytest.raises(CacheError, match="part 0, which sets the store up"):
        extract(config.model_copy(update={"cache": f"memory://{tmp_path.name}/w.zarr"}))


def test_a_batch_that_memory_does_not_hold_is_halved_said_and_gone_on_with(
    store: FeatureStore, frames: Path, extracting: Extracting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = Teacher.forward, []

    def small(self: Teacher, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if len(images) > 5:
            raise torch.OutOfMemoryError("16 images are too many")
        sizes.append(len(images))
        return real(self, images)

    monkeypatch.setattr(Teacher, "forward", small)
    heard = Heard()
    made = extract(extracting(frames, tmp_path / "s.zarr"), heard)
    assert [line for line in heard.lines if "out of memory" in line] == [
        "dinov2:small: out of memory with 8 images at once, going on with 4; only rounding differs"
    ]
    assert max(sizes) == 4
    for key in made.manifest.arrays:
        np.testing.assert_allclose(made.read(key).astype(float), store.read(key).astype(float), atol=4e-3, rtol=4e-3)


def test_all_views_of_a_batch_go_through_the_teacher_in_one_call(
    frames: Path, extracting: Extracting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = Teacher.forward, []

    def noted(self: Teacher, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes.append(len(images))
        return real(self, images)

    monkeypatch.setattr(Teacher, "forward", noted)
    extract(extracting(frames, tmp_path / "s.zarr", limit=8, views=4, batch_size=16))
    assert sizes[-2:] == [16, 16]


def test_the_break_even_counts_one_view_an_epoch(store: FeatureStore) -> None:
    assert break_even(teacher_seconds=100, write_seconds=10, views=4, epochs=40) == (1000.0, 1)
    assert break_even(teacher_seconds=100, write_seconds=50, views=4, epochs=2) == (50.0, 4)  # 150 s against 50 s a student
    assert break_even(0, 0, 4)[1] == 1
    assert "the cache is cheaper from student 1 on" in cost_line(store)
