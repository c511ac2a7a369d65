"""Stage one: every frozen teacher once over every frame, into one Zarr store.

Order of work: check all frames and options, write the manifest, fit each teacher's basis on train frames, then one shard
after another: while a shard's teachers run, the next one's frames are decoded and the last one's arrays are written. A
killed run goes on at the first shard that is not done. Several workers may run at once (`polyp_difom.pipeline.workers`).
"""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.costs import cost_line
from polyp_difom.pipeline.data.frames import read_frame
from polyp_difom.pipeline.device import enough_memory, keep_freed_memory, pick_device, pick_precision
from polyp_difom.pipeline.fitting import bases_of, note_labellers
from polyp_difom.pipeline.plan import ExtractConfig, Plan, check_options, check_space, gather_frames, make_plan
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.runner import Arrays, Runner
from polyp_difom.pipeline.teachers.protocol import Teacher, full_name, implied_weights, load_teacher
from polyp_difom.pipeline.workers import Part, await_setup, fill, part_of, refuse_url


def extract(config: ExtractConfig, progress: Progress | None = None) -> FeatureStore:
    """Run stage one and return the store: complete, or, for one part of several, with that part done.

    Raises:
        DataError: a folder, frame or mask that cannot be used; nothing is written then.
        CacheError: a store of another signature, busy, or a disk that is or would be full.
        MissingDependencyError, UsageError: a teacher that cannot be loaded, an option that cannot be used.
    """
    progress = progress or Progress()
    config = resolved(config)
    check_options(config)
    part = part_of(config, os.environ)
    keep_freed_memory()
    device = pick_device(_own_device(config.device, part))
    precision, reason = pick_precision(device, config.precision)
    progress.say(f"teachers run on {device} in {precision}: {reason}")
    teachers, plan, store = begin(config, precision, progress)
    refuse_url(store, part)
    await_setup(store, part, progress)
    with store.sharing() as claims, enough_memory(device):
        if store.is_complete:
            progress.say(f"{config.cache} is complete already, nothing to do")
            return store
        runner = runner_of(teachers, plan, device, config.batch_size, progress)
        with claims.alone():
            note_labellers(store, plan.labellers_saw)
            bases = {teacher.spec.name: bases_of(store, runner, teacher, progress, workers=part.count) for teacher in teachers}
        runner.compile_where_it_pays(len(store))
        fill(store, claims, part, runner, bases, progress)
    if store.is_complete:
        progress.say(cost_line(store))
    return store


def _own_device(name: str, part: Part) -> str:
    """Under torchrun, "auto" and "cuda" mean the process's own GPU."""
    if name in ("auto", "cuda") and part.count > 1 and part.helps and torch.cuda.is_available():
        return f"cuda:{part.local % torch.cuda.device_count()}"
    return name


def begin(config: ExtractConfig, precision: str, progress: Progress) -> tuple[list[Teacher], Plan, FeatureStore]:
    """What comes before the first teacher runs: the frames and teachers, checked, and the store, new or to be resumed.

    Args:
        config: `resolved`.
        precision: float32 or bfloat16.

    Raises:
        DataError, CacheError, MissingDependencyError, UsageError: as `extract`.
    """
    found = gather_frames(config)
    progress.say(found.policy)
    teachers = load_teachers(config, progress)
    plan = make_plan(config, found, teachers, precision, progress)
    check_space(plan.manifest, len(plan.samples), config.cache, progress)
    store = FeatureStore.create(config.cache, plan.manifest, plan.samples)
    return teachers, replace(plan, manifest=plan.manifest.model_copy(update={"arrays": store.manifest.arrays})), store


def load_teachers(config: ExtractConfig, progress: Progress) -> list[Teacher]:
    """The teachers of a `resolved` configuration, in its order."""
    sides = {**_stored_sides(config), **config.input_sizes}
    return [
        load_teacher(name, config.weights.get(name), sides.get(name), progress.say, config.size) for name in config.teachers
    ]


def _stored_sides(config: ExtractConfig) -> dict[str, int]:
    """The sides that the teachers of a store that is there see frames at; a store that cannot be opened is told of later."""
    try:
        manifest = FeatureStore.open(config.cache).manifest
    except CacheError:
        return {}
    return {entry.name: entry.input_size for entry in manifest.teachers} if manifest.frame_size == config.size else {}


def runner_of(teachers: list[Teacher], plan: Plan, device: torch.device, batch_size: int, progress: Progress) -> Runner:
    """The teachers on their device, with the plan's frames."""
    size, scales = plan.manifest.frame_size, tuple(plan.manifest.scales)

    def decode(index: int) -> Arrays:
        frame = read_frame(plan.pairs[index], size)
        return {schema.IMAGE: frame.image, schema.MASK: frame.mask}

    maps = {teacher.spec.name: schema.maps_of_scales(teacher.spec, size, scales) for teacher in teachers}
    return Runner(teachers, plan.manifest, maps, decode, device, batch_size, progress)


def resolved(config: ExtractConfig) -> ExtractConfig:
    """The configuration with each teacher under its full name, and the weights that names spell out beside those given."""
    implied = {name: source for name in config.teachers if (source := implied_weights(name))}
    return config.model_copy(update={
        "teachers": tuple(full_name(name) for name in config.teachers),
        "weights": {full_name(name): source for name, source in {**implied, **config.weights}.items()},
        "input_sizes": {full_name(name): side for name, side in config.input_sizes.items()},
    })  # fmt: skip
