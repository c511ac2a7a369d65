"""Exports load with plain numpy and safetensors, and hold what the store holds."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from polyp_difom.cache import exporting
from polyp_difom.cache.errors import CacheError, UsageError
from polyp_difom.cache.exporting import export
from polyp_difom.cache.store import FeatureStore

MAPS, MASK = "teachers/toy/s8/embedding", "frames/mask"


def test_npy_files_hold_every_value_and_can_be_memory_mapped(store: FeatureStore, tmp_path: Path) -> None:
    keys = list(store.manifest.arrays)
    files = export(store, tmp_path / "out", "npy", keys, ["train", "val"])
    assert files == [*(f"{key}.npy" for key in keys), "samples.csv", "manifest.json"]
    for key in keys:
        loaded = np.load(tmp_path / f"out/{key}.npy", mmap_mode="r")
        assert loaded.dtype == store.manifest.arrays[key].dtype
        np.testing.assert_array_equal(loaded, store.read(key))


def test_safetensors_files_hold_every_value(store: FeatureStore, tmp_path: Path) -> None:
    export(store, tmp_path / "out", "safetensors", [MAPS, MASK], ["train", "val"])
    for key in (MAPS, MASK):
        loaded = load_file(tmp_path / f"out/{key}.safetensors")
        assert list(loaded) == [key]
        assert loaded[key].dtype == store.manifest.arrays[key].dtype
        np.testing.assert_array_equal(loaded[key], store.read(key))


@pytest.mark.parametrize("to", ["npy", "safetensors"])
def test_a_split_alone_is_exported_with_its_rows_of_the_table(store: FeatureStore, tmp_path: Path, to: str) -> None:
    sizes: list[int] = []
    export(store, tmp_path / "out", to, [MAPS], ["val"], sizes.append)
    path = tmp_path / f"out/{MAPS}.{to}"
    loaded = np.load(path) if to == "npy" else load_file(path)[MAPS]
    np.testing.assert_array_equal(loaded, store.read(MAPS, np.array([4, 9])))
    rows = list(csv.DictReader((tmp_path / "out/samples.csv").open(encoding="utf-8")))
    assert [(row["id"], row["split"], row["height"]) for row in rows] == [
        ("frame_é4", "val", "292"),
        ("frame_é9", "val", "297"),
    ]
    said = json.loads((tmp_path / "out/manifest.json").read_text())
    assert (said["signature"], said["files"]) == (store.manifest.signature(), {MAPS: f"{MAPS}.{to}"})
    assert sum(sizes) == loaded.nbytes


def test_nothing_is_written_over_and_nothing_half_done_is_left(
    toy: Any, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("")
    with pytest.raises(UsageError, match="there already"):
        export(store, tmp_path / "full", "npy", [MAPS], ["val"])
    with pytest.raises(UsageError, match="no sample"):
        export(store, tmp_path / "out", "npy", [MAPS], ["test"])
    with pytest.raises(UsageError, match="unknown format"):
        export(store, tmp_path / "out", "zip", [MAPS], ["val"])
    toy.flip(toy.shard_file(store, MAPS, 2), 30)
    with pytest.raises(CacheError, match="is damaged"):
        export(FeatureStore.open(store.location.text), tmp_path / "out", "npy", [MAPS], ["train", "val"])
    monkeypatch.setattr(exporting.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(CacheError, match="not fit"):
        export(store, tmp_path / "out", "npy", [MASK], ["train"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "toy.zarr"]


def test_an_incomplete_store_is_refused(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="incomplete"):
        export(toy.fill(toy.create(tmp_path / "half.zarr"), [0]), tmp_path / "out", "npy", [MAPS], ["train"])
