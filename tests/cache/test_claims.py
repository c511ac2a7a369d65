"""Workers beside one another: a living one's shard cannot be taken, a dead one's can."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from polyp_difom.cache import claims as claiming
from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.store import FeatureStore

FORK = multiprocessing.get_context("fork")


def _hold(path: str, entered: Any, shards: list[int]) -> None:
    with FeatureStore.open(path, writable=True).sharing() as claims:
        assert all(claims.take(shard) for shard in shards)
        entered.set()
        time.sleep(30)


@pytest.fixture
def holder(toy: Any, tmp_path: Path) -> Any:
    """A store whose shard 1 a living process has claimed, and that process."""
    store, entered = toy.create(tmp_path / "s.zarr"), FORK.Event()
    process = FORK.Process(target=_hold, args=(store.location.text, entered, [1]))
    process.start()
    assert entered.wait(20)
    yield store, process
    process.kill()
    process.join()


def test_a_living_workers_shard_cannot_be_taken_and_others_can(holder: Any) -> None:
    store, _ = holder
    with store.sharing() as claims:
        assert [claims.take(shard) for shard in (0, 1, 2)] == [True, False, True]


def test_a_killed_workers_claim_ends_at_once(holder: Any) -> None:
    store, process = holder
    with store.sharing() as claims:
        assert not claims.take(1)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert claims.take(1)


def test_a_stopped_worker_keeps_its_claim(holder: Any) -> None:
    store, process = holder
    os.kill(process.pid, signal.SIGSTOP)
    with store.sharing() as claims:
        assert not claims.take(1)


def test_an_exclusive_writer_and_workers_exclude_each_other(holder: Any) -> None:
    store, process = holder
    with pytest.raises(CacheError, match=f"process {process.pid} on "), store.writing():
        pass
    process.kill()
    process.join()
    with store.writing():
        child = FORK.Process(target=_hold, args=(store.location.text, FORK.Event(), [1]))
        child.start()
        child.join(20)
        assert child.exitcode == 1


def test_a_claim_from_another_host_counts_until_it_expires(toy: Any, tmp_path: Path) -> None:
    store = toy.create(tmp_path / "s.zarr")
    with store.sharing() as claims:
        file = tmp_path / "s.zarr/.claims/0"
        file.parent.mkdir()
        file.write_text("process 7 on elsewhere")
        assert not claims.take(0)
        age = time.time() - claiming.EXPIRY_SECONDS - 5
        os.utime(file, (age, age))
        assert claims.take(0)
        assert "elsewhere" not in file.read_text()


@pytest.mark.parametrize("name", ["", "process 7 on "])
def test_a_claim_that_a_kill_or_power_cut_left_without_a_name_stops_nobody(toy: Any, tmp_path: Path, name: str) -> None:
    store = toy.create(tmp_path / "s.zarr")
    with store.sharing() as claims:
        (tmp_path / "s.zarr/.claims").mkdir()
        (tmp_path / "s.zarr/.claims/0").write_text(name)
        assert claims.take(0)


def test_a_claim_is_never_seen_half_written(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = toy.create(tmp_path / "s.zarr")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, store.sharing() as claims:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            claims.take(0)
    assert not (tmp_path / "s.zarr/.claims").exists()
    with store.sharing() as claims:
        assert claims.take(0)


def test_a_held_claim_is_touched_so_that_it_does_not_expire(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claiming, "TOUCH_SECONDS", 0.05)
    with toy.create(tmp_path / "s.zarr").sharing() as claims:
        assert claims.take(0)
        file = tmp_path / "s.zarr/.claims/0"
        os.utime(file, (0, 0))
        deadline = time.time() + 10
        while file.stat().st_mtime == 0 and time.time() < deadline:
            time.sleep(0.05)
        assert file.stat().st_mtime > 0


def test_a_released_shard_is_free_again_and_the_last_worker_leaves_nothing_behind(toy: Any, tmp_path: Path) -> None:
    store = toy.create(tmp_path / "s.zarr")
    before = set(toy.files(tmp_path / "s.zarr"))
    with store.sharing() as claims:
        assert claims.take(0)
        assert not claims.take(0)
        claims.release(0)
        assert claims.take(0)
        (tmp_path / "s.zarr/.claims/2").write_text(f"process 1 on {os.uname().nodename}")  # of one that was killed
        (tmp_path / "s.zarr/done/c").mkdir()
        (tmp_path / "s.zarr/done/c/0.77.partial").write_bytes(b"half")
    assert set(toy.files(tmp_path / "s.zarr")) == before
    assert not (tmp_path / "s.zarr/.claims").exists()


def test_setting_up_is_for_one_at_a_time(toy: Any, tmp_path: Path) -> None:
    store, log = toy.create(tmp_path / "s.zarr"), tmp_path / "log"

    def work() -> None:
        with FeatureStore.open(store.location.text, writable=True).sharing() as claims, claims.alone():
            for word in ("in", "out"):
                with log.open("a") as stream:
                    stream.write(f"{word} {os.getpid()}\n")
                time.sleep(0.1)

    workers = [FORK.Process(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [word for word, _ in lines] == ["in", "out"] * 3
    assert all(lines[i][1] == lines[i + 1][1] for i in (0, 2, 4))


def test_a_store_at_a_url_is_filled_without_claims(toy: Any, tmp_path: Path) -> None:
    store = toy.create(f"memory://{tmp_path.name}/s.zarr")
    with store.sharing() as claims, claims.alone():
        assert claims.take(0)
        claims.release(0)
