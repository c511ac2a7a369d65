"""The live teachers against what a store says they said: run again on the store's own frames.

Shapes: b batch, k samples, v views, c channels, h w grid, s frame side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from polyp_difom.cache.errors import CacheError, UsageError
from polyp_difom.cache.manifest import TeacherEntry
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.device import enough_memory, keep_freed_memory, pick_device, pick_precision
from polyp_difom.pipeline.plan import ExtractConfig
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.runner import Arrays, Runner
from polyp_difom.pipeline.teachers.protocol import Teacher, full_name, load_teacher, weights_digest

BATCH: int = ExtractConfig.model_fields["batch_size"].default
"""Images at once, as `extract` takes them by default: sums in another order round otherwise."""
ALIKE = 0.98
"""Least cosine of a stored map and the live one; other hardware rounds bfloat16 otherwise, other weights are far below."""


@dataclass(frozen=True)
class Likeness:
    """One array of a store against the live teacher, over all views of some samples.

    Attributes:
        key: of the array.
        teacher, scale, kind: what it holds; kind is "embedding" or "spectrum".
        cosine: mean over (sample, view) of the cosine of stored and live values.
        worst, worst_sample: the least of them, and where.
        error: norm of the difference over the norm of the live values.
        exact: share of (sample, view) that are equal bit for bit.
    """

    key: str
    teacher: str
    scale: str
    kind: str
    cosine: float
    worst: float
    worst_sample: str
    error: float
    exact: float


def teacher_arrays(store: FeatureStore, entry: TeacherEntry) -> dict[str, tuple[str, str]]:
    """Keys of a teacher's arrays, with scale and kind."""
    keys = {}
    for scale in store.manifest.scales:
        keys[schema.embedding_key(entry.name, scale)] = scale, "embedding"
        keys[schema.spectrum_key(entry.name, scale)] = scale, "spectrum"
    arrays = store.manifest.arrays.items()
    return {name: keys[key] for name, spec in arrays if (key := spec.continues.key if spec.continues else name) in keys}


class LiveTeacher:
    """A teacher of a store, loaded again and held to the weights that made the store.

    Raises:
        CacheError: other weights or preprocessing, or its basis is missing.
        MissingDependencyError, UsageError: it cannot be loaded.
    """

    def __init__(self, store: FeatureStore, entry: TeacherEntry, weights: str | None, device: torch.device, progress: Progress):
        teacher = load_teacher(entry.name, weights, entry.input_size, progress.say)
        _require_same(store, entry, teacher)
        manifest = store.manifest
        maps = schema.maps_of_scales(teacher.spec, manifest.frame_size, tuple(manifest.scales))
        bases = {number: schema.stored_basis(store, entry, scales) for number, scales in maps.items()}
        self.store, self.device, self.bases = store, device, {entry.name: bases}
        own = manifest.model_copy(update={"arrays": {key: manifest.arrays[key] for key in teacher_arrays(store, entry)}})
        self.runner = Runner([teacher], own, {entry.name: maps}, self._frame, device, BATCH, progress)

    def _frame(self, index: int) -> Arrays:
        return {schema.IMAGE: self.store.read(schema.IMAGE, np.array([index]))[0]}

    def arrays(self, rows: NDArray[np.int64]) -> Arrays:
        """What `extract` would store for these samples: its arrays by key, each [k, v, ...], made from `frames/image`."""
        with enough_memory(self.device):
            return self.runner.shard([self._frame(int(row)) for row in rows], self.bases, lambda n: None)[0]


def weights_of(store: FeatureStore, weights: Mapping[str, str]) -> dict[str, str]:
    """Given weights under the teachers' full names.

    Raises:
        UsageError: weights for a teacher that the store does not hold.
    """
    held = [entry.name for entry in store.manifest.teachers]
    named = {full_name(name): source for name, source in weights.items()}
    if strangers := sorted(set(named) - set(held)):
        raise UsageError("weights for a teacher that the store does not hold", got=strangers[0], wanted=", ".join(held))
    return named


def recompute(
    store: FeatureStore,
    count: int,
    *,
    weights: Mapping[str, str] | None = None,
    device: str = "auto",
    seed: int | None = None,
    progress: Progress | None = None,
) -> list[Likeness]:
    """Run every teacher on `count` random samples under every view, in the store's precision, and compare.

    Args:
        store: at least one shard complete.
        weights: by teacher, where `extract` was told some.
        seed: of the choice; None takes other samples each time.

    Raises:
        CacheError: no shard is complete, other weights, or a damaged chunk.
        MissingDependencyError, UsageError: a teacher that cannot be loaded.
    """
    progress = progress or Progress()
    keep_freed_memory()
    place = pick_device(device)
    pick_precision(place, store.manifest.precision)
    given = weights_of(store, weights or {})
    ready = np.flatnonzero(store.done().repeat(store.manifest.samples_per_shard)[: len(store)])
    if not len(ready):
        raise CacheError("no shard is complete yet", where=store.location, remedy="run extract")
    rows = np.sort(np.random.default_rng(seed).choice(ready, min(count, len(ready)), replace=False))
    found = []
    with progress.task("running teachers", len(rows) * len(store.manifest.teachers)) as advance:
        for entry in store.manifest.teachers:
            live = LiveTeacher(store, entry, given.get(entry.name), place, progress)
            parts: dict[str, list[NDArray[np.float64]]] = {}
            for start in range(0, len(rows), BATCH):
                here = rows[start : start + BATCH]
                made = live.arrays(here)
                for key in filter(store.manifest.whole().__contains__, made):
                    values = np.concatenate([made[name] for name in store.manifest.pieces(key)], 1)
                    parts.setdefault(key, []).append(_sums(store.read(key, here), values))
                advance(len(here))
            found += [_likeness(store, entry, key, np.concatenate(sums), rows) for key, sums in parts.items()]
    return found


def require_alike(store: FeatureStore, found: list[Likeness]) -> None:
    """Raises CacheError where a stored map is not what the live teacher says (see `ALIKE`)."""
    worst = min(found, key=lambda row: row.worst)
    if worst.worst < ALIKE:
        raise CacheError(
            f"{worst.key} is not what {worst.teacher} says about sample {worst.worst_sample!r}",
            where=store.location, got=f"cosine {worst.worst:.4f}", wanted=f"at least {ALIKE}",
            remedy="extract into another --cache, and compare with `polyp-difom cache diff`",
        )  # fmt: skip


def _require_same(store: FeatureStore, entry: TeacherEntry, teacher: Teacher) -> None:
    got = {"weights sha256": weights_digest(teacher.encoder), "preprocessing": teacher.spec.preprocessing}
    wanted = {"weights sha256": entry.weights_digest, "preprocessing": entry.preprocessing}
    for what in got:
        if got[what] != wanted[what]:
            raise CacheError(
                f"this {entry.name} is not the one that made the store", where=store.location, got=f"{what} {got[what]}",
                wanted=f"{what} {wanted[what]}", remedy=f"give the same --weights {entry.name}=PATH as to extract",
            )  # fmt: skip


def _sums(stored: NDArray, live: NDArray) -> NDArray[np.float64]:
    """Per (sample, view) [k, v, 4]: <stored, live>, |stored|^2, |live|^2, |stored - live|^2."""
    a, b = (values.reshape(*values.shape[:2], -1).astype(np.float64) for values in (stored, live))
    return np.stack([(a * b).sum(-1), (a * a).sum(-1), (b * b).sum(-1), np.square(a - b).sum(-1)], -1)


def _likeness(
    store: FeatureStore, entry: TeacherEntry, key: str, sums: NDArray[np.float64], rows: NDArray[np.int64]
) -> Likeness:
    scale, kind = teacher_arrays(store, entry)[key]
    norms = np.sqrt(sums[..., 1] * sums[..., 2])
    cosines = np.divide(sums[..., 0], norms, out=(sums[..., 3] == 0).astype(np.float64), where=norms > 0)
    worst = int(cosines.min(1).argmin())
    return Likeness(
        key=key, teacher=entry.name, scale=scale, kind=kind, cosine=float(cosines.mean()), worst=float(cosines.min()),
        worst_sample=store.samples.ids[int(rows[worst])], error=float(np.sqrt(sums[..., 3].sum() / sums[..., 2].sum())),
        exact=float((sums[..., 3] == 0).mean()),
    )  # fmt: skip
