"""Behaviour of the feature store when bits flip, files shrink or were never written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.store import FeatureStore

N = 10
PER_SHARD = 4
VIEWS = 4
MAPS = "teachers/toy/s8/embedding"
IMAGE = "frames/image"
MASK = "frames/mask"


@pytest.mark.parametrize(("key", "chunks", "chunk"), [(MAPS, PER_SHARD * VIEWS, 2 * VIEWS + 1), (IMAGE, PER_SHARD, 2)])
def test_one_flipped_bit_is_found_and_its_sample_named(
    toy: Any, store: FeatureStore, key: str, chunks: int, chunk: int
) -> None:
    path = toy.shard_file(store, key, 1)
    toy.flip(path, toy.chunk_position(path, chunks, chunk) + 30)
    fresh = FeatureStore.open(store.location.text)
    assert [(d.key, d.shard, d.sample) for d in fresh.verify()] == [(key, 1, "frame_é6")]
    with pytest.raises(CacheError, match="is damaged for sample 'frame_é6'") as caught:
        fresh.read(key)
    assert str(path) in caught.value.message
    assert "polyp-difom cache verify" in caught.value.message
    assert (", chunk [1]" in caught.value.message) == (key == MAPS)
    np.testing.assert_array_equal(fresh.read(key, np.array([5, 7])), toy.payload(range(N))[key][[5, 7]])


@pytest.mark.parametrize("key", [MAPS, MASK])
@pytest.mark.parametrize("cut", [5, 500, None])
def test_a_truncated_shard_is_found_and_its_samples_named(toy: Any, store: FeatureStore, key: str, cut: int | None) -> None:
    path = toy.shard_file(store, key, 1)
    path.write_bytes(path.read_bytes()[: -cut if cut else 7])
    fresh = FeatureStore.open(store.location.text)
    assert [(d.key, d.shard, d.sample) for d in fresh.verify()] == [(key, 1, "frame_é4 .. frame_é7")]
    with pytest.raises(CacheError, match="frame_é5"):
        fresh.read(key, np.array([0, 5]))


def test_a_truncated_shard_is_found_at_a_url(toy: Any, tmp_path: Path) -> None:
    store = toy.fill(toy.create(f"memory://{tmp_path.name}/toy.zarr"))
    filesystem, root = store.location.filesystem()
    file = f"{root}/{store.sharded(MAPS).file(1)}"
    filesystem.pipe_file(file, filesystem.cat_file(file)[:-9])
    damages = FeatureStore.open(store.location.text).verify()
    assert [(d.key, d.shard, d.sample) for d in damages] == [(MAPS, 1, "frame_é4 .. frame_é7")]


def test_a_flipped_byte_in_a_shard_index_is_found(toy: Any, store: FeatureStore) -> None:
    path = toy.shard_file(store, MAPS, 0)
    toy.flip(path, path.stat().st_size - 20)
    fresh = FeatureStore.open(store.location.text)
    assert [(d.shard, d.sample) for d in fresh.verify()] == [(0, "frame_é0 .. frame_é3")]
    with pytest.raises(CacheError, match="index is damaged"):
        fresh.read(MAPS, np.array([2]), verify=False)


@pytest.mark.parametrize("key", [MAPS, MASK])
def test_a_chunk_never_written_raises_instead_of_giving_fill_values(toy: Any, tmp_path: Path, key: str) -> None:
    store = toy.fill(toy.create(tmp_path / "toy.zarr"), [0])
    with pytest.raises(CacheError, match="holds no data for sample 'frame_é8'") as caught:
        store.read(key, np.array([1, 8]))
    assert "polyp-difom extract" in caught.value.message
    array = zarr.open_group(store.location.text)[key]
    assert isinstance(array, zarr.Array)
    array[4:6] = np.ones((2, *array.shape[1:]), array.dtype)
    with pytest.raises(CacheError, match="holds no data for sample 'frame_é6'"):
        store.read(key, np.array([4, 5, 6]))


def test_a_shard_marked_done_whose_file_is_gone_is_damage(toy: Any, store: FeatureStore) -> None:
    toy.shard_file(store, MASK, 2).unlink()
    assert [(d.key, d.shard) for d in FeatureStore.open(store.location.text).verify()] == [(MASK, 2)]


def test_verify_finds_damaged_metadata_and_constants(store: FeatureStore) -> None:
    with store.writing():
        store.write_constants("teachers/toy/basis", {"mean": np.arange(9.0)}, {"explained": 0.95})
    node = Path(store.location.file("teachers/toy/basis/zarr.json"))
    node.write_text(node.read_text().replace("0.95", "0.96"))
    Path(store.location.file(f"{MASK}/zarr.json")).write_text("{}")
    fresh = FeatureStore.open(store.location.text)
    steps: list[tuple[int, int]] = []
    assert [(d.key, d.shard) for d in fresh.verify(lambda *step: steps.append(step))] == [
        ("teachers/toy/basis", None),
        (MASK, None),
    ]
    assert steps[-1] == (9, 9)
    with pytest.raises(CacheError, match="teachers/toy/basis is damaged"):
        fresh.read_constants("teachers/toy/basis")


def test_a_damaged_done_mark_is_an_error_and_not_a_missing_shard(toy: Any, store: FeatureStore) -> None:
    toy.flip(Path(store.location.file("done/c/1")), 0)
    with pytest.raises(CacheError, match="'done' is missing or damaged"):
        store.pending()


def test_a_damaged_sample_table_is_refused_on_opening(toy: Any, store: FeatureStore) -> None:
    toy.flip(Path(store.location.file("samples/split/c/0")), 3)
    with pytest.raises(CacheError, match="'samples/split' is missing or damaged"):
        FeatureStore.open(store.location.text)
