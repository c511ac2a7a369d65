"""The live teacher against the store: it agrees with what it said, and mends what was damaged, byte for byte."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from polyp_difom.cache import mending
from polyp_difom.cache.errors import CacheError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.recompute import recompute, require_alike
from polyp_difom.pipeline.repair import extract_command, repair

TEACHER = "dinov2:small"
MAPS = schema.embedding_key(TEACHER, "s16")
SPECTRUM = schema.spectrum_key(TEACHER, "s8")


@pytest.fixture
def copied(store: FeatureStore, tmp_path: Path) -> Path:
    return Path(shutil.copytree(str(store.location), tmp_path / "s.zarr"))


@pytest.fixture
def weights(tiny_teacher: Path) -> dict[str, str]:
    return {TEACHER: str(tiny_teacher)}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def shard(folder: Path, key: str) -> Path:
    return folder / FeatureStore.open(folder).sharded(key).file(0)


def flip(path: Path, position: int = 1000) -> None:
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)


def test_the_live_teacher_says_again_what_the_store_holds(store: FeatureStore, weights: dict[str, str]) -> None:
    found = recompute(store, 5, weights=weights, device="cpu", seed=0)
    assert [(row.scale, row.kind) for row in found] == [
        (scale, kind) for scale in ("s8", "s16", "s32") for kind in ("embedding", "spectrum")
    ]
    assert all(row.cosine > 0.99999 and row.worst > 0.99999 and row.error < 1e-3 for row in found)
    require_alike(store, found)


def test_a_map_of_another_frame_is_told_with_its_sample(copied: Path, weights: dict[str, str]) -> None:
    store = FeatureStore.open(copied, writable=True)
    arrays = {key: store.read(key, np.array(store.shards[0])) for key in store.manifest.arrays}
    arrays[MAPS][7] = -arrays[MAPS][7]
    with store.writing():
        store.write_shard(0, arrays, {"teacher_seconds": 0.0, "decode_seconds": 0.0, "attempts": 1.0})
    fresh = FeatureStore.open(copied)
    assert fresh.verify() == []
    found = recompute(fresh, 22, weights=weights, device="cpu")
    assert [row.key for row in found if row.worst < 0.9] == [MAPS]
    with pytest.raises(CacheError, match=store.samples.ids[7]):
        require_alike(fresh, found)


def test_other_weights_are_refused_before_they_run(store: FeatureStore, tmp_path: Path) -> None:
    import torch
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(1)
    shape = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14)
    Dinov2Model(shape).save_pretrained(tmp_path / "other")
    with pytest.raises(CacheError, match="not the one that made the store"):
        recompute(store, 1, weights={TEACHER: str(tmp_path / "other")}, device="cpu")
    with pytest.raises(UsageError, match="does not hold"):
        recompute(store, 1, weights={"litemedsam": "x"}, device="cpu")


def test_damaged_maps_are_mended_byte_for_byte(copied: Path, weights: dict[str, str]) -> None:
    before = files(copied)
    flip(shard(copied, MAPS))
    path = shard(copied, SPECTRUM)
    path.write_bytes(path.read_bytes()[:-9])  # its index is lost, so all of its chunks are
    damages = FeatureStore.open(copied).verify()
    done = repair(str(copied), damages, weights=weights, device="cpu")
    assert [(m.key, m.shard, m.chunks, m.intact, m.same) for m in done.mended] == [
        (MAPS, 0, 1, 43, 43),
        (SPECTRUM, 0, 44, 0, 0),
    ]
    assert (done.pending, done.command) == ([], None)
    assert files(copied) == before


def test_a_repair_that_is_killed_between_delete_and_write_is_made_good_by_the_next(
    copied: Path, weights: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(copied)
    flip(shard(copied, MAPS))

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(mending.zarr.Array, "__setitem__", killed)
        with pytest.raises(Killed):
            repair(str(copied), FeatureStore.open(copied).verify(), weights=weights, device="cpu")
    assert not shard(copied, MAPS).exists()
    repair(str(copied), FeatureStore.open(copied).verify(), weights=weights, device="cpu")
    assert files(copied) == before


def test_maps_that_the_teacher_does_not_confirm_are_not_touched(copied: Path, weights: dict[str, str]) -> None:
    store = FeatureStore.open(copied, writable=True)
    arrays = {key: store.read(key, np.array(store.shards[0])) for key in store.manifest.arrays}
    arrays[MAPS] = arrays[MAPS][::-1].copy()
    with store.writing():
        store.write_shard(0, arrays, {"teacher_seconds": 0.0, "decode_seconds": 0.0, "attempts": 1.0})
    flip(shard(copied, MAPS))
    before = files(copied)
    with pytest.raises(CacheError, match="does not say what"):
        repair(str(copied), FeatureStore.open(copied).verify(), weights=weights, device="cpu")
    assert files(copied) == before


def test_a_shard_of_damaged_frames_is_left_to_extract(
    copied: Path, frames: Path, extracting: Callable, weights: dict[str, str]
) -> None:
    from polyp_difom.pipeline.extract import extract

    before = files(copied)
    flip(shard(copied, schema.IMAGE))
    flip(shard(copied, MAPS))
    done = repair(str(copied), FeatureStore.open(copied).verify(), weights=weights, device="cpu")
    assert (done.mended, done.pending) == ([], [0])
    assert FeatureStore.open(copied).pending() == [0]
    assert done.command is not None
    assert f"--cache {copied}" in done.command
    extract(extracting(frames, copied))
    after = files(copied)
    assert {key for key in before if before[key] != after[key]} <= {key for key in before if key.startswith("ledger/")}


def test_damaged_constants_are_refused(copied: Path, weights: dict[str, str]) -> None:
    flip(copied / schema.basis_group(TEACHER) / "mean/c/0", 0)
    before = files(copied)
    with pytest.raises(CacheError, match="cannot be mended"):
        repair(str(copied), FeatureStore.open(copied).verify(), weights=weights, device="cpu")
    assert files(copied) == before


def test_the_printed_extract_command_has_the_store_s_signature(
    store: FeatureStore, frames: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from polyp_difom.cli.main import app

    words = extract_command(store).split()[1:]
    values = {"--cache": str(tmp_path / "again.zarr"), "--weights": f"{TEACHER}={tiny_teacher}"}
    filled = [values.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    filled = [f"{word.partition('=')[0]}={frames}" if "FOLDER-OF-" in word else word for word in filled]
    result = CliRunner().invoke(app, [*filled, "--device", "cpu", "-q"])
    assert result.exit_code == 0, result.stderr
    assert FeatureStore.open(tmp_path / "again.zarr").manifest.signature() == store.manifest.signature()
