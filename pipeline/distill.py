"""Stage two: a light student learns masks and the cached teachers' maps; no teacher is loaded, no image folder is read.

Every random draw is a function of (seed, epoch), so a run that was stopped and resumed ends at the same weights. Several
processes that torchrun started share each batch, and end at those weights within rounding (see distributed.py).
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polyp_difom.cache.errors import CacheError, RunError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.device import autocast, enough_memory, keep_freed_memory, pick_device, pick_precision
from polyp_difom.pipeline.distributed import (
    average,
    average_gradients,
    leads,
    meet,
    own_device,
    rank,
    refuse_uneven,
    synchronised,
    world,
)
from polyp_difom.pipeline.feed import Batch, Feed, choose_teachers, target_specs
from polyp_difom.pipeline.files import alone_in
from polyp_difom.pipeline.objectives.protocol import OBJECTIVES, Needs, Objective
from polyp_difom.pipeline.progress import Logged, Progress
from polyp_difom.pipeline.recipe import DistillConfig
from polyp_difom.pipeline.resuming import load, require_resumable, save, write_student
from polyp_difom.pipeline.runs import RunFolder
from polyp_difom.pipeline.schedule import one_cycle
from polyp_difom.pipeline.shelf import Shelf
from polyp_difom.pipeline.students.protocol import STUDENTS, Student, build_student, parameter_count
from polyp_difom.pipeline.subset import choose_subset

GRADIENT_NORM = 1.0
COLLAPSED = 0.01
"""A target whose variance falls below this share of its first epoch's has collapsed."""

Watch = Callable[[int, float], None]
"""Told (epoch, validation Dice) after each epoch, once it is saved; what it raises ends the training there."""


def distill(
    config: DistillConfig,
    out: Path,
    progress: Progress | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    shelf: Shelf | None = None,
    watch: Watch | None = None,
) -> RunFolder:
    """Train one student and return its run folder.

    Args:
        shelf: arrays of this store that are in memory already, for several trainings over one store.

    Raises:
        CacheError: a store that is missing, incomplete or damaged.
        UsageError: an unknown student, objective or teacher. RunError: the run folder cannot be used.
    """
    progress = progress if progress and leads() else Progress()
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other", remedy="give one of them")
    if resume:
        require_resumable(RunFolder(out))
    elif leads():
        RunFolder(out).refuse_to_lose(overwrite)
    store = FeatureStore.open(config.cache)
    store.require_complete()
    if config.signature not in (None, store.manifest.signature()):
        raise CacheError(
            "not the store that the configuration was made for", where=store.location, got=store.manifest.signature(),
            wanted=config.signature, remedy="give that store, or take `signature` out of the configuration",
        )  # fmt: skip
    trainer = Trainer(config, store, progress, resume=resume, shelf=shelf)
    with alone_in(out) if leads() else nullcontext():
        run = _open_run(trainer, out, resume=resume, overwrite=overwrite)
        if leads():
            trainer.progress = Logged(progress, run.path / "train.log")
        with enough_memory(trainer.device, config.batch_size // world()):
            trainer.fit(run, watch)
    return run


def _open_run(trainer: Trainer, out: Path, *, resume: bool, overwrite: bool) -> RunFolder:
    run = RunFolder(out)
    if resume:
        load(trainer, run)
    elif leads():
        run = RunFolder.create(out, overwrite=overwrite)
        run.describe(trainer.resolved, trainer.store.samples)
        save(trainer, run)
    return run


class Trainer:
    """Student, objective, optimiser and data of one run.

    Args:
        resume: the weights come from the run folder: no pretrained ones are loaded.
    """

    def __init__(
        self,
        config: DistillConfig,
        store: FeatureStore,
        progress: Progress,
        *,
        resume: bool = False,
        shelf: Shelf | None = None,
    ):
        self.config, self.store, self.progress = config, store, progress
        keep_freed_memory()
        if config.threads:
            torch.set_num_threads(config.threads)
        self.device = own_device(pick_device(config.device))
        self.precision, reason = pick_precision(self.device, config.precision)
        objective = OBJECTIVES.get(config.objective)
        STUDENTS.get(config.student.partition(":")[0])
        taught = objective.needs.maps or objective.needs.spectra
        self.affine = config.affine and not objective.needs.spectra
        if self.affine != config.affine:
            progress.say(f"no affine augmentation: {config.objective} reads stored spectra; give its control --no-affine too")
        chosen = choose_teachers(store, config.teachers)
        self.teachers = chosen if taught else ()
        self.subset = choose_subset(store, chosen, config.scales, config.channels, config.views)
        specs = target_specs(store, self.teachers, self.subset)
        torch.manual_seed(config.seed)
        self.student: Student = build_student(config.student, objective.needs.latents, config.pretrained and not resume)
        self.pretraining = self.student.pretraining if config.pretrained else None
        self.objective: Objective = objective(self.student.taps, specs, config.distill_weight)
        for module in (self.student, self.objective):
            module.to(self.device).to(memory_format=torch.channels_last)
        shelf = shelf or Shelf(store, self.device, progress)
        self.train = Feed(store, "train", self.objective.keys, objective.needs, self.device, config.seed, shelf, self.subset)
        self.val = Feed(store, "val", [], Needs(), self.device, config.seed, shelf)
        refuse_uneven(min(config.batch_size, len(self.train)))
        self.steps_per_epoch = max(1, len(self.train) // config.batch_size)
        parameters = [*self.student.parameters(), *self.objective.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.epoch, self.best, self.first_variance = 0, -1.0, dict[str, float]()
        progress.say(
            f"{config.student} ({parameter_count(self.student) / 1e6:.2f} M parameters), objective {config.objective}, "
            f"{len(self.train)} train and {len(self.val)} val frames, on {self.device} in {self.precision}: {reason}"
        )
        if world() > 1:
            progress.say(f"{world()} processes share each batch of {config.batch_size} frames")
        if self.pretraining and not resume:
            progress.say(f"the encoder starts from pretrained weights: {self.pretraining}")

    @property
    def resolved(self) -> dict[str, Any]:
        """The configuration with every automatic choice replaced by what was chosen."""
        chosen: dict[str, Any] = {
            "teachers": list(self.teachers),
            "precision": self.precision,
            "device": str(pick_device(self.config.device)),
        }
        chosen |= {"affine": self.affine, "pretrained": self.pretraining is not None, **self.subset.resolved()}
        chosen["threads"] = torch.get_num_threads()
        chosen |= {"signature": self.store.manifest.signature(), "cache": str(self.store.source)}
        return {**self.config.model_dump(mode="json"), **chosen}

    def fit(self, run: RunFolder, watch: Watch | None = None) -> None:
        """All epochs that are left; after each, the run folder can be resumed from."""
        meet(self.device)
        total = self.config.epochs * self.steps_per_epoch
        with self.progress.task("distilling", total) as advance:
            advance(self.epoch * self.steps_per_epoch)
            while self.epoch < self.config.epochs:
                began = time.perf_counter()
                figures = self._train_epoch(advance)
                seconds = time.perf_counter() - began
                self._check(figures)
                dice = self.validate()
                self.epoch += 1
                if leads():
                    self._keep(run, dice, {"epoch": self.epoch, "val_dice": dice, "seconds": seconds, **figures})
                    if watch:
                        watch(self.epoch, dice)
        if leads():
            write_student(self, run.last)
            run.resume_state.unlink()

    def _keep(self, run: RunFolder, dice: float, record: dict[str, float]) -> None:
        run.log(record)
        if dice > self.best:
            self.best = dice
            write_student(self, run.best)
        save(self, run)
        text = f"{_digest(record)} val Dice {dice:.4f} ({record['seconds']:.1f} s)"
        self.progress.say(f"epoch {self.epoch}/{self.config.epochs}: {text}")

    def _train_epoch(self, advance) -> dict[str, float]:
        torch.manual_seed((self.config.seed * 1_000_003 + self.epoch) * world() + rank())  # of a student's dropout
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        sound = torch.ones(self.steps_per_epoch, device=self.device)
        batches = self.train.epoch(self.epoch, self.config.batch_size, self.config.seed, self.affine)
        for step, batch in enumerate(batches):
            parts, sound[step] = self.step(batch, self.epoch * self.steps_per_epoch + step)
            for name, value in parts.items():
                sums[name] += value
            advance(1)
        self._name_the_batch(average(sound) < 1)
        means = average(torch.stack(list(sums.values()))).tolist()
        return {name: value / self.steps_per_epoch for name, value in zip(sums, means, strict=True)}

    def step(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """One optimiser step; returns the loss parts, and whether loss and gradient were finite."""
        progress = step / (self.config.epochs * self.steps_per_epoch)
        rests = self.objective.freezes_encoder(progress)
        self.student.train()
        self.student.encoder.train(not rests).requires_grad_(not rests)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * one_cycle(progress)
        with autocast(self.device, self.precision), synchronised():
            logits, taps = self.student.features(batch.frames)
        taps = {name: maps.float() for name, maps in taps.items()}  # heads, FFTs and losses stay in float32
        losses = self.objective(logits.float(), batch.masks, taps, batch.targets, progress)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
        self.optimizer.step()
        return losses.parts, torch.isfinite(losses.total) & torch.isfinite(norm)

    @torch.no_grad()
    def validate(self) -> float:
        """Mean per-image Dice at 0.5 on the validation frames, at the store's frame size."""
        self.student.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in self.val.plain(max(1, self.config.batch_size // world())):
            with autocast(self.device, self.precision):
                logits = self.student(batch.frames.contiguous(memory_format=torch.channels_last))
            total += dice(logits > 0, batch.masks > 0.5).sum()
        return float(average(total)) * world() / len(self.val)

    def _name_the_batch(self, broken: Tensor) -> None:
        """RunError with the frames of the first step [steps] of this epoch that is broken, if one is."""
        if not broken.any():
            return
        step = int(broken.nonzero()[0])
        train = [name for name, split in zip(self.store.samples.ids, self.store.samples.split, strict=True) if split == "train"]
        rows = self.train.rows(self.epoch, self.config.batch_size, self.config.seed)[step]
        raise RunError(
            "the training has diverged: a loss or gradient is not finite",
            where=f"epoch {self.epoch + 1}, step {step + 1} of {self.steps_per_epoch}",
            got=f"the frames {', '.join(train[row] for row in rows.tolist())}", wanted="finite numbers",
            remedy="give a smaller --learning-rate, or --precision float32; what was good until then is kept",
        )  # fmt: skip

    def _check(self, figures: dict[str, float]) -> None:
        """An epoch's figures must be finite, and teachers' targets keep their variance: a collapse looks like a perfect loss.

        Raises:
            RunError: a figure is not finite, or a target's variance fell to less than 1 % of the first epoch's.
        """
        for name, value in figures.items():
            if not math.isfinite(value):
                remedy = "give a smaller --learning-rate, or --precision float32"
                raise RunError("the training has diverged", where=f"{name}, epoch {self.epoch + 1}", got=value, remedy=remedy)
            if name.endswith("target_variance"):
                first = self.first_variance.setdefault(name, value)
                if value < COLLAPSED * first:
                    got, wanted = f"variance {value:.2e}", f"{first:.2e} as in the first epoch"
                    raise RunError("a teacher's target has collapsed", where=name, got=got, wanted=wanted)


def dice(prediction: Tensor, truth: Tensor) -> Tensor:
    """Dice of bool masks [b, 1, s, s], one value a frame [b]; 1 where both are empty."""
    overlap = (prediction & truth).flatten(1).sum(1)
    total = prediction.flatten(1).sum(1) + truth.flatten(1).sum(1)
    return torch.where(total > 0, 2 * overlap / total.clamp_min(1), torch.ones_like(overlap, dtype=torch.float32))


def _digest(figures: dict[str, float]) -> str:
    """The figures that a user wants to see every epoch."""
    cosines = [value for name, value in figures.items() if name.count("/") == 3 and name.endswith("/cosine")]
    shown = [f"{name} {figures[name]:.4f}" for name in ("segmentation", "distillation") if name in figures]
    return ", ".join([*shown, f"teacher cosine {sum(cosines) / len(cosines):.3f}"] if cosines else shown) + ","
