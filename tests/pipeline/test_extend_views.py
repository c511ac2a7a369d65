"""Adding views to a store: what is there keeps its bytes, and the maps are those that all views at once would have given."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import zarr
from typer.testing import CliRunner

from polyp_difom.cache.compare import compare
from polyp_difom.cache.errors import CacheError, UsageError
from polyp_difom.cache.prune import prune
from polyp_difom.cache.staging import staged
from polyp_difom.cache.store import FeatureStore
from polyp_difom.cli.main import app
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.extend import ExtendConfig, extend
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.plan import ExtractConfig
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.reads import conflicting, lost, of_store, parts, views_read
from polyp_difom.pipeline.recompute import recompute
from polyp_difom.pipeline.repair import repair
from polyp_difom.pipeline.runs import RunFolder, read_checkpoint
from polyp_difom.pipeline.subset import views_of
from polyp_difom.pipeline.sweep.folder import SweepConfig, SweepFolder
from polyp_difom.pipeline.sweep.run import resolved
from polyp_difom.pipeline.sweep.space import parse_grid

OLD = "dinov2:small"
MAPS, ADDED = "teachers/dinov2-small/s8/embedding", "teachers/dinov2-small/s8/embedding-vflip-rot180"
Making = Callable[..., Path]
Distilling = Callable[..., DistillConfig]


def files(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != ".lock" and "ledger/values/c" not in name}


def changed(before: dict[str, bytes], folder: Path) -> list[str]:
    after = files(folder)
    return [name for name in before if after.get(name) != before[name]]


def cosines(store: FeatureStore) -> dict[str, float]:
    groups = store.summary()["measured"].items()
    return {view: value for group, measured in groups if "equivariance" in group for view, value in measured.items()}


@pytest.fixture(scope="module")
def making(frames: Path, extracting: Callable[..., ExtractConfig], tmp_path_factory: pytest.TempPathFactory) -> Making:
    """making(folder, views=2, ...) -> a complete store of three shards at two scales, of which there is one of each kind."""
    held: dict[tuple[Any, ...], Path] = {}

    def make(folder: Path, **changes: Any) -> Path:
        key = tuple(sorted(changes.items()))
        if key not in held:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(schema, "MOST_SAMPLES_PER_SHARD", 8)
                held[key] = tmp_path_factory.mktemp("kinds") / "s.zarr"
                extract(extracting(frames, held[key], **{"scales": ("s8", "s16"), **changes}))
        return Path(shutil.copytree(held[key], folder))

    return make


@pytest.fixture
def place(making: Making, tmp_path: Path) -> Path:
    """A store of two views."""
    return making(tmp_path / "s.zarr", views=2)


@pytest.fixture
def adding(tiny_teacher: Path) -> Callable[..., FeatureStore]:
    """Extends a store."""

    def add(place: Path, views: int | None = None, **changes: Any) -> FeatureStore:
        return extend(ExtendConfig(cache=str(place), device="cpu", views=views, weights={OLD: str(tiny_teacher)}, **changes))

    return add


@pytest.mark.parametrize(
    ("steps", "kind"),
    [((1, 2, 4), {}), ((1, 4), {"dtype": "int8", "spectra": "none"}), ((2, 4), {"spectra": "low"})],
)
def test_added_views_are_those_of_a_store_that_was_made_with_all_at_once(
    steps: tuple[int, ...], kind: dict[str, Any], making: Making, adding: Callable[..., FeatureStore], frames: Path,
    extracting: Callable[..., ExtractConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole, place = (
        FeatureStore.open(making(tmp_path / "w.zarr", views=4, **kind)),
        making(tmp_path / "s.zarr", views=steps[0], **kind),
    )
    for views in steps[1:]:
        before = files(place)
        store = adding(place, views)
        assert changed(before, place) == ["metadata.copy.json", "zarr.json"]
        assert store.manifest.views == whole.manifest.views[:views]
    assert compare(whole, store).equal
    for key in whole.manifest.arrays:
        assert store.read(key).tobytes() == whole.read(key).tobytes()
    assert cosines(store) == cosines(whole)
    assert store.verify() == prune(store) == []
    before = files(place)
    monkeypatch.setattr(schema, "MOST_SAMPLES_PER_SHARD", 8)
    asked = extracting(frames, place, scales=("s8", "s16"), **kind)
    assert extract(asked.model_copy(update={"views": 4})).is_complete
    with pytest.raises(CacheError, match="other settings"):
        extract(asked)
    assert files(place) == before


def test_other_readers_see_added_views_as_an_array_of_their_own(place: Path, adding: Callable[..., FeatureStore]) -> None:
    store = adding(place, 4)
    assert store.manifest.schema_version == 2  # what knows 1 alone says that it is older
    group = zarr.open_group(place, mode="r")
    np.testing.assert_array_equal(group[ADDED][...], store.read(MAPS)[:, 2:])
    np.testing.assert_array_equal(group[MAPS][...], store.read(MAPS)[:, :2])
    chunks = np.array([[3, 3], [0, 0], [21, 2], [3, 1], [3, 3]])
    fsspec.filesystem("memory").put(str(place), "/views.zarr", recursive=True)
    for found in (store.read(MAPS, chunks), FeatureStore.open("memory://views.zarr").read(MAPS, chunks, verify="always")):
        np.testing.assert_array_equal(found, store.read(MAPS)[tuple(chunks.T)])
    copy = FeatureStore.open(staged(str(place), place.parent / "stage"))
    np.testing.assert_array_equal(copy.read(MAPS, np.array([9, 2])), store.read(MAPS)[[9, 2]])


def test_scales_and_views_are_added_in_any_order(making: Making, adding: Callable[..., FeatureStore], tmp_path: Path) -> None:
    place, whole = making(tmp_path / "s.zarr", views=1, scales=("s8",)), FeatureStore.open(making(tmp_path / "w.zarr", views=4))
    for change in ({"views": 2}, {"scales": ("s16",)}, {"views": 4}):
        store = adding(place, **change)
    for key in whole.manifest.arrays:
        np.testing.assert_array_equal(store.read(key), whole.read(key))
    assert list(store.manifest.pieces(MAPS)) == [MAPS, f"{MAPS}-hflip", ADDED]
    assert store.verify() == []


def test_a_killed_extension_leaves_the_old_store_and_the_same_command_ends_at_the_same_bytes(
    place: Path, making: Making, adding: Callable[..., FeatureStore], tiny_teacher: Path, tmp_path: Path
) -> None:
    before, uninterrupted, old = files(place), making(tmp_path / "u.zarr", views=2), FeatureStore.open(place)
    adding(uninterrupted, 4)
    code = (
        "import os, signal; from polyp_difom.cache.store import FeatureStore as S; real = S.write_shard\n"
        "S.write_shard = lambda self, n, *a: real(self, n, *a) if n < 2 else os.kill(os.getpid(), signal.SIGKILL)\n"
        "from polyp_difom.pipeline.extend import ExtendConfig as C, extend\n"
        f"extend(C(cache={str(place)!r}, device='cpu', views=4, weights={{{OLD!r}: {str(tiny_teacher)!r}}}))"
    )
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ}, capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (place / FeatureStore.open(uninterrupted).sharded(ADDED).file(1)).exists()
    assert changed(before, place) == []
    reopened = FeatureStore.open(place)
    assert reopened.verify() == []
    assert reopened.manifest == old.manifest
    assert "vflip" not in str(reopened.summary()["measured"])
    written: list[int] = []
    real = FeatureStore.write_shard
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureStore, "write_shard", lambda self, n, *rest: (written.append(n), real(self, n, *rest)))
        adding(place, 4)
    assert written == [2]
    assert files(place) == files(uninterrupted)
    stamps = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.name != ".lock"}
    adding(place, 4)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.name != ".lock"} == stamps


def test_damaged_added_views_are_found_and_mended_and_lost_frames_extracted_again(
    place: Path, adding: Callable[..., FeatureStore], tiny_teacher: Path, frames: Path,
    extracting: Callable[..., ExtractConfig], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    store, weights = adding(place, 4), {OLD: str(tiny_teacher)}
    before, file = files(place), place / store.sharded(ADDED).file(1)
    raw = bytearray(file.read_bytes())
    raw[100] ^= 4
    file.write_bytes(raw)
    with pytest.raises(CacheError, match="embedding-vflip-rot180 is damaged"):
        FeatureStore.open(place).read(MAPS)
    damages = FeatureStore.open(place).verify()
    assert {(damage.key, damage.shard) for damage in damages} == {(ADDED, 1)}
    assert [mended.chunks for mended in repair(str(place), damages, weights=weights, device="cpu").mended] == [1]
    assert changed(before, place) == []
    (place / store.sharded(schema.IMAGE).file(1)).unlink()
    assert repair(str(place), store.verify(), weights=weights, device="cpu").pending == [1]
    monkeypatch.setattr(schema, "MOST_SAMPLES_PER_SHARD", 8)
    extract(extracting(frames, place, scales=("s8", "s16"), views=4))
    assert changed(before, place) == []
    likeness = recompute(FeatureStore.open(place), 2, weights=weights, device="cpu", seed=0)
    assert [row.key for row in likeness] == [key for key in store.manifest.whole() if key.startswith("teachers/")]
    assert {row.exact for row in likeness} == {1.0}


def test_commands_know_added_views(place: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    def call(*words: str) -> str:
        result = CliRunner().invoke(app, ["cache", *words])
        assert result.exit_code == 0, result.stderr
        return result.stdout

    said = call("extend", str(place), "--views", "4", "--weights", f"{OLD}={tiny_teacher}", "--device", "cpu")
    assert "dinov2:small at s8, s16, 4 views, complete" in said
    told = call("info", str(place))
    assert "identity, hflip, vflip, rot180" in told
    assert "4 x 16 x 8 x 8" in told
    assert [line for line in told.splitlines() if "flipped" in line and "dinov2-small" in line and "rot180" in line]
    call("show", str(place), "-o", str(tmp_path / "s.png"), "--view", "rot180")
    call("export", str(place), "-o", str(tmp_path / "plain"), "--scales", "s8")
    np.testing.assert_array_equal(np.load(tmp_path / f"plain/{MAPS}.npy"), FeatureStore.open(place).read(MAPS))


@pytest.mark.parametrize(
    ("views", "said"), [(3, "no such number of views"), (1, "no such number of views"), (2, "holds more views")]
)
def test_views_that_cannot_be_added_are_refused(
    views: int, said: str, making: Making, adding: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    place = making(tmp_path / "s.zarr", views=4)
    before = files(place)
    with pytest.raises(UsageError, match=said):
        adding(place, views)
    assert files(place) == before


def test_views_are_not_added_to_an_incomplete_store_nor_where_the_disk_is_full_nor_by_another_teacher(
    place: Path, adding: Callable[..., FeatureStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, before = FeatureStore.open(place, writable=True), files(place)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))  # type: ignore[attr-defined]
        with pytest.raises(CacheError, match="will not fit"):
            adding(place, 4)
    with monkeypatch.context() as patch:
        patch.setattr("polyp_difom.pipeline.extend.weights_digest", lambda encoder: "another")
        with pytest.raises(CacheError, match="another one"):
            adding(place, 4)
    assert files(place) == before
    with store.writing():
        store.mark_pending(1)
    with pytest.raises(CacheError, match="incomplete"):
        adding(place, 4)


class Stopping(Progress):
    """Ctrl-C after the first epoch."""

    def say(self, text: str) -> None:
        if text.startswith("epoch 1/"):
            raise KeyboardInterrupt


def test_a_stopped_run_goes_on_with_the_views_that_it_began_with(
    place: Path, adding: Callable[..., FeatureStore], distilling: Distilling, tmp_path: Path
) -> None:
    config = distilling(cache=str(place), epochs=2)
    whole = distill(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        distill(config, tmp_path / "run", Stopping())
    adding(place, 4)
    done = CliRunner().invoke(app, ["distill", "--resume", "-o", str(tmp_path / "run")])
    assert done.exit_code == 0, done.stderr
    assert RunFolder(tmp_path / "run").last.read_bytes() == whole.last.read_bytes()
    narrow, wide = (distill(config.model_copy(update={"views": n}), tmp_path / str(n)) for n in (2, None))
    (wanted, first), (found, second), (other, third) = (read_checkpoint(run.last) for run in (whole, narrow, wide))
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert not all(torch.equal(other[name], value) for name, value in wanted.items())
    assert (first["reads"], first["views"], third["views"]) == (second["reads"], 2, 4)
    assert conflicting(first, third)


def test_what_was_begun_before_keeps_its_digests_and_its_views(
    place: Path, making: Making, adding: Callable[..., FeatureStore], distilling: Distilling, tmp_path: Path
) -> None:
    old, factors = FeatureStore.open(place), parse_grid("student=unet:4 objective=multiscale seed=0..1")
    folder = SweepFolder(tmp_path / "sweep")
    (tmp_path / "sweep").mkdir()
    folder.create(resolved(SweepConfig(cache=str(place), factors=factors, device="cpu", jobs=1, threads=1), old))
    before, new = parts(old.manifest), adding(place, 4)
    assert before == parts(new.manifest, 1) == parts(new.manifest, 2) != parts(new.manifest)
    assert parts(new.manifest) == parts(FeatureStore.open(making(tmp_path / "w.zarr", views=4)).manifest)
    assert lost(before, of_store(new.manifest)) == lost(parts(new.manifest), of_store(new.manifest)) == []
    assert list(lost(parts(new.manifest), of_store(old.manifest))) == list(before)
    assert (views_read(before, new.manifest), views_read(parts(new.manifest), new.manifest)) == (2, 4)
    begun = folder.agreed(resolved(folder.config(), new))
    assert begun.reads == before
    assert [views_of(trial.config(begun.cache, begun.reads), new) for trial in begun.planned()] == [2, 2]
    assert views_of(distilling(cache=str(place)), new) is None
