"""Stage one: every frozen teacher once over every frame, into one Zarr store.

Shapes: b batch, n samples, v views, c channels, h w grid, s frame side. Order of work: check all frames and options,
write the manifest, fit each teacher's basis on train frames, then one shard after another: while a shard's teachers
run, the next one's frames are decoded and the last one's arrays are written. A killed run goes on at the first shard
that is not done.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema, spectra
from polyp_difom.pipeline.augment import draw_affine, resample
from polyp_difom.pipeline.basis import Basis, Moments, fit_basis
from polyp_difom.pipeline.data.frames import Frame, flip_axes, read_frame
from polyp_difom.pipeline.data.splitting import ranked
from polyp_difom.pipeline.device import autocast, enough_memory, keep_freed_memory, pick_device, pick_precision, synchronise
from polyp_difom.pipeline.plan import READERS, ExtractConfig, Plan, check_options, check_space, gather_frames, make_plan
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.resample import area_resample
from polyp_difom.pipeline.teachers.protocol import Teacher, full_name, implied_weights, load_teacher

EQUIVARIANCE_FRAMES = 16
PRECISION_FRAMES = 4
Bases = dict[int, Basis]
"""By number of the map."""


def extract(config: ExtractConfig, progress: Progress | None = None) -> FeatureStore:
    """Run stage one and return the complete store.

    Raises:
        DataError: a folder, frame or mask that cannot be used; nothing is written then.
        CacheError: a store of another signature, busy, or a disk that is or would be full.
        MissingDependencyError, UsageError: a teacher that cannot be loaded, an option that cannot be used.
    """
    progress = progress or Progress()
    config = _resolved(config)
    check_options(config)
    keep_freed_memory()
    device = pick_device(config.device)
    precision, reason = pick_precision(device, config.precision)
    found = gather_frames(config)
    progress.say(found.policy)
    progress.say(f"teachers run on {device} in {precision}: {reason}")
    teachers = [
        load_teacher(name, config.weights.get(name), config.input_sizes.get(name), progress.say) for name in config.teachers
    ]
    plan = make_plan(config, found, teachers, precision, progress)
    check_space(plan, config.cache, progress)
    store = FeatureStore.create(config.cache, plan.manifest, plan.samples)
    with store.writing(), enough_memory(device):
        if store.is_complete:
            progress.say(f"{config.cache} is complete already, nothing to do")
            return store
        runner = Runner(teachers, plan, device, precision, config.batch_size)
        bases = {teacher.spec.name: _bases_of(store, runner, teacher, config.seed, progress) for teacher in teachers}
        _fill(store, runner, bases, progress)
    return store


def _resolved(config: ExtractConfig) -> ExtractConfig:
    """The configuration with each teacher under its full name, and the weights that names spell out beside those given."""
    implied = {name: source for name in config.teachers if (source := implied_weights(name))}
    return config.model_copy(update={
        "teachers": tuple(full_name(name) for name in config.teachers),
        "weights": {full_name(name): source for name, source in {**implied, **config.weights}.items()},
        "input_sizes": {full_name(name): side for name, side in config.input_sizes.items()},
    })  # fmt: skip


class Runner:
    """The teachers on their device, and what of the plan they need to run."""

    def __init__(self, teachers: list[Teacher], plan: Plan, device: torch.device, precision: str, batch_size: int):
        self.teachers = [teacher.to(device).to(memory_format=torch.channels_last) for teacher in teachers]
        self.plan, self.device, self.precision, self.batch_size = plan, device, precision, batch_size
        self.views = [flip_axes(view) for view in plan.manifest.views]
        self.scales = plan.manifest.scales
        size, scales = plan.manifest.frame_size, tuple(self.scales)
        self.maps = {teacher.spec.name: schema.maps_of_scales(teacher.spec, size, scales) for teacher in teachers}
        """By teacher: the numbers of its stored maps, and the scales that each is made into."""

    def decode(self, index: int) -> Frame:
        """Frame of one sample, at the store's size."""
        return read_frame(self.plan.pairs[index], self.plan.manifest.frame_size)

    def batches(self, images: NDArray[np.uint8]) -> Iterator[Tensor]:
        """Frames uint8 [n, 3, s, s] as float batches in 0..1 on the device."""
        for start in range(0, len(images), self.batch_size):
            batch = torch.from_numpy(images[start : start + self.batch_size]).to(self.device)
            yield (batch.float() / 255).contiguous(memory_format=torch.channels_last)

    def embed(self, teacher: Teacher, frames: Tensor, precision: str | None = None) -> dict[int, Tensor]:
        """Float32 maps [b, c, h, w] of frames [b, 3, s, s], on the teacher's own grids, by number; only those stored."""
        with autocast(self.device, precision or self.precision):
            maps = teacher(frames)
        return {number: maps[number].float() for number in self.maps[teacher.spec.name]}


def _bases_of(store: FeatureStore, runner: Runner, teacher: Teacher, seed: int, progress: Progress) -> Bases:
    """The stored bases, or new ones: each fitted on a seeded choice of train frames at its map's finest stored scale."""
    entry = next(entry for entry in store.manifest.teachers if entry.name == teacher.spec.name)
    used = runner.maps[entry.name]
    stored = {number: store.read_constants(schema.basis_of(entry, scales[0])) for number, scales in used.items()}
    if all(stored.values()):
        return {number: schema.basis_from(*record) for number, record in stored.items() if record}
    began = time.perf_counter()
    chosen = _basis_rows(store, seed)
    moments, witnesses = _moments(runner, teacher, chosen, progress)
    rate = len(chosen) / (time.perf_counter() - began)
    bases = {number: fit_basis(moments[scales[0]], entry.channels_at(scales[0]), seed) for number, scales in used.items()}
    for number, scales in used.items():
        kept, stored_channels = bases[number].explained, entry.channels_at(scales[0])
        which = f" ({', '.join(scales)})" if entry.maps else ""
        share = kept[:stored_channels].sum()
        progress.say(f"{entry.name}{which}: {stored_channels} of {len(kept)} channels hold {share:.1%} of the variance")
    progress.say(f"{entry.name}: about {len(store.samples) * len(runner.views) / rate / 60:.1f} minutes to go")
    arrays, attrs = _equivariance(runner, teacher, witnesses, seed)
    if runner.precision != "float32":
        attrs["precision_error"] = error = _precision_error(runner, teacher, bases, witnesses[:PRECISION_FRAMES])
        progress.say(f"{entry.name}: {runner.precision} moves its maps by {error:.1%} of their norm against float32")
    store.write_constants(schema.equivariance_group(entry.name), arrays, attrs)
    for number, scales in used.items():  # last: they mark all as done
        variances = {scale: bases[number].variance(moments[scale]) for scale in scales}
        store.write_constants(schema.basis_of(entry, scales[0]), *schema.basis_record(bases[number], variances))
    return bases


def _basis_rows(store: FeatureStore, seed: int) -> list[int]:
    """A seeded choice of train frames."""
    samples = store.samples
    row = {name: index for index, (name, split) in enumerate(zip(samples.ids, samples.split, strict=True)) if split == "train"}
    return [row[name] for name in ranked(row, seed)[: store.manifest.basis.frames]]


def _moments(runner: Runner, teacher: Teacher, rows: list[int], progress: Progress) -> tuple[dict[str, Moments], list[Tensor]]:
    """Channel moments at every scale over these frames, and the first few of the frames."""
    name = teacher.spec.name
    moments = {scale: Moments() for scale in runner.scales}
    witnesses: list[Tensor] = []
    with ThreadPoolExecutor(READERS) as pool, progress.task(f"fitting {name}'s basis", len(rows)) as advance:
        for start in range(0, len(rows), runner.batch_size):
            images = np.stack([f.image for f in pool.map(runner.decode, rows[start : start + runner.batch_size])])
            frames = next(runner.batches(images))
            maps = runner.embed(teacher, frames)
            for number, scales in runner.maps[name].items():
                for scale in scales:
                    moments[scale].add(area_resample(maps[number], runner.scales[scale]))
            witnesses += [frame.cpu() for frame in frames[: EQUIVARIANCE_FRAMES - len(witnesses)]]
            advance(len(images))
    return moments, witnesses


def _equivariance(
    runner: Runner, teacher: Teacher, witnesses: list[Tensor], seed: int
) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """How far moving a map is from the teacher's map of the moved frame, as mean cosines over a few train frames and all maps.

    `cosine` [v] of each flip is why views are stored; `affine_cosine` is the error of augmentation by resampled maps.
    """
    matrices = draw_affine(torch.Generator().manual_seed(seed), len(witnesses), share=1.0)
    flips, affine = [], []
    for frame, matrix in zip(witnesses, matrices.split(1), strict=True):
        frames = frame[None].to(runner.device)
        maps = runner.embed(teacher, frames)
        flipped = [runner.embed(teacher, frames.flip(axes)) for axes in runner.views]
        moved = runner.embed(teacher, resample(frames, matrix))
        for number, own in maps.items():
            flips.append([_alike(own.flip(axes), f[number]) for axes, f in zip(runner.views, flipped, strict=True)])
            affine.append(_alike(resample(own, matrix), moved[number]))
    arrays = {"cosine": np.array(flips).mean(0), "affine_cosine": np.array(affine).mean(keepdims=True)}
    return arrays, {"views": list(runner.plan.manifest.views), "frames": len(witnesses)}


def _precision_error(runner: Runner, teacher: Teacher, bases: Bases, witnesses: list[Tensor]) -> float:
    """Norm of the change that the run's precision makes to the finest stored maps, over the norm of the float32 ones;
    the mean over maps where several are stored.
    """
    frames = torch.stack(witnesses).to(runner.device)
    runs = [runner.embed(teacher, frames, precision) for precision in (runner.precision, "float32")]
    errors = []
    for number, scales in runner.maps[teacher.spec.name].items():
        cells = runner.scales[scales[0]]
        ours, exact = (area_resample(bases[number].apply(maps[number]), cells) for maps in runs)
        errors.append(((ours - exact).norm() / exact.norm()).item())
    return sum(errors) / len(errors)


def _alike(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.flatten(1), b.flatten(1)).item()


def _fill(store: FeatureStore, runner: Runner, bases: dict[str, Bases], progress: Progress) -> None:
    """Decode, embed and write the shards that are not done; a shard's write overlaps the next one's teachers."""
    pending = store.pending()
    total = sum(len(store.shards[number]) for number in pending)
    with (
        ThreadPoolExecutor(READERS) as readers,
        ThreadPoolExecutor(1) as writer,
        progress.task("extracting", total) as advance,
    ):
        coming = {number: [readers.submit(runner.decode, i) for i in store.shards[number]] for number in pending[:1]}
        writing: Future[None] | None = None
        for number, following in zip(pending, [*pending[1:], None], strict=True):
            began = time.perf_counter()
            frames = [future.result() for future in coming.pop(number)]
            waited = time.perf_counter() - began
            if following is not None:
                coming[following] = [readers.submit(runner.decode, i) for i in store.shards[following]]
            arrays, teacher_seconds = _embed_shard(frames, runner, bases, store.manifest.spectra, advance)
            if writing is not None:
                writing.result()
            ledger = {"teacher_seconds": teacher_seconds, "decode_seconds": waited, "attempts": 1.0}
            writing = writer.submit(store.write_shard, number, arrays, ledger)
        if writing is not None:
            writing.result()


def _embed_shard(
    frames: list[Frame], runner: Runner, bases: dict[str, Bases], kind: str, advance
) -> tuple[dict[str, NDArray], float]:
    """All arrays of one shard, and the seconds that the teachers took."""
    images = np.stack([frame.image for frame in frames])
    arrays: dict[str, NDArray] = {schema.IMAGE: images, schema.MASK: np.stack([frame.mask for frame in frames])}
    for key, spec in runner.plan.manifest.arrays.items():
        if key not in arrays:
            arrays[key] = np.empty((len(frames), *spec.shape), spec.dtype)
    began, start = time.perf_counter(), 0
    for batch in runner.batches(images):
        rows = slice(start, start := start + len(batch))
        for teacher in runner.teachers:
            name = teacher.spec.name
            for view, axes in enumerate(runner.views):
                for number, native in runner.embed(teacher, batch.flip(axes)).items():
                    stored = bases[name][number].apply(native)
                    for scale in runner.maps[name][number]:
                        maps = area_resample(stored, runner.scales[scale])
                        spectrum = spectra.spectrum(maps)
                        block = spectra.low_block(spectrum) if kind == "low" else spectrum
                        arrays[schema.embedding_key(name, scale)][rows, view] = maps.half().cpu().numpy()
                        arrays[schema.spectrum_key(name, scale)][rows, view] = spectra.pack(block).half().cpu().numpy()
        advance(len(batch))
    synchronise(runner.device)
    return arrays, time.perf_counter() - began
