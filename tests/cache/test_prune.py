"""What `prune` deletes, and everything that it must not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from polyp_difom.cache.errors import CacheError, UsageError
from polyp_difom.cache.prune import prune
from polyp_difom.cache.store import FeatureStore

MAPS = "teachers/toy/s8/embedding"


@pytest.fixture
def littered(toy: Any, store: FeatureStore) -> FeatureStore:
    """A complete store with constants, then litter of every kind, and a stranger's note."""
    folder = Path(store.location.text)
    with store.writing():
        store.write_constants("teachers/toy/basis", {"mean": np.arange(9.0)}, {})
    root = zarr.open_group(folder)
    root.create_array("teachers/toy/s99/embedding", data=np.ones(3))
    root.create_array("teachers/gone/s8/embedding", data=np.ones(3))
    beyond = toy.shard_file(store, MAPS, 3)
    beyond.parent.mkdir(parents=True, exist_ok=True)
    beyond.write_bytes(b"12345")
    (folder / MAPS / "c/0/x.partial").write_bytes(b"123")
    (folder / "notes.txt").write_text("mine")
    (folder / "teachers/notes.txt").write_text("mine too")
    return store


def test_only_litter_goes_and_the_store_stays_whole(toy: Any, littered: FeatureStore, tmp_path: Path) -> None:
    folder = Path(littered.location.text)
    before = toy.files(folder)
    found = prune(littered)
    after = toy.files(folder)
    assert set(before) - set(after) == {item.key for item in found}
    assert all(before[item.key] is not None and len(before[item.key]) == item.size for item in found)
    assert {key: after[key] for key in before if key in after} == after
    gone = {item.key for item in found}
    assert {f"{MAPS}/c/3/0/0/0/0", f"{MAPS}/c/0/x.partial", "teachers/gone/zarr.json"} <= gone
    assert {key for key in gone if "toy/s99" in key} == {key for key in before if "toy/s99" in key}
    assert not (folder / "teachers/gone").exists()
    assert {"notes.txt", "teachers/notes.txt"} <= set(after)
    fresh = FeatureStore.open(folder)
    assert fresh.verify() == []
    assert fresh.read_constants("teachers/toy/basis") is not None
    assert prune(fresh) == []


def test_a_dry_run_names_the_same_files_and_deletes_none(toy: Any, littered: FeatureStore) -> None:
    before = toy.files(Path(littered.location.text))
    found = prune(littered, dry_run=True)
    assert toy.files(Path(littered.location.text)) == before
    assert prune(littered) == found != []


def test_leftovers_of_a_pending_shard_go_and_nothing_of_the_finished_ones(toy: Any, store: FeatureStore) -> None:
    with store.writing():
        store.mark_pending(1)
    assert {item.key for item in prune(store)} == {store.sharded(key).file(1) for key in store.manifest.arrays}
    assert toy.fill(FeatureStore.open(store.location.text, writable=True)).verify() == []


HOLD = """
import sys
from polyp_difom.cache.store import FeatureStore
with FeatureStore.open(sys.argv[1], writable=True).writing():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_nothing_is_pruned_while_a_writer_is_at_work(toy: Any, littered: FeatureStore) -> None:
    command = [sys.executable, "-c", HOLD, littered.location.text]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = toy.files(Path(littered.location.text))
        with pytest.raises(CacheError, match="another writer"):
            prune(littered)
        assert toy.files(Path(littered.location.text)) == before
        holder.communicate()


def test_a_store_at_a_url_is_refused(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="local"):
        prune(toy.create(f"memory://{tmp_path.name}/toy.zarr"))
