"""Behaviour of the feature store under kills and under a second writer."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from polyp_difom.cache import mending, skeleton
from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.store import FeatureStore

N = 10
IMAGE = "frames/image"
LEDGER = {"teacher_seconds": 2.0, "decode_seconds": 0.5, "attempts": 1.0}
MAPS = "teachers/toy/s8/embedding"


def test_a_shard_killed_before_its_done_mark_is_pending_and_rewritten_to_the_same_bytes(
    toy: Any, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = toy.create(tmp_path / "killed.zarr")
    toy.fill(killed, [0, 2])
    put = FeatureStore._put

    def kill_before_done(self: FeatureStore, key: str, rows: int, values: np.ndarray) -> None:
        if key == "done":
            raise KeyboardInterrupt
        put(self, key, rows, values)

    monkeypatch.setattr(FeatureStore, "_put", kill_before_done)
    with pytest.raises(KeyboardInterrupt):
        toy.fill(killed, [1])
    monkeypatch.undo()
    resumed = toy.create(tmp_path / "killed.zarr")
    assert toy.shard_file(resumed, MAPS, 1).exists()
    assert resumed.pending() == [1]
    with pytest.raises(CacheError, match="2 of 3 shards"):
        resumed.require_complete()
    toy.fill(resumed)
    ours, theirs = toy.files(tmp_path / "killed.zarr"), toy.files(tmp_path / "toy.zarr")
    assert {k: v for k, v in ours.items() if "ledger" not in k} == {k: v for k, v in theirs.items() if "ledger" not in k}
    resumed.require_complete()


def test_a_truncated_shard_can_be_written_again(toy: Any, store: FeatureStore) -> None:
    path = toy.shard_file(store, MAPS, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    with store.writing():
        store.mark_pending(1)
    assert store.pending() == [1]
    toy.fill(store)
    assert path.read_bytes() == whole
    np.testing.assert_array_equal(store.read(MAPS), toy.payload(range(N))[MAPS])


def test_a_rewrite_of_a_done_shard_that_is_killed_leaves_it_pending(
    toy: Any, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FeatureStore, "_put", die)
    with store.writing(), pytest.raises(KeyboardInterrupt):
        store.write_shard(1, toy.payload(store.shards[1]), LEDGER)
    assert store.pending() == [1]


def test_a_rewritten_shard_is_read_anew_by_the_store_that_wrote_it(toy: Any, store: FeatureStore) -> None:
    before = store.read(IMAGE)
    arrays = toy.payload(store.shards[1])
    arrays[IMAGE] = 255 - arrays[IMAGE]
    with store.writing():
        store.write_shard(1, arrays, LEDGER)
    np.testing.assert_array_equal(store.read(IMAGE)[4:8], 255 - before[4:8])


def test_files_that_a_killed_write_left_are_removed_by_the_next_writer(toy: Any, store: FeatureStore) -> None:
    stray = toy.shard_file(store, MAPS, 0).with_name("0.0123.partial")
    stray.write_bytes(b"half")
    with store.writing():
        assert not stray.exists()


def test_a_killed_creation_leaves_no_store_and_can_be_repeated(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die_halfway(store_path: Path) -> None:
        monkeypatch.setattr(skeleton, "_create_sharded", lambda *_: os._exit(9))
        toy.create(store_path)

    child = multiprocessing.get_context("fork").Process(target=die_halfway, args=(tmp_path / "toy.zarr",))
    child.start()
    child.join(20)
    assert child.exitcode == 9
    assert [p.name.startswith(".toy.zarr.partial-") for p in tmp_path.iterdir()] == [True]
    toy.create(tmp_path / "toy.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["toy.zarr"]


def test_a_killed_creation_at_a_url_can_be_repeated(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory://{tmp_path.name}/half.zarr"

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(skeleton, "_create_sharded", die)
        with pytest.raises(KeyboardInterrupt):
            toy.create(url)
    with pytest.raises(CacheError, match="manifest is damaged"):
        FeatureStore.open(url)
    assert toy.create(url).pending() == [0, 1, 2]


def test_constants_without_their_digest_count_as_absent(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.writing(), monkeypatch.context() as patch:
        patch.setattr(zarr.Group, "update_attributes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.write_constants("teachers/toy/basis", {"mean": np.zeros(2)}, {})
    assert store.read_constants("teachers/toy/basis") is None


def _hold(path: str, entered: multiprocessing.synchronize.Event, with_child: bool) -> None:
    with FeatureStore.open(path, writable=True).writing():
        if with_child and os.fork() == 0:
            time.sleep(3)
            os._exit(0)
        entered.set()
        time.sleep(30)


@pytest.mark.parametrize("with_child", [False, True])
def test_a_second_writer_is_refused_until_the_first_is_killed(store: FeatureStore, with_child: bool) -> None:
    context = multiprocessing.get_context("fork")
    entered = context.Event()
    first = context.Process(target=_hold, args=(store.location.text, entered, with_child))
    first.start()
    assert entered.wait(20)
    with pytest.raises(CacheError, match=f"process {first.pid} on "), store.writing():
        pass
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    os.waitpid(first.pid, 0)  # Not join: that would wait for the grandchild too.
    with store.writing():
        pass


def test_a_second_writer_in_the_same_process_is_refused(toy: Any, store: FeatureStore) -> None:
    with store.writing(), pytest.raises(CacheError, match="this process"), toy.create(store.location.text).writing():
        pass
    with store.writing():
        pass


def test_a_child_forked_by_the_writer_may_not_write(toy: Any, store: FeatureStore) -> None:
    def try_to_write() -> None:
        try:
            store.write_shard(0, toy.payload(store.shards[0]), LEDGER)
        except RuntimeError:
            os._exit(7)

    with store.writing():
        child = multiprocessing.get_context("fork").Process(target=try_to_write)
        child.start()
        child.join(20)
    assert child.exitcode == 7


def test_zarrs_settings_are_left_alone_since_other_threads_write_under_them_too(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zarr.config, "set", lambda *_, **__: pytest.fail("set for the whole process"))
    store = toy.fill(toy.create(tmp_path / "quiet.zarr"))
    assert store.verify() == []
    with store.writing():
        mending.rewrite(
            store, MAPS, 1, store.read(MAPS, np.array(store.shards[1])).reshape(-1, *store.manifest.arrays[MAPS].chunk_shape)
        )
    assert store.verify() == []
