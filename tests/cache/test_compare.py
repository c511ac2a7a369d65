"""What `compare` says about two stores."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyp_difom.cache.compare import compare
from polyp_difom.cache.store import FeatureStore

MAPS = "teachers/toy/s8/embedding"
LEDGER = {"teacher_seconds": 2.0, "decode_seconds": 0.5, "attempts": 1.0}


def test_a_store_equals_another_of_the_same_content(toy: Any, store: FeatureStore, tmp_path: Path) -> None:
    found = compare(store, toy.fill(toy.create(tmp_path / "other.zarr")))
    assert found.equal
    assert found.shared == 10
    assert [(a.key, a.samples, a.largest) for a in found.arrays] == [(key, 0, 0.0) for key in store.manifest.arrays]
    assert all(a.cosine == pytest.approx(1.0) for a in found.arrays)


def test_one_changed_value_is_told_with_its_array_and_size(toy: Any, store: FeatureStore, tmp_path: Path) -> None:
    other = toy.create(tmp_path / "other.zarr")
    toy.fill(other, [0, 2])
    changed = toy.payload(other.shards[1])
    changed[MAPS][2, 1, 0, 0, 0] += 4
    with other.writing():
        other.write_shard(1, changed, LEDGER)
    found = compare(store, other)
    (row,) = [a for a in found.arrays if a.samples]
    assert not found.equal
    assert (row.key, row.samples) == (MAPS, 1)
    assert row.largest == pytest.approx(4, abs=0.01)
    assert 0.9 < row.cosine < 1


def test_samples_are_matched_by_id_and_strangers_are_named(toy: Any, store: FeatureStore, tmp_path: Path) -> None:
    few = toy.make_samples(7)
    ids = [*few.ids[:6], "stranger"]
    samples = dataclasses.replace(few, ids=ids, split=["val", *few.split[1:]])
    other = toy.fill(FeatureStore.create(tmp_path / "few.zarr", toy.make_manifest(samples, precision="bfloat16"), samples))
    found = compare(store, other)
    assert (found.only_first, found.only_second) == ([f"frame_é{i}" for i in (6, 7, 8, 9)], ["stranger"])
    assert found.shared == 6
    assert "frame_é0" in found.changed  # another split
    assert ("precision", "float32", "bfloat16") in found.settings
    assert not any(a.samples for a in found.arrays)


def test_unfinished_shards_are_left_out_and_no_equality_is_claimed(toy: Any, store: FeatureStore, tmp_path: Path) -> None:
    found = compare(store, toy.fill(toy.create(tmp_path / "half.zarr"), [0]))
    assert (found.shared, len(found.unfinished)) == (4, 6)
    assert not found.equal
    assert np.all([a.samples == 0 for a in found.arrays])
