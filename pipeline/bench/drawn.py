"""A small store of drawn frames and random maps: all that a training step reads, with no teacher run, for timing.

Shapes: n samples, v views, c stored channels, i a teacher's channels, h w grid, s frame side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from polyp_difom.cache.manifest import BasisEntry, Manifest, Spectra, SplitEntry
from polyp_difom.cache.samples import SampleTable
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.basis import Basis, mixing_kind
from polyp_difom.pipeline.data.frames import views
from polyp_difom.pipeline.data.synthetic import draw
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.runner import Arrays
from polyp_difom.pipeline.teachers.protocol import Teacher, TeacherSpec

DISTINCT = 16
"""Frames that are drawn; more are repeats of these."""


@dataclass(frozen=True)
class Layout:
    """A store's shape, by default what `extract` makes; spectra are left to be computed from the maps."""

    size: int
    views: int = 4
    scales: tuple[str, ...] = ("s8", "s16", "s32")
    channels: int = 64
    spectra: Spectra = "none"
    dtype: schema.MapType = "float16"


def stand_ins(count: int = 2) -> list[Teacher]:
    """Passports of so many teachers, with nothing behind them."""
    specs = [TeacherSpec(f"drawn:{n}", 352, "unit", (16,), (256,), "none", "none") for n in range(count)]
    return [Teacher(spec, nn.Identity()) for spec in specs]


def drawn_training(
    path: Path, teachers: Sequence[Teacher], train: int, val: int, size: int, precision: str, progress: Progress
) -> FeatureStore:
    """A complete store with frames of side `size`, and standard normal numbers for these teachers' maps."""
    layout, count = Layout(size), train + val
    digests, side = [f"{number:064x}" for number in range(count)], np.full(count, size, np.int32)
    splits = ["train"] * train + ["val"] * val
    samples = SampleTable([f"drawn{n}" for n in range(count)], digests, digests, digests, side, side, splits, ["drawn"] * count)
    manifest = Manifest(
        dataset_digest=samples.digest(), datasets=(), split=SplitEntry(policy="none", seed=0, val_fraction=0.0),
        frame_size=size, views=views(layout.views), scales=schema.scale_cells(size, layout.scales),
        teachers=tuple(schema.teacher_entry(teacher, layout) for teacher in teachers),
        basis=BasisEntry(channels=layout.channels, frames=0, seed=0), spectra=layout.spectra, precision=precision,
        samples_per_shard=schema.samples_per_shard(layout, list(teachers)), arrays=schema.arrays(layout, list(teachers)),
        software={},
    )  # fmt: skip
    store, rng = FeatureStore.create(path, manifest, samples), np.random.default_rng(0)
    scenes = [draw(seed, size) for seed in range(min(count, DISTINCT))]
    frames: Arrays = {
        schema.IMAGE: np.stack([image.transpose(2, 0, 1) for image, _ in scenes]),
        schema.MASK: np.stack([mask for _, mask in scenes]).astype(np.uint8),
    }
    with store.writing(), progress.task("drawing a store", len(store.shards)) as advance:
        for teacher in teachers:
            _write_bases(store, teacher, rng)
        for number, rows in enumerate(store.shards):
            arrays = {key: _drawn((len(rows), *spec.shape), rng) for key, spec in manifest.arrays.items()
                      if key not in frames}  # fmt: skip
            held = {key: values[np.arange(rows.start, rows.stop) % len(scenes)] for key, values in frames.items()}
            store.write_shard(number, held | arrays, {"teacher_seconds": 0.0, "decode_seconds": 0.0, "attempts": 1.0})
            advance(1)
    return FeatureStore.open(path)


def _drawn(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float16]:
    return rng.standard_normal(shape, np.float32).astype(np.float16)


def _write_bases(store: FeatureStore, teacher: Teacher, rng: np.random.Generator) -> None:
    """Random orthonormal rows [c, i] for each map of a teacher."""
    entry = next(entry for entry in store.manifest.teachers if entry.name == teacher.spec.name)
    for number, scales in schema.maps_of_scales(teacher.spec, store.manifest.frame_size, tuple(store.manifest.scales)).items():
        channels, native = entry.channels_at(scales[0]), teacher.spec.channels[number]
        rotation = np.linalg.qr(rng.standard_normal((native, channels)))[0].T
        basis = Basis(np.zeros(native), rotation, 1.0, np.full(native, 1 / native), mixing_kind(channels))
        record = schema.basis_record(basis, dict.fromkeys(scales, 1.0))
        store.write_constants(schema.basis_of(entry, scales[0]), *record)
