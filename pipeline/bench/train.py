"""What a training step costs: with the objective, without teachers, and with the teachers run beside the student.

Timed is `Trainer.step` with the feed that gives its batches; all ways take turns. Shapes: b batch, s frame side.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from polyp_difom.cache.errors import UsageError, first_line
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.bench.drawn import drawn_training, stand_ins
from polyp_difom.pipeline.bench.latency import Latency, in_turn
from polyp_difom.pipeline.bench.machine import Machine, torch_threads
from polyp_difom.pipeline.bench.online import Online, load_teachers
from polyp_difom.pipeline.bench.stages import stages
from polyp_difom.pipeline.bench.train_figures import TrainBench, compiling_of, ratio_of, way_of
from polyp_difom.pipeline.device import enough_memory, pick_device, pick_precision, synchronise
from polyp_difom.pipeline.feed import Batch, Feed
from polyp_difom.pipeline.figures import Means
from polyp_difom.pipeline.objectives.protocol import Needs
from polyp_difom.pipeline.objectives.weighted import needs_of
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.recipe import DistillConfig
from polyp_difom.pipeline.shelf import Shelf
from polyp_difom.pipeline.trainer import Trainer

CONTROL = "none"
MOST, LEAST = 1.10, 10.0
"""What is promised: a step with the objective costs at most so many control steps, one with the teachers in it at least so
many with their cached maps."""
SIZE = 352
REPEATS, SECONDS = 30, 20.0
"""By default: timed calls a way, and the seconds after which it gets no further turn."""
STEPS_A_CALL = {"cpu": 1, "cuda": 10}
"""A GPU works on while the next steps are prepared; it is waited for once a call."""
BATCHES_DRAWN = {"cpu": 4, "cuda": 8}
WATCHED_STEPS = 5
MODES = {"cpu": {"compiled": "default"}, "cuda": {"compiled": "default", "compiled, CUDA graphs": "reduce-overhead"}}
"""Of torch.compile, by what they are called."""


def bench_train(
    student: str = "unet",
    *,
    objective: str = "multiscale",
    size: int | None = None,
    batch: int = 16,
    cache: str | None = None,
    teachers: Sequence[str] = (),
    random: bool = False,
    frames: int = 5800,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    compile: bool = False,
    repeats: int | None = None,
    progress: Progress | None = None,
) -> TrainBench:
    """Time steps of `none`, of the objective, and of the objective with teachers in the loop.

    Args:
        size: frame side; by default the store's, 352 without one.
        cache: complete store whose train frames are used; by default one of drawn frames and random maps.
        teachers: that run beside the student; none leaves that way out.
        random: the teachers get random weights.
        frames: frame-views of the epoch that is predicted.
        compile: time the objective's step with the student under torch.compile too.
        repeats: timed calls a way; by default 30, or what fits into 20 seconds, one turn at least.

    Raises:
        UsageError: an unknown name, a side that is not the store's, or a store smaller than a batch.
        MissingDependencyError: a teacher's weights are not reachable.
    """
    progress = progress or Progress()
    _refuse(objective, teachers, random, size)
    chosen = pick_device(device)
    resolved, reason = pick_precision(chosen, precision)
    progress.say(f"{chosen} in {resolved}: {reason}")
    with TemporaryDirectory() as scratch, torch_threads(threads) as used, enough_memory(chosen, batch):
        machine = Machine.here(chosen, used)
        held = _opened(cache, size, batch) if cache else None
        side = held.manifest.frame_size if held else size or SIZE
        loaded = load_teachers(teachers, random, Path(scratch), progress, side, held)
        if held is None:
            shown, train = loaded or stand_ins(), batch * BATCHES_DRAWN[chosen.type]
            store = drawn_training(Path(scratch) / "drawn.zarr", shown, train, 1, side, resolved, progress)
        else:
            store = held
        values: dict[str, Any] = {
            "cache": str(store.location), "student": student, "pretrained": False, "epochs": 2, "batch_size": batch,
            "teachers": tuple(teacher.spec.name for teacher in loaded) or None, "device": device, "precision": precision,
            "affine": not needs_of(objective).spectra,
        }  # fmt: skip
        bench = _Bench(DistillConfig(**values), store, Shelf(store, chosen, progress), progress)
        eager = [bench.steps(name) for name in dict.fromkeys((CONTROL, objective))]
        online = [bench.online(eager[-1], Online(loaded, eager[-1].trainer))] if loaded else []
        compiled = [bench.compiled(eager[-1], *mode) for mode in MODES[chosen.type].items()] if compile else []
        first, taken = bench.timed([*eager, *online], compiled, repeats)
        watched = stages({steps.name: (steps.trainer, steps.batches, steps.number) for steps in eager}, WATCHED_STEPS)
    ways = [way_of(name, latency, first[name], bench.each, batch, frames) for name, latency in taken.items()]
    bars = {objective: (MOST, None), **{steps.name: (None, LEAST) for steps in online}}
    compared = [steps for steps in (*eager, *online, *compiled) if steps.beside and steps.name in taken]
    ratios = [ratio_of(steps.name, steps.beside, taken, *bars.get(steps.name, (None, None))) for steps in compared]
    verdicts = [compiling_of(steps.name, taken[steps.name], taken[steps.beside], first[steps.name], bench.each)
                for steps in compared if steps in compiled]  # fmt: skip
    return TrainBench(
        machine, student, objective, store.manifest.frame_size, batch, eager[0].trainer.precision, frames,
        [entry.name for entry in store.manifest.teachers], ways, ratios, verdicts, watched,
    )  # fmt: skip


def _refuse(objective: str, teachers: Sequence[str], random: bool, size: int | None) -> None:
    """UsageError for what cannot be measured."""
    needs = needs_of(objective)
    if random and not teachers:
        raise UsageError("no teacher is named that could have random weights", where="--random-weights", wanted="--teachers")
    if teachers and not (needs.maps or needs.spectra):
        raise UsageError(f"objective {objective!r} reads no teacher's maps", where="--teachers", got=", ".join(teachers))
    if size is not None and (size <= 0 or size % 32):
        nearest = max(32, round(size / 32) * 32)
        raise UsageError("the frame side must be a multiple of 32", where="--size", got=size, wanted=nearest)


def _opened(cache: str, size: int | None, batch: int) -> FeatureStore:
    store = FeatureStore.open(cache)
    store.require_complete()
    side, held = store.manifest.frame_size, store.samples.split.count("train")
    if size not in (None, side):
        raise UsageError("the store has another frame side", where="--size", got=size, wanted=side)
    if held < batch:
        raise UsageError("the store is smaller than a batch", where="--batch", got=batch, wanted=f"at most {held}")
    return store


@dataclass(frozen=True)
class _Steps:
    """Steps of one way, and the way that it is compared with (empty: none)."""

    name: str
    beside: str
    trainer: Trainer
    batches: Iterator[Batch]

    @property
    def number(self) -> int:
        """Half way through the training: all of an objective's terms are on there."""
        return self.trainer.steps_per_epoch

    def take(self, steps: int) -> None:
        """So many steps, and the sums that a training keeps; returns when they are done."""
        means = Means()
        for _ in range(steps):
            parts, _ = self.trainer.step(next(self.batches), self.number)
            means.add(parts)
        synchronise(self.trainer.device)


@dataclass(frozen=True)
class _Bench:
    config: DistillConfig
    store: FeatureStore
    shelf: Shelf
    progress: Progress

    @property
    def each(self) -> int:
        """Steps a call."""
        return STEPS_A_CALL[self.shelf.device.type]

    def steps(self, objective: str) -> _Steps:
        """As `distill` takes them."""
        trainer = self._trainer(objective)
        batches = chain.from_iterable(trainer.batches(epoch) for epoch in count())
        return _Steps(objective, CONTROL if objective != CONTROL else "", trainer, batches)

    def online(self, cached: _Steps, teachers: Online) -> _Steps:
        """The same steps, but the maps come from teachers that see the batch's frames; no cached ones are read."""
        trainer, c = cached.trainer, self.config
        feed = Feed(self.store, "train", [], Needs(), trainer.device, c.seed, self.shelf, trainer.subset)
        epochs = (feed.epoch(epoch, c.batch_size, c.seed, trainer.affine) for epoch in count())
        batches = (replace(batch, targets=teachers(batch.frames)) for batch in chain.from_iterable(epochs))
        return _Steps(f"{cached.name}, teachers in the loop", cached.name, trainer, batches)

    def compiled(self, eager: _Steps, name: str, mode: str) -> _Steps:
        """The same steps with the student under torch.compile."""
        steps = self.steps(eager.name)
        student: Any = steps.trainer.student
        student.features = torch.compile(student.features, dynamic=False, mode=mode)
        return replace(steps, name=f"{eager.name}, {name}", beside=eager.name)

    def timed(
        self, sure: Sequence[_Steps], compiled: Sequence[_Steps], repeats: int | None
    ) -> tuple[dict[str, float], dict[str, Latency]]:
        """By way: seconds of the first call, and the calls after it, in turn; what cannot be compiled is left out."""
        first: dict[str, float] = {}
        for steps in (*sure, *compiled):
            self.progress.say(f"warming up: {steps.name}")
            began = time.perf_counter()
            try:
                steps.take(self.each)
            except RuntimeError as error:
                if steps in sure or isinstance(error, torch.OutOfMemoryError):
                    raise
                self.progress.say(f"{steps.name} failed: {first_line(error)}")
            else:
                first[steps.name] = time.perf_counter() - began
        calls = {steps.name: partial(steps.take, self.each) for steps in (*sure, *compiled) if steps.name in first}
        seconds = SECONDS if repeats is None else math.inf
        return first, in_turn(calls, repeats=repeats or REPEATS, seconds=seconds, progress=self.progress)

    def _trainer(self, objective: str) -> Trainer:
        return Trainer(self.config.model_copy(update={"objective": objective}), self.store, self.progress, shelf=self.shelf)
