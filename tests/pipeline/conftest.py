"""A small store whose maps can be foreseen: each view's map is the area-averaged frame of that view."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from polyp_difom.cache.manifest import ArraySpec, BasisEntry, DatasetEntry, Manifest, SplitEntry, TeacherEntry
from polyp_difom.cache.samples import SampleTable
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema, spectra
from polyp_difom.pipeline.basis import Basis
from polyp_difom.pipeline.data.frames import flip_axes, views
from polyp_difom.pipeline.data.synthetic import draw
from polyp_difom.pipeline.resample import area_resample

SIDE = 64
SCALES = {"s8": 8, "s16": 4}
TEACHER = "toy:a"
LEDGER = {"teacher_seconds": 1.0, "decode_seconds": 1.0, "attempts": 1.0}

StoreMaker = Callable[..., FeatureStore]


def smooth_frame(number: int) -> NDArray[np.uint8]:
    """A frame uint8 [3, s, s] of a few broad waves, different for each number and under each flip."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    frame = np.stack([
        np.cos(2 * np.pi * (rng.uniform(-0.8, 0.8) * x + rng.uniform(-0.8, 0.8) * y + rng.uniform())) for _ in range(3)
    ])  # fmt: skip
    return ((frame + 1) * 127).astype(np.uint8)


def make_manifest(samples: SampleTable, kind: str, n_views: int) -> Manifest:
    arrays = {
        schema.IMAGE: ArraySpec(shape=(3, SIDE, SIDE), dtype="uint8", chunk_dims=0, compressed=True),
        schema.MASK: ArraySpec(shape=(SIDE, SIDE), dtype="uint8", chunk_dims=0, compressed=True),
    }
    for scale, cells in SCALES.items():
        rows = {
            schema.embedding_key(TEACHER, scale): (n_views, 3, cells, cells),
            schema.spectrum_key(TEACHER, scale): (n_views, 3, *spectra.spectrum_shape(cells, kind)),
        }
        arrays |= {key: ArraySpec(shape=s, dtype="float16", chunk_dims=1, compressed=False) for key, s in rows.items()}
    teacher = TeacherEntry(
        name=TEACHER, weights_digest="00", input_size=SIDE, preprocessing="minmax", stride=8, native_channels=3, channels=3,
        licence="none", contamination="none",
    )  # fmt: skip
    return Manifest.model_validate({
        "dataset_digest": samples.digest(),
        "datasets": (DatasetEntry(name="toy", layout="pair", frames=len(samples)),),
        "split": SplitEntry(policy="auto", seed=0, val_fraction=0.1),
        "frame_size": SIDE, "views": views(n_views), "scales": SCALES, "teachers": (teacher,),
        "basis": BasisEntry(channels=3, frames=1, seed=0),
        "spectra": kind, "precision": "float32", "samples_per_shard": 4, "arrays": arrays, "software": {},
    })  # fmt: skip


def payload(rows: range, manifest: Manifest) -> dict[str, NDArray]:
    images = np.stack([smooth_frame(number) for number in rows])
    arrays: dict[str, NDArray] = {schema.IMAGE: images, schema.MASK: (images[:, 0] > 127).astype(np.uint8)}
    flips = [torch.from_numpy(images).flip(flip_axes(view)).float() / 255 for view in manifest.views]
    for scale, cells in SCALES.items():
        maps = area_resample(torch.stack(flips, 1), cells)
        spec = spectra.spectrum(maps)
        stored = spectra.pack(spectra.low_block(spec) if manifest.spectra == "low" else spec)
        arrays[schema.embedding_key(TEACHER, scale)] = maps.half().numpy()
        arrays[schema.spectrum_key(TEACHER, scale)] = stored.half().numpy()
    return arrays


@pytest.fixture
def make_store(tmp_path: Path) -> StoreMaker:
    """make_store(kind="full", n_views=4, n=10) -> a complete store of 64-pixel frames; the last two are for validation."""

    def make(kind: str = "full", n_views: int = 4, n: int = 10) -> FeatureStore:
        samples = SampleTable(
            ids=[f"frame{i}" for i in range(n)], sha256=[f"{i:064x}" for i in range(n)],
            mask_sha256=[f"{i:064x}" for i in range(n)],
            pixel_sha256=[f"{i:064x}" for i in range(n)],
            height=np.full(n, SIDE, np.int32), width=np.full(n, SIDE, np.int32),
            split=["train"] * (n - 2) + ["val"] * 2, dataset=["toy"] * n,
        )  # fmt: skip
        manifest = make_manifest(samples, kind, n_views)
        store = FeatureStore.create(tmp_path / f"{kind}{n_views}-{n}.zarr", manifest, samples)
        basis = Basis(np.zeros(3), np.eye(3), 1.0, np.array([0.5, 0.3, 0.2]), "random-orthogonal")
        with store.writing():
            store.write_constants(schema.basis_group(TEACHER), *schema.basis_record(basis, dict.fromkeys(SCALES, 0.25)))
            for number, rows in enumerate(store.shards):
                store.write_shard(number, payload(rows, manifest), LEDGER)
        return store

    return make


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "taught"))


@pytest.fixture(scope="session")
def odd_pictures() -> list[NDArray[np.uint8]]:
    """Three frames of 131 x 97, 200 x 90 and 66 x 65 pixels (width x height)."""
    sizes = [(131, 97), (200, 90), (66, 65)]
    return [np.array(Image.fromarray(draw(seed, 256)[0]).resize(size)) for seed, size in enumerate(sizes)]
