"""Training on a part of a store: the same as on a store that holds no more than that part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from polyp_difom.cache.errors import UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema, spectra
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.feed import Feed, target_specs
from polyp_difom.pipeline.objectives.protocol import Needs
from polyp_difom.pipeline.plan import ExtractConfig
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.runs import read_checkpoint
from polyp_difom.pipeline.shelf import Shelf
from polyp_difom.pipeline.subset import Subset, choose_subset

from .tiny_teachers import saved

CPU = torch.device("cpu")
DINO, RESNET = "dinov2:small", "hf:resnet"
Extracting = Callable[..., ExtractConfig]
Distilling = Callable[..., DistillConfig]


def maps_of(store: FeatureStore, subset: Subset | None, teacher: str, needs: Needs | None = None) -> dict:
    """Whole train arrays of a teacher, by (teacher, scale)."""
    scales = subset.scales if subset else tuple(store.manifest.scales)
    keys = [(teacher, scale) for scale in scales]
    return Feed(store, "train", keys, needs or Needs(maps=True), CPU, 0, Shelf(store, CPU, Progress()), subset).maps


@pytest.fixture(scope="module")
def narrow_and_wide(
    extracting: Extracting, frames: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], tuple[FeatureStore, FeatureStore]]:
    """Stores of two teachers, one with several maps, at some number of channels and at 16 or more of each map."""
    settings = {
        "teachers": (DINO, RESNET), "limit": 10,
        "weights": {RESNET: saved(RESNET)} | extracting(frames, Path("-")).weights,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("subsets")
    wide = extract(extracting(frames, folder / "wide.zarr", **settings, channels=20))

    def make(channels: int) -> tuple[FeatureStore, FeatureStore]:
        return extract(extracting(frames, folder / f"{channels}.zarr", **settings, channels=channels)), wide

    return make


@pytest.mark.parametrize("channels", [16, 6])
def test_fewer_channels_are_what_a_store_of_that_many_would_hold(
    channels: int, narrow_and_wide: Callable[[int], tuple[FeatureStore, FeatureStore]]
) -> None:
    narrow, wide = narrow_and_wide(channels)
    entries = {entry.name: entry for entry in wide.manifest.teachers}
    assert len(entries[RESNET].maps) > 1
    assert min(entry.channels for entry in entries[RESNET].maps) <= 16  # one map has no more than it keeps
    subset = choose_subset(wide, tuple(entries), channels=channels)
    own, specs = target_specs(narrow, tuple(entries)), target_specs(wide, tuple(entries), subset)
    assert own.keys() == specs.keys()
    for key, spec in specs.items():
        assert (spec.channels, spec.cells, spec.stride) == (own[key].channels, own[key].cells, own[key].stride)
        assert spec.std == pytest.approx(own[key].std, rel=2e-3)
    for name in entries:
        for needs in (Needs(maps=True), Needs(spectra=True)):
            wanted, found = maps_of(narrow, None, name, needs), maps_of(wide, subset, name, needs)
            for key, maps in found.items():
                torch.testing.assert_close(maps, wanted[key], rtol=3e-3, atol=1e-2)
                assert (maps.float() - wanted[key].float()).norm() < 1e-3 * wanted[key].float().norm()


def test_fewer_views_are_the_first_and_frames_are_flipped_among_these_alone(store: FeatureStore) -> None:
    subset = choose_subset(store, (DINO,), views=1)
    shelf = Shelf(store, CPU, Progress())
    held = Feed(store, "train", [(DINO, "s16")], Needs(maps=True), CPU, 0, shelf, subset)
    rows = np.array([row for row, split in enumerate(store.samples.split) if split == "train"])
    stored = torch.from_numpy(store.read(schema.embedding_key(DINO, "s16"), rows))
    assert held.axes == [()] or held.axes == [[]]
    assert torch.equal(held.maps[DINO, "s16"], stored[:, :1])
    batches = list(held.epoch(0, 4, seed=0, affine=False))
    plain = {frame.numpy().tobytes() for batch in held.plain(4) for frame in batch.masks}
    assert all(mask.numpy().tobytes() in plain for batch in batches for mask in batch.masks)
    both = Feed(store, "train", [(DINO, "s16")], Needs(maps=True), CPU, 0, shelf)  # the same shelf, now asked for more
    assert torch.equal(both.maps[DINO, "s16"], stored)
    again = Feed(store, "train", [(DINO, "s16")], Needs(maps=True), CPU, 0, shelf, subset)
    assert torch.equal(again.maps[DINO, "s16"], stored[:, :1])


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"scales": ("s8", "s4")}, r"scale 's4'.*s8, s16, s32"),
        ({"channels": 17}, r"fewer channels.*channels = 17.*at most 16.*leave --channels out, or .* extract --channels 17 "),
        ({"channels": 33}, r"fewer channels.*at most 16.*leave --channels out$"),  # more than the teacher has
        ({"views": 3}, r"fewer views.*views = 3.*at most 2.*leave --views out, or .* cache extend .* --views 4$"),
        ({"views": 5}, r"fewer views.*at most 2.*leave --views out$"),
    ],
)
def test_what_the_store_does_not_hold_is_refused(distilling: Distilling, tmp_path: Path, wanted: dict, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        distill(distilling(**wanted), tmp_path / "run")
    text = " ".join([caught.value.what, *map(str, caught.value.details.values())])
    assert __import__("re").search(says, text)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("objective", ["multiscale", "paper"])
def test_a_run_on_a_subset_records_it_and_leaves_the_store_alone(
    objective: str, distilling: Distilling, store: FeatureStore, tmp_path: Path
) -> None:
    path = store.location.path
    assert path is not None
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    wanted = {"teachers": ("dinov2",), "scales": ("s32", "s16"), "channels": 8, "views": 1}
    run = distill(distilling(objective=objective, epochs=1, **wanted), tmp_path / "run")
    recorded = {"teachers": [DINO], "scales": ["s16", "s32"], "channels": 8, "views": 1}
    assert {name: run.config()[name] for name in recorded} == recorded
    header = read_checkpoint(run.best)[1]
    assert {name: header[name] for name in recorded} == recorded
    assert any("/s16/" in name for name in run.history()[0])
    assert not any("/s8/" in name for name in run.history()[0])
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_a_whole_store_is_recorded_as_such_and_trains_as_before(
    distilling: Distilling, store: FeatureStore, tmp_path: Path
) -> None:
    plain = distill(distilling(epochs=1), tmp_path / "plain")
    named = distill(distilling(epochs=1, scales=("s8", "s16", "s32"), channels=16, views=2), tmp_path / "named")
    assert plain.config() == named.config()
    assert plain.last.read_bytes() == named.last.read_bytes()


def test_a_store_without_spectra_is_half_the_size_and_teaches_paper_the_same(
    extracting: Extracting, distilling: Distilling, store: FeatureStore, frames: Path, tmp_path: Path
) -> None:
    bare = extract(extracting(frames, tmp_path / "bare.zarr", spectra="none"))
    assert not any("spectrum" in key for key in bare.manifest.arrays)
    assert bare.verify() == []
    for key in bare.manifest.arrays:
        np.testing.assert_array_equal(bare.read(key), store.read(key))
    needs, keys = Needs(spectra=True), [(DINO, "s32")]
    one, two = (
        next(iter(Feed(held, "train", keys, needs, CPU, 0, Shelf(held, CPU, Progress())).epoch(0, 4, seed=0, affine=False)))
        for held in (store, bare)
    )
    torch.testing.assert_close(one.targets.spectra[keys[0]], two.targets.spectra[keys[0]], rtol=5e-3, atol=5e-3)
    assert spectra.energy(two.targets.spectra[keys[0]], 2).min() > 0
    run = distill(distilling(cache=str(bare.location), objective="paper", epochs=2), tmp_path / "run")
    assert len(run.history()) == 2
