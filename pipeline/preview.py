"""What an extraction will cost, before it: all checks that it makes, bytes, and a few timed batches of each teacher."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyp_difom.cache.location import Location
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.device import enough_memory, keep_freed_memory, pick_device, pick_precision, synchronise
from polyp_difom.pipeline.extract import load_teachers, resolved, runner_of
from polyp_difom.pipeline.plan import ExtractConfig, check_options, free_space, gather_frames, make_plan, predicted_bytes
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.runner import Runner
from polyp_difom.pipeline.teachers.protocol import Teacher

BATCHES = 3
"""Timed of each teacher, after one that warms up; the fastest counts."""


@dataclass(frozen=True)
class Preview:
    """What an extraction will take.

    Attributes:
        frames, views, shards: of the store; `done` of the shards are there already.
        bytes: of its arrays, at most.
        free_bytes: on the disk; None for a URL.
        seconds: of one process on this device for what is left, by teacher; basis, decoding and writing are not in it.
    """

    frames: int
    views: int
    shards: int
    done: int
    bytes: int
    free_bytes: int | None
    seconds: dict[str, float]
    device: str
    precision: str

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return asdict(self)


def preview(config: ExtractConfig, progress: Progress | None = None) -> Preview:
    """Everything that `extract` checks before it writes, and what it will take. Nothing is written.

    Raises:
        DataError, CacheError, UsageError, MissingDependencyError: as `extract`.
    """
    progress = progress or Progress()
    config = resolved(config)
    check_options(config)
    keep_freed_memory()
    device = pick_device(config.device)
    precision, reason = pick_precision(device, config.precision)
    progress.say(f"teachers run on {device} in {precision}: {reason}")
    found = gather_frames(config)
    progress.say(found.policy)
    teachers = load_teachers(config, progress)
    plan = make_plan(config, found, teachers, precision, progress)
    pending = None
    if not Location.parse(config.cache).is_vacant():
        store = FeatureStore.open(config.cache)
        store.require_made_for(plan.manifest)
        pending = len(store.pending())
    runner = runner_of(teachers, plan, device, config.batch_size, progress)
    frames, views = len(plan.samples), len(plan.manifest.views)
    shards = -(-frames // plan.manifest.samples_per_shard)
    left = 1.0 if pending is None else pending / shards
    return Preview(
        frames=frames, views=views, shards=shards, done=0 if pending is None else shards - pending,
        bytes=predicted_bytes(plan.manifest, frames), free_bytes=None if "://" in config.cache else free_space(config.cache)[1],
        seconds=_seconds(runner, frames, left * frames * views) if left else {}, device=str(device), precision=precision,
    )  # fmt: skip


def _seconds(runner: Runner, count: int, images: float) -> dict[str, float]:
    """Of each teacher for so many images, from the first of `count` frames."""
    first = np.stack([runner.decode(index)[schema.IMAGE] for index in range(min(runner.batch_size, count))])
    frames, seconds = runner.to_device(torch.from_numpy(first)), dict[str, float]()
    with enough_memory(runner.device), runner.progress.task("timing teachers", len(runner.teachers)) as advance:
        for teacher in runner.teachers:
            taken = [_once(runner, teacher, frames) for _ in range(1 + BATCHES)]
            seconds[teacher.spec.name] = min(taken[1:]) / len(frames) * images
            advance(1)
    return seconds


def _once(runner: Runner, teacher: Teacher, frames: Tensor) -> float:
    synchronise(runner.device)
    began = time.perf_counter()
    runner.embed(teacher, frames)
    synchronise(runner.device)
    return time.perf_counter() - began
