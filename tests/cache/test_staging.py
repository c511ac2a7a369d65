"""A staged copy: what is read comes once, checked, shared by all processes, and stays when its source is gone."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from polyp_difom.cache import origin as origins
from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.location import Location, UnreachableError
from polyp_difom.cache.staging import staged
from polyp_difom.cache.store import FeatureStore

MAPS = "teachers/toy/s8/embedding"
IMAGE = "frames/image"


@pytest.fixture
def url(toy: Any, tmp_path: Path) -> str:
    """A complete store in memory, with a group of constants and a half-made array that the manifest does not name."""
    place = f"memory://{tmp_path.name}/toy.zarr"
    store = toy.fill(toy.create(place))
    with store.writing():
        store.write_constants("teachers/toy/basis", {"mean": np.arange(8.0)}, {"explained": 0.5})
    fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/toy.zarr/teachers/stray/s8/embedding/c/0/0", b"stray")
    return place


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the files that were downloaded whole."""
    names: list[str] = []
    real = MemoryFileSystem.get_file

    def noted(self: MemoryFileSystem, remote: str, local: str, **options: Any) -> None:
        names.append(remote.partition("toy.zarr/")[2])
        real(self, remote, local, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", noted)
    return names


def shards_in(copy: Path) -> set[str]:
    tops = ("frames", "teachers/toy/s8")
    return {str(f.relative_to(copy)) for top in tops for f in (copy / top).rglob("c/*/**/*") if f.is_file()}


def test_only_the_arrays_that_are_read_come_and_they_come_once(toy: Any, url: str, tmp_path: Path, fetched: list[str]) -> None:
    copy = staged(url, tmp_path / "stage")
    assert shards_in(copy) == set()
    assert not (copy / "teachers/stray").exists()
    for _ in range(2):
        store = FeatureStore.open(staged(url, tmp_path / "stage"))
        np.testing.assert_array_equal(store.read(MAPS), toy.payload(range(10))[MAPS])
    assert sorted(fetched) == [f"{MAPS}/c/{shard}/0/0/0/0" for shard in range(3)]
    assert shards_in(copy) == set(fetched)
    record = store.read_constants("teachers/toy/basis")
    assert record is not None
    assert record[1] == {"explained": 0.5}
    assert store.source == Location.parse(url)


def test_a_copy_serves_when_its_source_does_not_answer(
    toy: Any, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FeatureStore.open(staged(url, tmp_path / "stage")).read(MAPS)

    def gone(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    for name in ("exists", "cat_file", "get_file", "size", "info"):
        monkeypatch.setattr(MemoryFileSystem, name, gone)
    said: list[str] = []
    store = FeatureStore.open(staged(url, tmp_path / "stage", said.append))
    assert "does not answer" in said[0]
    np.testing.assert_array_equal(store.read(MAPS), toy.payload(range(10))[MAPS])
    with pytest.raises(UnreachableError, match="staging frames/image failed"):
        store.read(IMAGE)
    with pytest.raises(UnreachableError, match="opening the store failed"):
        staged("memory://elsewhere/x.zarr", tmp_path / "stage")


@pytest.mark.parametrize(("times", "arrives"), [(1, True), (2, False)])
def test_a_shard_that_arrives_damaged_is_fetched_once_more_and_then_refused(
    toy: Any, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, arrives: bool
) -> None:
    real, left = MemoryFileSystem.get_file, [times]

    def noisy(self: MemoryFileSystem, remote: str, local: str, **options: Any) -> None:
        real(self, remote, local, **options)
        if "/c/1/" in remote and left[0]:
            left[0] -= 1
            toy.flip(Path(local), 5)

    monkeypatch.setattr(MemoryFileSystem, "get_file", noisy)
    copy = staged(url, tmp_path / "stage")
    store = FeatureStore.open(copy)
    if arrives:
        np.testing.assert_array_equal(store.read(MAPS), toy.payload(range(10))[MAPS])
        return
    with pytest.raises(CacheError, match="arrived damaged, twice") as caught:
        store.read(MAPS)
    assert "cache verify memory://" in str(caught.value)
    assert not any("/c/1/" in key for key in shards_in(copy))
    assert not [f for f in (copy / ".arriving").rglob("*") if f.is_file()]


def test_another_shards_sound_chunks_are_refused(url: str, tmp_path: Path) -> None:
    store = FeatureStore.open(staged(url, tmp_path / "stage"))
    memory, (path, other) = fsspec.filesystem("memory"), (f"{url[9:]}/{MAPS}/c/{number}/0/0/0/0" for number in (0, 1))
    memory.pipe_file(f"/{path}", memory.cat_file(f"/{other}"))
    with pytest.raises(CacheError, match="not those that the store had when it was staged"):
        store.read(MAPS)


@pytest.mark.parametrize("key", ["samples/height/c/0", "teachers/toy/basis/mean/c/0", f"{MAPS}/zarr.json"])
def test_metadata_that_arrives_damaged_leaves_nothing(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    real = MemoryFileSystem.cat_ranges

    def noisy(self: MemoryFileSystem, paths: list[str], *rest: Any, **options: Any) -> list[bytes]:
        found = real(self, paths, *rest, **options)
        return [raw[:-6] + b"?" + raw[-5:] if path.endswith(key) else raw for path, raw in zip(paths, found, strict=True)]

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "cat_ranges", noisy)
        with pytest.raises(CacheError, match="metadata arrived damaged, twice"):
            staged(url, tmp_path / "stage")
    assert list((tmp_path / "stage").iterdir()) == []
    assert FeatureStore.open(staged(url, tmp_path / "stage")).is_complete


def _read_beside_others(source: str, folder: Path, log: Path, ready: Any) -> None:
    from fsspec.implementations.local import LocalFileSystem

    real = LocalFileSystem.get_file

    def noted(self: LocalFileSystem, remote: str, local: str, **options: Any) -> None:
        with log.open("a") as stream:
            stream.write(f"{remote}\n")
        real(self, remote, local, **options)

    LocalFileSystem.get_file = noted
    ready.wait(30)
    store = FeatureStore.open(staged(source, folder))
    assert store.read(IMAGE).any()
    assert store.read(MAPS).any()


def test_processes_that_start_at_once_share_one_copy_and_fetch_each_shard_once(store: FeatureStore, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ready, log = fork.Barrier(4), tmp_path / "log"
    arguments = (str(store.location), tmp_path / "stage", log, ready)
    readers = [fork.Process(target=_read_beside_others, args=arguments) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
    assert [reader.exitcode for reader in readers] == [0] * 4
    lines = log.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 6
    assert len(list((tmp_path / "stage").iterdir())) == 1


def _die_while_fetching(source: str, folder: Path) -> None:
    store = FeatureStore.open(staged(source, folder))

    def half(self: Any, key: str, file: str, arriving: Path, needed: int) -> None:
        arriving.write_bytes(Path(source, file).read_bytes()[:100])
        os._exit(9)

    origins.Origin._download = half
    store.read(MAPS)


def test_what_a_killed_staging_left_does_not_count(toy: Any, store: FeatureStore, tmp_path: Path) -> None:
    source = str(store.location)
    child = multiprocessing.get_context("fork").Process(target=_die_while_fetching, args=(source, tmp_path / "stage"))
    child.start()
    child.join(60)
    assert child.exitcode == 9
    copy = FeatureStore.open(staged(source, tmp_path / "stage"))
    assert list(copy.location.path.glob(".arriving/**/c/**/0")) != []
    np.testing.assert_array_equal(copy.read(MAPS), toy.payload(range(10))[MAPS])
    assert toy.shard_file(copy, MAPS, 0).read_bytes() == toy.shard_file(store, MAPS, 0).read_bytes()


def test_a_full_disk_says_bytes_needed_and_free(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore.open(staged(url, tmp_path / "stage"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9000, 8990, 10))
    with pytest.raises(CacheError, match="the disk is too small to stage") as caught:
        store.read(MAPS)
    assert "10 bytes free" in str(caught.value)
    assert "--stage-dir" in str(caught.value)


def test_stores_of_other_signatures_get_copies_of_their_own(toy: Any, url: str, tmp_path: Path) -> None:
    first = staged(url, tmp_path / "stage")
    fsspec.filesystem("memory").rm(url.removeprefix("memory:/"), recursive=True)
    toy.fill(toy.create(url, precision="bfloat16"))
    second = staged(url, tmp_path / "stage")
    assert first != second
    assert FeatureStore.open(second).manifest.precision == "bfloat16"


def test_a_copy_takes_no_writer_and_names_its_source(toy: Any, store: FeatureStore, tmp_path: Path) -> None:
    copy = staged(str(store.location), tmp_path / "stage")
    with pytest.raises(CacheError, match="for reading only") as caught:
        FeatureStore.open(copy, writable=True)
    assert str(store.location) in str(caught.value)
    opened = FeatureStore.open(copy)
    opened.read(MAPS)
    toy.flip(toy.shard_file(opened, MAPS, 1), 5)
    with pytest.raises(CacheError, match="delete that file, then it is fetched again"):
        FeatureStore.open(copy).read(MAPS)
    toy.shard_file(opened, MAPS, 1).unlink()
    np.testing.assert_array_equal(FeatureStore.open(copy).read(MAPS), toy.payload(range(10))[MAPS])


def test_an_incomplete_store_is_not_staged(toy: Any, tmp_path: Path) -> None:
    store = toy.fill(toy.create(tmp_path / "half.zarr"), [0])
    with pytest.raises(CacheError, match="incomplete"):
        staged(str(store.location), tmp_path / "stage")
    assert not (tmp_path / "stage").exists()


@pytest.mark.parametrize("note", [b"", b"\xff", b"[]", b'{"source": 3}'])
def test_a_damaged_note_of_the_source_is_named(url: str, tmp_path: Path, note: bytes) -> None:
    copy = staged(url, tmp_path / "stage")
    (copy / origins.NOTE).write_bytes(note)
    with pytest.raises(CacheError, match="note of its source is damaged"):
        FeatureStore.open(copy).read(MAPS)
