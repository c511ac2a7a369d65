"""Maps stored as int8: half the bytes, a small and recorded error, and every command that reads or mends a store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from polyp_difom.cache.compare import compare
from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.exporting import export
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.extend import ExtendConfig, extend
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.feed import Feed, target_specs
from polyp_difom.pipeline.objectives.protocol import Needs
from polyp_difom.pipeline.plan import ExtractConfig
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.quantise import fit_steps, quantise, relative_error
from polyp_difom.pipeline.recompute import recompute
from polyp_difom.pipeline.repair import repair
from polyp_difom.pipeline.shelf import Shelf
from polyp_difom.pipeline.showing import show
from polyp_difom.pipeline.subset import choose_subset

CPU, MAPS = torch.device("cpu"), Needs(maps=True)
DINO, SCALES = "dinov2:small", ("s8", "s16", "s32")
Extracting = Callable[..., ExtractConfig]
Distilling = Callable[..., DistillConfig]


@pytest.fixture(scope="module")
def small(extracting: Extracting, frames: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """The store of `store`'s frames as int8, without spectra; never write to it."""
    return extract(extracting(frames, tmp_path_factory.mktemp("int8") / "small.zarr", dtype="int8", spectra="none"))


@pytest.fixture
def copied(small: FeatureStore, tmp_path: Path) -> Path:
    assert small.location.path is not None
    return Path(shutil.copytree(small.location.path, tmp_path / "copy.zarr"))


def unpacked(store: FeatureStore, scale: str) -> NDArray[np.float32]:
    key = schema.embedding_key(DINO, scale)
    return store.read(key) * schema.steps_of(store)[key]


def first_batch(store: FeatureStore, channels: int | None = None) -> torch.Tensor:
    subset = choose_subset(store, (DINO,), channels=channels)
    feed = Feed(store, "train", [(DINO, "s8")], MAPS, CPU, 0, Shelf(store, CPU, Progress()), subset)
    return next(iter(feed.epoch(0, 8, seed=0, affine=True))).targets.maps[DINO, "s8"]


def test_steps_of_normal_channels_cut_at_four_deviations_and_cost_a_hundredth() -> None:
    sizes = torch.tensor([0.01, 1.0, 30.0])
    maps = torch.randn(16, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * sizes[:, None, None]
    steps = fit_steps(maps)
    torch.testing.assert_close(steps * 127 / sizes, torch.full((3,), 4.0), rtol=0.1, atol=0)
    assert 0.008 < relative_error(maps, steps) < 0.011
    assert relative_error(maps, 2 * steps) > 1.5 * relative_error(maps, steps) < relative_error(maps, steps / 2)
    assert quantise(torch.tensor([-1e9, 0.0, 1e9]), torch.tensor(0.1)).tolist() == [-127, 0, 127]


def test_constant_maps_become_themselves() -> None:
    nothing = torch.zeros(2, 1, 4, 4)
    assert not quantise(nothing, fit_steps(nothing)[:, None, None]).any()
    assert relative_error(torch.full((2, 1, 4, 4), 5.0), fit_steps(torch.full((2, 1, 4, 4), 5.0))) < 0.02


def test_stored_maps_are_the_float_ones_up_to_the_recorded_error_in_half_the_bytes(
    small: FeatureStore, store: FeatureStore
) -> None:
    assert small.verify() == []
    recorded = schema.int8_errors(small)
    for scale in SCALES:
        key = schema.embedding_key(DINO, scale)
        assert small.read(key).dtype == np.int8
        exact = store.read(key).astype(np.float32)
        error = np.linalg.norm(unpacked(small, scale) - exact) / np.linalg.norm(exact)
        assert error == pytest.approx(recorded[DINO, scale], rel=0.5)
        assert 0.002 < error < 0.02
    ours, key = small.summary(), schema.embedding_key(DINO, "s8")
    assert 2 * ours["arrays"][key]["bytes"] < 1.2 * store.summary()["arrays"][key]["bytes"]
    measured = ours["measured"]["teachers/dinov2-small/basis"]
    assert {f"int8_error, {scale}" for scale in SCALES} < set(measured)
    assert target_specs(small, (DINO,)) == target_specs(store, (DINO,))


def test_other_readers_see_the_same_integers(small: FeatureStore) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    key = schema.embedding_key(DINO, "s16")
    kvstore = {"driver": "file", "path": f"{small.location}/{key}"}
    seen = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result().read().result()
    np.testing.assert_array_equal(seen, small.read(key))


def test_a_feed_gives_batches_in_the_maps_own_units_and_holds_integers(small: FeatureStore, store: FeatureStore) -> None:
    held = Feed(small, "train", [(DINO, "s8")], MAPS, CPU, 0, Shelf(small, CPU, Progress())).maps[DINO, "s8"]
    assert held.dtype == torch.int8
    for channels in (None, 8):
        ours, exact = first_batch(small, channels), first_batch(store, channels)
        assert 0.001 < (ours - exact).norm() / exact.norm() < 0.02


def test_a_killed_extraction_goes_on_with_the_same_bytes(
    extracting: Extracting, frames: Path, small: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = extracting(frames, tmp_path / "killed.zarr", dtype="int8", spectra="none")

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "write_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            extract(config)
    again = extract(config)
    for key in small.manifest.arrays:
        np.testing.assert_array_equal(again.read(key), small.read(key))
    assert again.manifest.signature() == small.manifest.signature()


def test_a_map_that_is_not_finite_is_refused(
    extracting: Extracting, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyp_difom.pipeline import runner

    spoilt = {"s16": lambda maps: maps.index_fill(0, torch.tensor([0]), float("nan"))}
    resample = runner.area_resample
    monkeypatch.setattr(
        runner,
        "area_resample",
        lambda maps, cells: spoilt["s16"](resample(maps, cells)) if cells == 4 else resample(maps, cells),
    )
    with pytest.raises(CacheError, match="s16/embedding is not finite"):
        extract(extracting(frames, tmp_path / "nan.zarr", dtype="int8", spectra="none"))


def test_the_live_teacher_says_the_same_and_mends_what_is_damaged(
    copied: Path, small: FeatureStore, tiny_teacher: Path
) -> None:
    found = recompute(FeatureStore.open(copied), 3, weights={DINO: str(tiny_teacher)}, device="cpu")
    assert min(row.worst for row in found) > 0.999
    key = schema.embedding_key(DINO, "s16")
    file = next(file for file in (copied / key / "c").rglob("*") if file.is_file())
    content = bytearray(file.read_bytes())
    content[40] ^= 8
    file.write_bytes(content)
    damages = FeatureStore.open(copied).verify()
    assert damages
    assert {damage.key for damage in damages} == {key}
    done = repair(str(copied), damages, weights={DINO: str(tiny_teacher)}, device="cpu")
    assert [(item.key, item.chunks) for item in done.mended] == [(key, 1)]
    np.testing.assert_array_equal(FeatureStore.open(copied).read(key), small.read(key))


def test_an_added_scale_is_int8_with_steps_of_its_own(copied: Path, small: FeatureStore, tiny_teacher: Path) -> None:
    weights = {DINO: str(tiny_teacher)}
    extended = extend(ExtendConfig(cache=str(copied), scales=("s4",), weights=weights, batch_size=8, device="cpu"))
    assert extended.read(schema.embedding_key(DINO, "s4")).dtype == np.int8
    assert set(schema.int8_errors(extended)) == {(DINO, scale) for scale in ("s4", *SCALES)}
    np.testing.assert_array_equal(unpacked(extended, "s8"), unpacked(small, "s8"))
    assert min(row.worst for row in recompute(extended, 2, weights=weights, device="cpu")) > 0.999
    assert target_specs(extended, (DINO,))[DINO, "s4"].channels == 16


def test_exported_maps_are_float16_and_in_their_own_units(small: FeatureStore, tmp_path: Path) -> None:
    key = schema.embedding_key(DINO, "s32")
    for to in ("npy", "safetensors"):
        export(small, tmp_path / to, to, [schema.MASK, key], ["train", "val"], steps=schema.steps_of(small))
    plain = np.load(tmp_path / "npy" / f"{key}.npy")
    assert plain.dtype == np.float16
    np.testing.assert_array_equal(plain, unpacked(small, "s32").astype(np.float16))
    raw = (tmp_path / "safetensors" / f"{key}.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert json.loads(raw[8 : 8 + length])[key]["dtype"] == "F16"
    assert raw[8 + length :] == plain.tobytes()


def test_pictures_of_maps_look_like_those_of_the_float_store(small: FeatureStore, store: FeatureStore) -> None:
    names = store.samples.ids[:2]
    ours, exact = (np.asarray(show(held, names), np.float32) for held in (small, store))
    assert ours.shape == exact.shape
    assert np.abs(ours - exact).mean() < 2


def test_a_comparison_with_the_float_store_names_the_settings(small: FeatureStore, store: FeatureStore) -> None:
    found = compare(small, store)
    assert not found.equal
    assert ("spectra", "none", "full") in found.settings
    assert (f"arrays.{schema.embedding_key(DINO, 's8')}.dtype", "int8", "float16") in found.settings
    assert {item.key for item in found.arrays} == {schema.IMAGE, schema.MASK}


def test_students_learn_from_int8_maps_as_from_float_ones(small: FeatureStore, distilling: Distilling, tmp_path: Path) -> None:
    for objective in ("multiscale", "paper"):
        ours = distill(distilling(objective=objective, epochs=1, cache=str(small.location)), tmp_path / f"{objective}-int8")
        exact = distill(distilling(objective=objective, epochs=1), tmp_path / objective)
        one, two = ours.history()[-1]["distillation"], exact.history()[-1]["distillation"]
        assert one == pytest.approx(two, rel=0.02)
        assert one != two
