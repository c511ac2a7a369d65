"""Behaviour of the feature store: what goes in comes out, through any reader, and it tells what it holds."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr

from polyp_difom.cache.manifest import predicted_bytes
from polyp_difom.cache.store import FeatureStore

N = 10
PER_SHARD = 4
VIEWS = 4
MAPS = "teachers/toy/s8/embedding"
IMAGE = "frames/image"


@pytest.mark.parametrize("place", ["local", "memory"])
def test_what_is_written_is_read_back_bit_for_bit(toy: Any, tmp_path: Path, place: str) -> None:
    path = tmp_path / "toy.zarr" if place == "local" else f"memory://{tmp_path.name}/toy.zarr"
    toy.fill(toy.create(path))
    store = FeatureStore.open(path)
    wanted = toy.payload(range(N))
    assert store.is_complete
    for key, values in wanted.items():
        assert store.read(key).tobytes() == values.tobytes()
        assert store.read(key).dtype == values.dtype
    picks = np.array([9, 0, 4, 9])
    np.testing.assert_array_equal(store.read(IMAGE, picks), wanted[IMAGE][picks])
    np.testing.assert_array_equal(store.read(MAPS, picks, verify=False), wanted[MAPS][picks])
    np.testing.assert_array_equal(store.read(MAPS, np.array([[9, 3], [0, 1]])), wanted[MAPS][[9, 0], [3, 1]])
    assert store.read(MAPS, np.array([], dtype=int)).shape == (0, VIEWS, 5, 3, 3)
    assert store.verify() == []


@pytest.mark.parametrize("indices", [[N], [-1], [[0, VIEWS]], [[0, 0, 0]]])
def test_an_index_out_of_range_raises(store: FeatureStore, indices: list[object]) -> None:
    with pytest.raises(IndexError):
        store.read(MAPS, np.array(indices))


def test_plain_zarr_reads_every_array(toy: Any, store: FeatureStore) -> None:
    group = zarr.open_group(store.location.text, mode="r")

    def array(key: str) -> zarr.Array:
        node = group[key]
        assert isinstance(node, zarr.Array)
        return node

    for key, values in toy.payload(range(N)).items():
        np.testing.assert_array_equal(array(key)[:], values)
    assert np.asarray(array("done")[:]).tolist() == [True] * 3
    assert (array(MAPS).shards, array(MAPS).chunks) == ((PER_SHARD, VIEWS, 5, 3, 3), (1, 1, 5, 3, 3))
    assert np.isnan(array(MAPS).fill_value)


def test_tensorstore_reads_every_array(toy: Any, store: FeatureStore) -> None:
    def read(key: str) -> np.ndarray:
        kvstore = {"driver": "file", "path": store.location.file(key)}
        return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True).result().read().result()

    for key, values in toy.payload(range(N)).items():
        np.testing.assert_array_equal(read(key), values)
    assert read("done").tolist() == [True] * 3
    assert read("ledger/values").shape == (3, 4)
    for column in ("id", "sha256", "mask_sha256", "pixel_sha256", "height", "width", "split", "dataset"):
        assert len(read(f"samples/{column}")) == N


def test_samples_and_manifest_survive_reopening(toy: Any, store: FeatureStore) -> None:
    again = FeatureStore.open(store.location.text)
    assert again.manifest == store.manifest
    assert again.samples.digest() == toy.make_samples().digest()
    assert again.samples.ids[3] == "frame_é3"
    assert again.samples.dataset == toy.make_samples().dataset
    assert again.samples.width.tolist() == toy.make_samples().width.tolist()


def test_a_store_works_after_pickling_and_in_a_forked_process(store: FeatureStore) -> None:
    wanted = store.read(MAPS)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).read(MAPS), wanted)  # noqa: S301
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply_async(store.read, (MAPS,)).get(timeout=20)
        assert pool.apply_async(store.pending).get(timeout=20) == []
    np.testing.assert_array_equal(found, wanted)


def test_constants_round_trip_and_absence_is_none(store: FeatureStore) -> None:
    basis: dict[str, np.ndarray] = {
        "mean": np.arange(8, dtype=np.float32),
        "rotation": np.eye(8, dtype=np.float64)[:5],
        "scale": np.array(2.5),
    }
    assert store.read_constants("teachers/toy/basis") is None
    with store.writing():
        store.write_constants("teachers/toy/basis", {"mean": np.zeros(2)}, {})
        store.write_constants("teachers/toy/basis", basis, {"explained": 0.95})
    found = FeatureStore.open(store.location.text).read_constants("teachers/toy/basis")
    assert found is not None
    arrays, attrs = found
    assert attrs == {"explained": 0.95}
    assert arrays.keys() == basis.keys()
    for name, values in basis.items():
        np.testing.assert_array_equal(arrays[name], values)
        assert arrays[name].dtype == values.dtype


def test_the_summary_is_json_and_counts_what_is_there(toy: Any, tmp_path: Path) -> None:
    store = toy.fill(toy.create(tmp_path / "toy.zarr"), [0, 2])
    told = json.loads(json.dumps(store.summary()))
    assert told["frames"] == N
    assert told["splits"] == {"train": 8, "val": 2}
    assert told["datasets"] == {"clinicdb": {"train": 2, "val": 1}, "kvasir": {"train": 6, "val": 1}}
    assert told["shards"] == {"done": 2, "total": 3}
    assert told["ledger"]["teacher_seconds"] == 4.0
    assert told["teachers"][0]["contamination"] == "unknown"
    assert set(told["bytes"]) == {"metadata", "done", "frames", "ledger", "samples", "teachers", "teachers/toy"}
    assert (
        told["total_bytes"]
        == sum(len(raw) for raw in toy.files(tmp_path / "toy.zarr").values()) + (tmp_path / "toy.zarr/.lock").stat().st_size
    )


def test_the_predicted_bytes_bound_the_bytes_on_disk_from_above(toy: Any, store: FeatureStore) -> None:
    shards = sum(toy.shard_file(store, key, shard).stat().st_size for key in store.manifest.arrays for shard in range(3))
    predicted = predicted_bytes(store.manifest, N)
    padding = 16 * (2 + 2 + 2 * VIEWS) + 4 * 9
    assert shards <= predicted + padding
    assert predicted < 1.5 * shards
