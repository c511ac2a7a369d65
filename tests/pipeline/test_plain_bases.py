"""Stores in a plainer basis than PHI-S: recorded, read, extended and mended like others, and never mixed with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.extend import ExtendConfig, extend
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.feed import target_specs
from polyp_difom.pipeline.plan import ExtractConfig
from polyp_difom.pipeline.recompute import recompute
from polyp_difom.pipeline.subset import choose_subset, deviation, narrowing

DINO = "dinov2:small"
Extracting = Callable[..., ExtractConfig]


@pytest.fixture(scope="module", params=["pca", "standard"])
def plain(
    request: pytest.FixtureRequest, extracting: Extracting, frames: Path, tmp_path_factory: pytest.TempPathFactory
) -> FeatureStore:
    """The store of `store`'s frames in another basis, of one scale; its test extends it."""
    path = tmp_path_factory.mktemp("plain") / "store.zarr"
    return extract(extracting(frames, path, basis=request.param, scales=("s8",), spectra="none"))


def variances(store: FeatureStore, scale: str) -> np.ndarray:
    train = [row for row, split in enumerate(store.samples.split) if split == "train"]
    maps = store.read(schema.embedding_key(DINO, scale))[train, 0].astype(np.float64)
    return maps.var((0, 2, 3))


def test_its_channels_are_what_its_name_says_and_its_deviation_is_known(plain: FeatureStore) -> None:
    found = variances(plain, "s8")
    np.testing.assert_allclose(found.mean(), 1, rtol=0.05)
    if plain.manifest.basis.kind == "standard":
        np.testing.assert_allclose(found, 1, rtol=0.1)
    else:
        assert (np.diff(found) < 0.05).all()
        assert found[0] > 2 * found[-1]
    (spec,) = target_specs(plain, (DINO,)).values()
    assert spec.std == pytest.approx(found.mean() ** 0.5, rel=0.05)


def test_fewer_channels_are_the_leading_ones_with_their_own_deviation(plain: FeatureStore) -> None:
    (entry,) = plain.manifest.teachers
    subset = choose_subset(plain, (DINO,), channels=2)
    weight = narrowing(plain, entry, "s8", subset)
    assert weight is not None
    kept = torch.einsum("kc,nchw->nkhw", weight, torch.from_numpy(plain.read(schema.embedding_key(DINO, "s8"))[:, 0]).float())
    assert kept.shape[1] == 2
    assert deviation(plain, entry, "s8", subset) == pytest.approx(kept.std().item(), rel=0.15)


def test_another_basis_is_never_mixed_in(plain: FeatureStore, extracting: Extracting, frames: Path) -> None:
    assert plain.location.path is not None
    with pytest.raises(CacheError, match=r"basis\.kind"):
        extract(extracting(frames, plain.location.path, scales=("s8",), spectra="none"))


def test_an_added_scale_is_in_the_same_basis_and_the_live_teacher_agrees(plain: FeatureStore, tiny_teacher: Path) -> None:
    extend(ExtendConfig(cache=str(plain.location), scales=("s16",), weights={DINO: str(tiny_teacher)}, device="cpu"))
    larger = FeatureStore.open(str(plain.location))
    assert larger.manifest.basis == plain.manifest.basis
    assert list(larger.manifest.scales) == ["s8", "s16"]
    live = recompute(larger, 2, weights={DINO: str(tiny_teacher)}, device="cpu")
    assert min(row.worst for row in live) > 0.999
