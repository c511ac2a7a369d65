"""A process compares a chunk's checksum the first time that it reads it; what looks at every byte compares every time."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from polyp_difom.cache import shards
from polyp_difom.cache.compare import compare
from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.exporting import export
from polyp_difom.cache.store import FeatureStore

VIEWS, PER_SHARD = 4, 4
MAPS = "teachers/toy/s8/embedding"
IMAGE = "frames/image"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of everything that a checksum was computed of."""
    sizes: list[int] = []
    real = google_crc32c.value

    def noted(data: Any) -> int:
        sizes.append(len(data))
        return real(data)

    monkeypatch.setattr(google_crc32c, "value", noted)
    return sizes


@pytest.fixture
def hurt(toy: Any, store: FeatureStore) -> FeatureStore:
    """A store that has read everything, and where then, in sample 6 under hflip and in its frame, a bit flips."""
    for key, per_shard, chunk in ((MAPS, PER_SHARD * VIEWS, 2 * VIEWS + 1), (IMAGE, PER_SHARD, 2)):
        store.read(key)
        path = toy.shard_file(store, key, 1)
        toy.flip(path, toy.chunk_position(path, per_shard, chunk) + 30)
    return store


def counted(computed: list[int], store: FeatureStore, *arguments: Any, **options: Any) -> int:
    """Checksums that a read computes."""
    computed.clear()
    store.read(*arguments, **options)
    return len(computed)


@pytest.mark.parametrize(("key", "chunks"), [(MAPS, 10 * VIEWS), (IMAGE, 10)])
def test_later_passes_compute_no_checksum(store: FeatureStore, computed: list[int], key: str, chunks: int) -> None:
    indices = 3
    assert counted(computed, store, key, verify=False) == indices
    assert counted(computed, store, key, np.array([7, 2, 7])) == 2 * (chunks // 10)
    assert counted(computed, store, key) == 8 * (chunks // 10)
    for order in (None, np.random.default_rng(0).permutation(10)):
        assert counted(computed, store, key, order) == 0
    assert counted(computed, store, key, verify="always") == chunks + indices


def test_a_view_that_was_read_leaves_the_others_to_be_checked(store: FeatureStore, computed: list[int]) -> None:
    assert counted(computed, store, MAPS, np.array([[6, 1]])) == 1 + 1
    assert counted(computed, store, MAPS, np.array([6])) == VIEWS - 1


def test_a_bit_that_flips_after_the_first_read_is_found_by_whatever_looks_at_every_byte(
    hurt: FeatureStore, tmp_path: Path
) -> None:
    hurt.read(MAPS)
    assert [(damage.key, damage.sample) for damage in hurt.verify()] == [(IMAGE, "frame_é6"), (MAPS, "frame_é6")]
    with pytest.raises(CacheError, match="crc32c differ"):
        hurt.read(MAPS, np.array([6]), verify="always")
    with pytest.raises(CacheError, match="crc32c differ"):
        export(hurt, tmp_path / "plain", "npy", [MAPS], ["train"])
    with pytest.raises(CacheError, match="crc32c differ"):
        compare(hurt, hurt)


def test_a_bit_that_flips_after_the_first_read_is_found_by_a_fresh_process(hurt: FeatureStore) -> None:
    def read_inherited() -> None:
        try:
            hurt.read(MAPS)
        except CacheError:
            os._exit(4)

    child = multiprocessing.get_context("fork").Process(target=read_inherited)
    child.start()
    child.join(60)
    assert child.exitcode == 4
    for fresh in (FeatureStore.open(hurt.location.text), pickle.loads(pickle.dumps(hurt))):  # noqa: S301
        with pytest.raises(CacheError, match="is damaged for sample 'frame_é6', chunk \\[1\\]"):
            fresh.read(MAPS)


def test_a_chunk_whose_checksum_fails_is_never_trusted(toy: Any, hurt: FeatureStore) -> None:
    fresh = FeatureStore.open(hurt.location.text)
    for _ in range(2):
        with pytest.raises(CacheError, match="crc32c differ"):
            fresh.read(MAPS)


@pytest.mark.parametrize("dated", [True, False], ids=["by a write", "by itself"])
def test_a_chunk_that_was_found_damaged_is_no_longer_trusted(toy: Any, store: FeatureStore, dated: bool) -> None:
    store.read(MAPS)
    path = toy.shard_file(store, MAPS, 1)
    before = path.stat()
    toy.flip(path, toy.chunk_position(path, PER_SHARD * VIEWS, 2 * VIEWS + 1) + 30)
    if not dated:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    store.read(MAPS)
    for verify in ("always", True, True):
        with pytest.raises(CacheError, match="crc32c differ"):
            store.read(MAPS, verify=verify)


def test_a_shard_that_is_mapped_again_is_trusted_only_if_it_is_the_same_file(
    toy: Any, store: FeatureStore, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "OPEN_SHARDS", 1)
    index, rows = 1, [np.arange(0, 4), np.arange(4, 8)]
    assert [counted(computed, store, MAPS, some) for some in (*rows, *rows)] == [index + 16, index + 16, index, index]
    path = toy.shard_file(store, MAPS, 0)
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    toy.flip(other, toy.chunk_position(path, PER_SHARD * VIEWS, 5) + 3)
    other.replace(path)
    with pytest.raises(CacheError, match="is damaged for sample 'frame_é1'"):
        store.read(MAPS, rows[0])


def test_what_is_fetched_from_a_url_is_checked_each_time(toy: Any, tmp_path: Path, computed: list[int]) -> None:
    store = toy.fill(toy.create(f"memory://{tmp_path.name}/toy.zarr"))
    assert [counted(computed, store, MAPS) for _ in range(2)] == [3 + 40, 40]
