"""Behaviour of the feature store towards other settings, foreign folders, bad payloads and full disks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from polyp_difom.cache.errors import CacheError, UsageError
from polyp_difom.cache.manifest import BasisEntry
from polyp_difom.cache.store import FeatureStore

MAPS = "teachers/toy/s8/embedding"
IMAGE = "frames/image"
MASK = "frames/mask"
LEDGER = {"teacher_seconds": 2.0, "decode_seconds": 0.5, "attempts": 1.0}


def test_another_signature_is_refused_and_the_differing_keys_named(toy: Any, store: FeatureStore) -> None:
    before = toy.files(Path(store.location.text))
    with pytest.raises(CacheError) as caught:
        toy.create(store.location.text, precision="bfloat16", basis=BasisEntry(channels=5, frames=4, seed=7))
    assert "precision = float32" in str(caught.value.details["got"])
    assert "basis.seed = 7" in str(caught.value.details["wanted"])
    assert toy.files(Path(store.location.text)) == before


def test_other_software_versions_resume_the_same_store(toy: Any, store: FeatureStore) -> None:
    assert toy.create(store.location.text, software={"zarr": "99"}).is_complete


def test_a_folder_that_a_writer_removes_meanwhile_does_not_hinder_opening(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims, scandir = Path(store.location.text) / ".claims", os.scandir
    claims.mkdir()

    def late(path: str) -> object:
        if Path(path) == claims:
            claims.rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", late)
    assert FeatureStore.open(store.location.text).is_complete


@pytest.mark.parametrize("kind", ["file", "folder", "foreign zarr", "zarr array", "folder at url"])
def test_what_is_not_a_store_is_refused_and_left_untouched(toy: Any, tmp_path: Path, kind: str) -> None:
    path: Path | str = tmp_path / "thing"
    if kind == "file":
        (tmp_path / "thing").write_text("notes")
    elif kind == "folder":
        (tmp_path / "thing").mkdir()
        (tmp_path / "thing" / "notes.txt").write_text("notes")
    elif kind == "foreign zarr":
        zarr.create_group(tmp_path / "thing", attributes={"mine": 1})
    elif kind == "zarr array":
        zarr.create_array(tmp_path / "thing", shape=(2,), dtype="uint8")
    else:
        path = f"memory://{tmp_path.name}/thing"
        zarr.create_group(path, attributes={"mine": 1})
    before = toy.files(tmp_path)
    for attempt in (lambda: toy.create(path), lambda: FeatureStore.open(path)):
        with pytest.raises(CacheError, match="not a feature store"):
            attempt()
    assert toy.files(tmp_path) == before


def test_an_empty_folder_becomes_a_store(toy: Any, tmp_path: Path) -> None:
    assert toy.create(tmp_path).pending() == [0, 1, 2]


def test_a_missing_store_tells_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="polyp-difom extract"):
        FeatureStore.open(tmp_path / "absent.zarr")


def test_an_unknown_kind_of_url_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="unknown kind of store URL"):
        FeatureStore.open("nosuchprotocol://bucket/x.zarr")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["manifest"].update(precision="bfloat16"), "manifest is damaged"),
        (lambda a: a["manifest"].pop("views"), "manifest is damaged"),
        (lambda a: a.update(signature="0" * 64), "manifest is damaged"),
        (lambda a: a["manifest"].update(schema_version=3, novelty=1), "newer polyp-difom"),
    ],
)
def test_a_manifest_that_changed_is_refused_on_opening(store: FeatureStore, change: object, message: str) -> None:
    node = Path(store.location.file("zarr.json"))
    document = json.loads(node.read_text())
    change(document["attributes"])  # type: ignore[operator]
    node.write_text(json.dumps(document))
    with pytest.raises(CacheError, match=message):
        FeatureStore.open(store.location.text)


def test_a_root_document_cut_short_is_refused(toy: Any, store: FeatureStore) -> None:
    node = Path(store.location.file("zarr.json"))
    node.write_text(node.read_text()[:100])
    with pytest.raises(CacheError, match="manifest is damaged"):
        toy.create(store.location.text)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused_and_its_sample_named(toy: Any, tmp_path: Path, bad: float) -> None:
    store = toy.create(tmp_path / "toy.zarr")
    arrays = toy.payload(store.shards[1])
    arrays[MAPS][2, 1, 0, 0, 0] = bad
    with store.writing(), pytest.raises(CacheError, match="embedding is not finite for sample 'frame_é6'"):
        store.write_shard(1, arrays, LEDGER)
    assert store.pending() == [0, 1, 2]
    assert not toy.shard_file(store, IMAGE, 1).exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.pop(MASK),
        lambda a: a.update(extra=a[MASK]),
        lambda a: a.update({MAPS: a[MAPS].astype(np.float32)}),
        lambda a: a.update({MAPS: a[MAPS][:3]}),
    ],
)
def test_a_payload_unlike_the_manifest_is_refused(toy: Any, tmp_path: Path, change: object) -> None:
    store = toy.create(tmp_path / "toy.zarr")
    arrays = toy.payload(store.shards[0])
    change(arrays)  # type: ignore[operator]
    with store.writing(), pytest.raises(ValueError, match="must"):
        store.write_shard(0, arrays, LEDGER)
    assert store.pending() == [0, 1, 2]


def test_writing_outside_the_lock_or_on_a_read_only_store_is_refused(toy: Any, store: FeatureStore) -> None:
    with pytest.raises(RuntimeError, match=r"store\.writing"):
        store.write_shard(0, toy.payload(store.shards[0]), LEDGER)
    with pytest.raises(CacheError, match="reading only"), FeatureStore.open(store.location.text).writing():
        pass


@pytest.mark.parametrize("under", ["file", "full disk"])
def test_a_place_that_cannot_be_written_gives_the_systems_reason(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, under: str
) -> None:
    (tmp_path / "file").write_text("")
    if under == "file":
        with pytest.raises(CacheError, match=r"Not a directory|File exists"):
            toy.create(tmp_path / "file" / "toy.zarr")
        return
    store = toy.create(tmp_path / "toy.zarr")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FeatureStore, "_put", full)
    with store.writing(), pytest.raises(CacheError, match="No space left on device"):
        store.write_shard(0, toy.payload(store.shards[0]), LEDGER)
    assert store.pending() == [0, 1, 2]
