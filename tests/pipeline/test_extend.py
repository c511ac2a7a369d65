"""Adding to a store: what is there keeps its bytes, and a kill leaves the old store or one that can be gone on with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from polyp_difom.cache import spare
from polyp_difom.cache.errors import CacheError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.extend import ExtendConfig, extend
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.plan import ExtractConfig
from polyp_difom.pipeline.repair import repair

Extracting = Callable[..., ExtractConfig]
OLD, NEW = "dinov2:small", "dinov2:base"


def files(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != ".lock" and not name.startswith("ledger/values/c")}


def changed(before: dict[str, bytes], folder: Path) -> list[str]:
    after = files(folder)
    return [name for name in before if after.get(name) != before[name]]


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """Weights of another tiny teacher: 24 channels."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(3)
    shape = Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14)
    Dinov2Model(shape).save_pretrained(tmp_path / "second")
    return tmp_path / "second"


@pytest.fixture
def place(frames: Path, extracting: Extracting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A complete store of three shards with one teacher at two scales."""
    monkeypatch.setattr(schema, "MOST_SAMPLES_PER_SHARD", 8)
    extract(extracting(frames, tmp_path / "s.zarr", scales=("s8", "s16")))
    return tmp_path / "s.zarr"


def adding(place: Path, **changes: Any) -> ExtendConfig:
    return ExtendConfig(cache=str(place), device="cpu", **changes)


def test_an_added_teacher_makes_the_store_that_both_at_once_would_have_made(
    place: Path, second: Path, frames: Path, extracting: Extracting, tiny_teacher: Path, tmp_path: Path
) -> None:
    before = files(place)
    extended = extend(adding(place, teachers=(NEW,), weights={NEW: str(second)}))
    both = extract(extracting(
        frames, tmp_path / "both.zarr", scales=("s8", "s16"), teachers=(OLD, NEW), weights={OLD: str(tiny_teacher), NEW: str(second)},
    ))  # fmt: skip
    assert changed(before, place) == ["metadata.copy.json", "zarr.json"]
    assert extended.manifest.signature() == both.manifest.signature()
    found = files(place)
    apart = [name for name, data in files(tmp_path / "both.zarr").items() if found.get(name) != data]
    records = "ledger/crc32c/"  # an extension has its own
    assert [name for name in apart if not name.startswith(records)] == ["metadata.copy.json", "zarr.json"]
    assert extended.verify() == []
    assert extended.is_complete


def test_an_added_scale_is_in_the_basis_that_the_store_has(place: Path, tiny_teacher: Path) -> None:
    before = files(place)
    extended = extend(adding(place, scales=("s4", "s32"), weights={OLD: str(tiny_teacher)}))
    assert changed(before, place) == ["metadata.copy.json", "zarr.json"]
    assert extended.manifest.scales == {"s4": 16, "s8": 8, "s16": 4, "s32": 2}
    fine, stored = (extended.read(f"teachers/dinov2-small/{scale}/embedding").astype(float) for scale in ("s4", "s8"))
    n, v, c = fine.shape[:3]
    np.testing.assert_allclose(fine.reshape(n, v, c, 8, 2, 8, 2).mean((4, 6)), stored, atol=4e-3, rtol=4e-3)
    (entry,) = extended.manifest.teachers
    for scale in extended.manifest.scales:
        record = extended.read_constants(schema.basis_of(entry, scale))
        assert record is not None
        maps = extended.read(schema.embedding_key(OLD, scale))[[s == "train" for s in extended.samples.split], 0].astype(float)
        assert maps.var((0, 2, 3)).mean() == pytest.approx(record[1]["variances"][scale], rel=0.05)
    assert extended.verify() == []


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_lost_frames_of_an_extended_store_come_back_by_plain_extract(
    dtype: str, frames: Path, extracting: Extracting, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "MOST_SAMPLES_PER_SHARD", 8)
    place = tmp_path / "s.zarr"
    extract(extracting(frames, place, scales=("s8", "s16"), dtype=dtype))
    extended = extend(adding(place, scales=("s4",), weights={OLD: str(tiny_teacher)}))
    before = files(place)
    (place / extended.sharded(schema.IMAGE).file(1)).unlink()
    assert repair(str(place), extended.verify(), weights={OLD: str(tiny_teacher)}, device="cpu").pending == [1]
    monkeypatch.setattr(schema, "MOST_SAMPLES_PER_SHARD", 4)  # as a finer scale's larger arrays ask for
    extract(extracting(frames, place, scales=("s4", "s8", "s16"), dtype=dtype))
    assert changed(before, place) == []
    assert FeatureStore.open(place).verify() == []


@pytest.mark.parametrize("after", [0, 3, 9, 20, 28])
def test_a_kill_leaves_the_old_store_and_the_same_command_ends_at_the_same_bytes(
    after: int, place: Path, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(shutil.copytree(place, tmp_path / "whole.zarr"))
    extend(adding(whole, teachers=(NEW,), weights={NEW: str(second)}))
    before, old, count = files(place), FeatureStore.open(place), 0
    put, constants = FeatureStore._put, FeatureStore.write_constants

    def counted(real: Callable[..., None]) -> Callable[..., None]:
        def run(*args: Any) -> None:
            nonlocal count
            count += 1
            if count > after:
                raise KeyboardInterrupt
            real(*args)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "_put", counted(put))
        patch.setattr(FeatureStore, "write_constants", counted(constants))
        if after < 28:
            with pytest.raises(KeyboardInterrupt):
                extend(adding(place, teachers=(NEW,), weights={NEW: str(second)}))
    assert changed(before, place) == []
    assert FeatureStore.open(place).manifest == old.manifest
    assert FeatureStore.open(place).verify() == []
    extend(adding(place, teachers=(NEW,), weights={NEW: str(second)}))
    same = lambda name: not name.startswith("extensions/") or "ledger/values/c" not in name  # noqa: E731
    wanted = {name: data for name, data in files(whole).items() if same(name)}
    assert {name: data for name, data in files(place).items() if same(name)} == wanted


def test_finished_shards_of_a_killed_extension_are_not_made_again(
    place: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FeatureStore.write_shard
    written: list[int] = []

    def dying(self: FeatureStore, number: int, *rest: Any) -> None:
        if len(written) == 2:
            written.append(-1)
            raise KeyboardInterrupt
        written.append(number)
        real(self, number, *rest)

    monkeypatch.setattr(FeatureStore, "write_shard", dying)
    with pytest.raises(KeyboardInterrupt):
        extend(adding(place, teachers=(NEW,), weights={NEW: str(second)}))
    extend(adding(place, teachers=(NEW,), weights={NEW: str(second)}))
    assert written == [0, 1, -1, 2]


def test_nothing_of_an_extension_that_was_given_up_enters_the_next(
    place: Path, second: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = Path(shutil.copytree(place, tmp_path / "clean.zarr"))
    with monkeypatch.context() as patch:
        patch.setattr(
            FeatureStore, "require_complete", lambda self: (_ for _ in ()).throw(KeyboardInterrupt) if self.marks else None
        )
        with pytest.raises(KeyboardInterrupt):  # all but sealed, with other weights
            extend(adding(place, teachers=(NEW,), weights={NEW: str(tiny_teacher)}))
    for folder in (place, clean):
        extend(adding(folder, teachers=(NEW,), weights={NEW: str(second)}))
    ours, theirs = ({n: d for n, d in files(f).items() if "ledger/values/c" not in n} for f in (place, clean))
    assert ours == theirs


@pytest.mark.parametrize("kept", [f"teachers/{NEW.replace(':', '-')}/s16/embedding", "extensions/*/ledger/values"])
def test_arrays_that_a_kill_left_outside_any_group_do_not_stand_in_the_way(kept: str, place: Path, second: Path) -> None:
    given = adding(place, teachers=(NEW,), weights={NEW: str(second)})
    before = files(place)
    extend(given)
    whole = files(place)
    document = next(place.glob(f"{kept}/zarr.json"))
    text = document.read_text()
    for path in [*place.glob(f"teachers/{NEW.replace(':', '-')}"), place / "extensions"]:
        shutil.rmtree(path)
    for name, raw in before.items():
        (place / name).write_bytes(raw)
    document.parent.mkdir(parents=True)
    document.write_text(text)
    extend(given)
    assert {name for name in whole if "/values/c" not in name} == {name for name in files(place) if "/values/c" not in name}
    assert FeatureStore.open(place).verify() == []


def test_the_copy_of_a_sealed_extension_is_made_by_the_next_where_a_kill_came_first(
    place: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = adding(place, teachers=(NEW,), weights={NEW: str(second)})
    with monkeypatch.context() as patch:
        patch.setattr(spare, "add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            extend(given)
    extend(given)
    held = spare.load(FeatureStore.open(place).location) or {}
    assert {"zarr.json", f"teachers/{NEW.replace(':', '-')}/s16/embedding/zarr.json"} <= held.keys()


def test_extending_twice_changes_nothing(place: Path, second: Path) -> None:
    config = adding(place, teachers=(NEW,), weights={NEW: str(second)})
    extend(config)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.name != ".lock"}
    extend(config)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.name != ".lock"} == before


def test_other_weights_for_a_teacher_of_the_store_are_refused(place: Path, second: Path) -> None:
    before = files(place)
    for change in ({"scales": ("s32",), "weights": {OLD: str(second)}}, {"teachers": (OLD,), "weights": {OLD: str(second)}}):
        with pytest.raises(CacheError, match="another one"):
            extend(adding(place, **change))
    assert files(place) == before


def test_an_incomplete_or_busy_store_is_not_extended(place: Path, second: Path) -> None:
    store = FeatureStore.open(place, writable=True)
    config = adding(place, teachers=(NEW,), weights={NEW: str(second)})
    with store.writing():
        with pytest.raises(CacheError, match="another writer"):
            extend(config)
        store.mark_pending(1)
    with pytest.raises(CacheError, match="incomplete"):
        extend(config)


def test_a_scale_that_would_move_stored_ones_to_other_maps_is_refused(
    frames: Path, extracting: Extracting, tiny_teacher: Path, tmp_path: Path
) -> None:
    name = "dinov2:small@1:2"
    weights = {name: str(tiny_teacher)}
    extract(extracting(frames, tmp_path / "s.zarr", teachers=(name,), weights=weights, scales=("s8", "s16"), limit=6))
    with pytest.raises(UsageError, match="from another of its maps"):
        extend(adding(tmp_path / "s.zarr", scales=("s32",), weights=weights))


@pytest.mark.parametrize("change", [{}, {"teachers": (NEW,), "scales": ("s4",)}, {"scales": ("s4",), "views": 4}])
def test_one_thing_at_a_time_can_be_asked_for(change: dict[str, Any], place: Path) -> None:
    with pytest.raises(UsageError, match="either teachers or scales or views"):
        extend(adding(place, **change))


def test_the_command_says_what_the_store_holds_now(place: Path, second: Path) -> None:
    from polyp_difom.cli.main import app

    words = ["cache", "extend", str(place), "--teachers", NEW, "--weights", f"{NEW}={second}", "--device", "cpu"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert "dinov2:small, dinov2:base at s8, s16, 2 views, complete" in result.stdout
    assert "cheaper from student 1 on" in result.stderr
