"""What is measured once, before the first shard: each teacher's channel bases, and what flips and precision do to its maps.

Shapes: b batch, n samples, v views, c channels, h w grid, s frame side.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.inspection import EXACT
from polyp_difom.cache.manifest import BasisEntry, TeacherEntry
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.augment import draw_affine, resample
from polyp_difom.pipeline.basis import Basis, Moments, fit_basis, identity_basis
from polyp_difom.pipeline.data.splitting import ranked
from polyp_difom.pipeline.plan import READERS
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.quantise import LEVELS, fit_steps, relative_error
from polyp_difom.pipeline.resample import area_resample
from polyp_difom.pipeline.runner import Bases, Runner
from polyp_difom.pipeline.teachers.protocol import Teacher

EQUIVARIANCE_FRAMES = 16
PRECISION_FRAMES = 4
MUCH = 0.025
"""Relative error of a precision that is warned of."""
INT8_FRAMES = 128
"""Of the basis' own: steps of int8 maps are fitted on three of four, their error is measured on the fourth."""


def note_labellers(store: FeatureStore, saw: list[dict[str, str]]) -> None:
    """Keeps what the networks have seen that predicted masks of the store; before the bases, which tell that all is there."""
    group = schema.labelled_group(store.manifest)
    if saw and store.read_constants(group) is None:
        store.write_constants(group, {}, {"frames": saw})


def bases_of(
    store: FeatureStore, runner: Runner, teacher: Teacher, progress: Progress, known: Bases | None = None, workers: int = 1
) -> Bases:
    """The stored bases, or new ones: each fitted on a seeded choice of train frames at its map's finest scale.

    Args:
        known: of a teacher that is in the store already, the bases of its maps: they are kept, and recorded for new scales too.
        workers: that share the work, for the forecast.
    """
    entry = next(entry for entry in store.manifest.teachers if entry.name == teacher.spec.name)
    used, seed = runner.maps[entry.name], store.manifest.basis.seed
    groups = {schema.basis_of(entry, scale) for scales in used.values() for scale in scales}
    if all(store.read_constants(group) is not None for group in groups):
        store.complete_copy()
        _refuse_other_precision(store, teacher)
        return {number: schema.stored_basis(store, entry, scales) for number, scales in used.items()}
    began = time.perf_counter()
    chosen = basis_rows(store)
    moments, witnesses = _moments(runner, teacher, chosen, progress)
    rate = len(chosen) / (time.perf_counter() - began)
    bases = {
        number: (known or {}).get(number) or _new_basis(entry, scales[0], moments[scales[0]], store.manifest.basis)
        for number, scales in used.items()
    }
    if entry.kind == "features":
        _say_variance(entry, runner, bases, progress)
    minutes = len(store.samples) * len(runner.views) / rate / 60 / workers
    progress.say(f"{entry.name}: about {minutes:.1f} minutes to go")
    if known is None:
        arrays, attrs = _equivariance(runner, teacher, witnesses, seed)
        if (precision := runner.manifest.precision) != "float32":
            attrs["precision_error"] = error = _precision_error(runner, teacher, bases, witnesses[:PRECISION_FRAMES])
            if not teacher.exact:
                moved = f"{entry.name}: {precision} moves its maps by {error:.1%} of their norm against float32"
                much = error > MUCH
                progress.say(f"warning: {moved}; --precision float32 avoids it, in a store of its own" if much else moved)
        store.write_constants(schema.equivariance_group(entry.name), arrays, attrs)
        if teacher.frames:
            store.write_constants(schema.learned_group(entry.name), {}, {"frames": teacher.frames})
    errors: dict[str, float] = {}
    if schema.map_type(store.manifest) == "int8":
        bases, errors = _with_steps(runner, teacher, bases, chosen[:INT8_FRAMES], progress)
    for number, scales in used.items():  # last: they mark all as done
        variances = {scale: bases[number].variance(moments[scale]) for scale in scales}
        lost = {scale: errors[scale] for scale in scales if scale in errors}
        store.write_constants(schema.basis_of(entry, scales[0]), *schema.basis_record(bases[number], variances, lost))
    return bases


def with_flips(store: FeatureStore, runner: Runner, teacher: Teacher, progress: Progress, known: Bases | None = None) -> Bases:
    """The stored bases, for views that are added to stored maps; what these flips do to the maps is measured first."""
    name = teacher.spec.name
    _refuse_other_precision(store, teacher)
    group = schema.added_key(schema.equivariance_group(name), store.manifest.views)
    if store.read_constants(group) is None:
        progress.say(f"{name}: measuring what the added flips do to its maps")
        rows = basis_rows(store)[:EQUIVARIANCE_FRAMES]
        witnesses = [frame.cpu() for frames in _frames(runner, rows) for frame in frames]
        store.write_constants(group, *_equivariance(runner, teacher, witnesses, None))
    return known or {}


def _refuse_other_precision(store: FeatureStore, teacher: Teacher) -> None:
    """CacheError where a store that is not finished holds maps that its teacher, which is exact now, made in bfloat16."""
    name = teacher.spec.name
    record = store.read_constants(schema.equivariance_group(name)) if teacher.exact else None
    if record and (error := record[1].get("precision_error", 0.0)) > EXACT:
        raise CacheError(
            f"the maps of {name} were begun in {store.manifest.precision}, and are made in float32 now", where=store.location,
            got=f"maps that are {error:.1%} of their norm off", wanted="one precision in a store",
            remedy="delete this store, or give another --cache, and extract anew",
        )  # fmt: skip


def _new_basis(entry: TeacherEntry, scale: str, moments: Moments, wanted: BasisEntry) -> Basis:
    """A mask's values mean something and are kept as they are."""
    channels = entry.channels_at(scale)
    return identity_basis(channels) if entry.kind == "mask" else fit_basis(moments, channels, wanted.seed, wanted.kind)


def _say_variance(entry: TeacherEntry, runner: Runner, bases: Bases, progress: Progress) -> None:
    for number, scales in runner.maps[entry.name].items():
        kept, channels = bases[number].explained, entry.channels_at(scales[0])
        which = f" ({', '.join(scales)})" if entry.maps else ""
        share = kept[:channels].sum()
        progress.say(f"{entry.name}{which}: {channels} of {len(kept)} channels hold {share:.1%} of the variance")


def basis_rows(store: FeatureStore) -> list[int]:
    """The train frames that bases are fitted on: a seeded choice."""
    samples, seed = store.samples, store.manifest.basis.seed
    row = {name: index for index, (name, split) in enumerate(zip(samples.ids, samples.split, strict=True)) if split == "train"}
    return [row[name] for name in ranked(row, seed)[: store.manifest.basis.frames]]


def _moments(runner: Runner, teacher: Teacher, rows: list[int], progress: Progress) -> tuple[dict[str, Moments], list[Tensor]]:
    """Channel moments at every scale over these frames, and the first few of the frames."""
    name = teacher.spec.name
    used = runner.maps[name]
    moments = {scale: Moments() for scales in used.values() for scale in scales}
    witnesses: list[Tensor] = []
    with progress.task(f"fitting {name}'s basis", len(rows)) as advance:
        for frames in _frames(runner, rows):
            maps = runner.embed(teacher, frames)
            for number, scales in used.items():
                for scale in scales:
                    moments[scale].add(area_resample(maps[number], runner.manifest.scales[scale]))
            witnesses += [frame.cpu() for frame in frames[: EQUIVARIANCE_FRAMES - len(witnesses)]]
            advance(len(frames))
    return moments, witnesses


def _frames(runner: Runner, rows: list[int]) -> Iterator[Tensor]:
    """These frames on the device, float [b, 3, s, s], batch by batch."""
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(rows), runner.batch_size):
            decoded = pool.map(runner.decode, rows[start : start + runner.batch_size])
            yield runner.to_device(torch.from_numpy(np.stack([frame[schema.IMAGE] for frame in decoded])))


def _with_steps(
    runner: Runner, teacher: Teacher, bases: Bases, rows: list[int], progress: Progress
) -> tuple[Bases, dict[str, float]]:
    """The bases with the steps of int8 maps for every scale that is made here, and the relative error of each."""
    name = teacher.spec.name
    used = runner.maps[name]
    seen: dict[str, list[Tensor]] = {scale: [] for scales in used.values() for scale in scales}
    with progress.task(f"fitting {name}'s int8 steps", len(rows)) as advance:
        for frames in _frames(runner, rows):
            for number, native in runner.embed(teacher, frames).items():
                stored = bases[number].apply(native)
                for scale in used[number]:
                    seen[scale].append(area_resample(stored, runner.manifest.scales[scale]).half().cpu())
            advance(len(frames))
    steps, errors = {}, {}
    for scale, batches in seen.items():
        maps = torch.cat(batches)
        witness = torch.arange(len(maps)) % 4 == 3
        is_mask = teacher.spec.kind == "mask"
        fitted = torch.full(maps.shape[1:2], 1 / LEVELS) if is_mask else fit_steps(maps[~witness])
        steps[scale], errors[scale] = fitted.numpy(), relative_error(maps[witness] if witness.any() else maps, fitted)
    progress.say(f"{name}: int8 moves its maps by {', '.join(f'{e:.2%} ({s})' for s, e in errors.items())} of their norm")
    widened = {n: replace(basis, steps={**basis.steps, **{s: steps[s] for s in used[n]}}) for n, basis in bases.items()}
    return widened, errors


def _equivariance(
    runner: Runner, teacher: Teacher, witnesses: list[Tensor], seed: int | None
) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """How far moving a map is from the teacher's map of the moved frame, as mean cosines over a few train frames and all maps.

    `cosine` [v] of each flip is why views are stored; `affine_cosine` is the error of augmentation by resampled maps, which
    is not measured without a seed.
    """
    matrices = draw_affine(torch.Generator().manual_seed(seed or 0), len(witnesses), share=1.0)
    flips, affine = [], []
    for frame, matrix in zip(witnesses, matrices.split(1), strict=True):
        frames = frame[None].to(runner.device)
        maps = runner.embed(teacher, frames)
        flipped = [runner.embed(teacher, frames.flip(axes)) for axes in runner.views]
        moved = {} if seed is None else runner.embed(teacher, resample(frames, matrix))
        for number, own in maps.items():
            flips.append([_alike(own.flip(axes), f[number]) for axes, f in zip(runner.views, flipped, strict=True)])
        affine += [_alike(resample(maps[number], matrix), there) for number, there in moved.items()]
    arrays = {"cosine": np.array(flips).mean(0)}
    if affine:
        arrays["affine_cosine"] = np.array(affine).mean(keepdims=True)
    return arrays, {"views": list(runner.manifest.views), "frames": len(witnesses)}


def _precision_error(runner: Runner, teacher: Teacher, bases: Bases, witnesses: list[Tensor]) -> float:
    """Norm of the change that the run's precision makes to the finest stored maps, over the norm of the float32 ones;
    the mean over maps where several are stored.
    """
    frames = torch.stack(witnesses).to(runner.device)
    runs = [runner.embed(teacher, frames, precision) for precision in (runner.manifest.precision, "float32")]
    errors = []
    for number, scales in runner.maps[teacher.spec.name].items():
        cells = runner.manifest.scales[scales[0]]
        ours, exact = (area_resample(bases[number].apply(maps[number]), cells) for maps in runs)
        errors.append(((ours - exact).norm() / exact.norm()).item())
    return sum(errors) / len(errors)


def _alike(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.flatten(1), b.flatten(1)).item()
