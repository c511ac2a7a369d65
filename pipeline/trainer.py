"""One training: student, objective, optimiser and data; its steps, epochs and validations. Shapes: b batch, s frame side."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from polyp_difom.cache.errors import UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.averaging import AveragedStudent
from polyp_difom.pipeline.compiling import Compiling, refuse_several
from polyp_difom.pipeline.device import (
    autocast,
    keep_freed_memory,
    out_of_memory,
    pick_device,
    pick_precision,
    training_autocast,
)
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
from polyp_difom.pipeline.divergence import broken_step
from polyp_difom.pipeline.feed import Batch, Feed, choose_teachers, target_specs
from polyp_difom.pipeline.figures import Means, check, dice, digest
from polyp_difom.pipeline.journal import draw_curves
from polyp_difom.pipeline.losses import LOSSES, supervise
from polyp_difom.pipeline.objectives.protocol import Losses, Needs, Objective
from polyp_difom.pipeline.objectives.weighted import build_objective, needs_of
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.reads import parts_read
from polyp_difom.pipeline.recipe import DistillConfig
from polyp_difom.pipeline.resuming import save, write_student
from polyp_difom.pipeline.runs import RunFolder
from polyp_difom.pipeline.schedule import RATES
from polyp_difom.pipeline.shelf import Shelf
from polyp_difom.pipeline.students.encoder_weights import MARK, described, pinned
from polyp_difom.pipeline.students.protocol import STUDENTS, Student, build_student
from polyp_difom.pipeline.subset import choose_subset, views_of

OPTIMIZERS: dict[str, type[torch.optim.Adam]] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}

Watch = Callable[[int, float], None]
"""Told (epoch, validation Dice) after each epoch, once it is saved; what it raises ends the training there."""


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
        self.precision, self.why_precision = pick_precision(self.device, config.precision)
        needs = needs_of(config.objective)
        STUDENTS.get(config.student.partition(":")[0])
        taught = needs.maps or needs.spectra
        self.affine = config.affine and not needs.spectra
        if self.affine != config.affine:
            progress.say(f"no affine augmentation: {config.objective} reads stored spectra; give its control --no-affine too")
        if config.has_latents and not config.latents:
            progress.say(f"{config.student} gets latents, which {config.objective} teaches; give its control --latents too")
        chosen = choose_teachers(store, config.teachers)
        self.teachers = chosen if taught else ()
        self.subset = choose_subset(store, chosen, config.scales, config.channels, views_of(config, store))
        self._build(resume)
        if config.drop_teachers and taught and self.objective.alone:
            raise UsageError(f"objective {config.objective!r} needs all its teachers in every step", where="--drop-teachers")
        shelf = shelf or Shelf(store, self.device, progress)
        self.train = Feed(store, "train", self.objective.keys, needs, self.device, config.seed, shelf, self.subset)
        self.val = Feed(store, "val", [], Needs(), self.device, config.seed, shelf)
        refuse_uneven(min(config.batch_size, len(self.train)))
        refuse_several(config.compile)
        self.steps_per_epoch = max(1, len(self.train) // config.batch_size)
        parameters = [*self.student.parameters(), *self.objective.parameters()]
        optimizer = OPTIMIZERS[config.optimizer]
        self.optimizer = optimizer(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
        self.epoch, self.best, self.best_epoch, self.first_variance = 0, -1.0, 0, dict[str, float]()
        self.pieces = 1  # of a batch, for want of memory
        self.compiling: Compiling | None = None
        self.begins = not resume

    def _build(self, resume: bool) -> None:
        """Student, objective and averaged student; what is drawn depends on the seed alone."""
        config = self.config
        torch.manual_seed(config.seed)
        own = config.encoder_weights
        self.encoder_weights = own if own is None or (resume and MARK in own) else pinned(own)
        self.student: Student = build_student(
            config.student, config.has_latents, config.pretrained and not resume, None if resume else self.encoder_weights
        )
        self.pretraining = self.student.pretraining if config.pretrained else None
        if self.encoder_weights:
            self.pretraining = described(self.encoder_weights)
        specs = target_specs(self.store, self.teachers, self.subset)
        self.objective: Objective = build_objective(
            config.objective, self.student.taps, specs, config.distill_weight, config.weight_schedule if specs else "constant"
        )
        for module in (self.student, self.objective):
            module.to(self.device).to(memory_format=torch.channels_last)
        self.average = AveragedStudent(self.student, config.ema) if config.ema else None

    @property
    def kept(self) -> Student:
        """The student that is validated and saved: the averaged one where there is one."""
        return self.average.student if self.average else self.student

    @property
    def over(self) -> bool:
        """Whether all epochs are done, or so many without a better validation Dice as patience lasts.

        It does not run while the teachers alone are learned from.
        """
        epochs = self.config.epochs
        unsegmented = sum(not self.objective.shares(epoch / epochs)[0] for epoch in range(epochs))
        idle = self.epoch - max(self.best_epoch, unsegmented)
        return self.epoch >= epochs or idle >= (self.config.patience or epochs)

    @property
    def resolved(self) -> dict[str, Any]:
        """The configuration with every automatic choice replaced by what was chosen; `compile` is free to change."""
        chosen: dict[str, Any] = {
            "teachers": list(self.teachers),
            "precision": self.precision,
            "device": str(pick_device(self.config.device)),
        }
        chosen |= {"affine": self.affine, "pretrained": self.pretraining is not None, **self.subset.resolved()}
        chosen |= {
            "latents": self.config.has_latents,
            "encoder_weights": self.encoder_weights,
            "threads": torch.get_num_threads(),
        }
        manifest = self.store.manifest
        chosen |= {"signature": self.config.signature or manifest.signature(), "cache": str(self.store.source)}
        chosen["reads"] = parts_read(manifest, self.teachers, self.subset.scales, self.subset.views)
        return {**self.config.model_dump(mode="json", exclude={"compile"}), **chosen}

    def fit(self, run: RunFolder, watch: Watch | None = None) -> None:
        """All epochs that are left; after each, the run folder can be resumed from."""
        meet(self.device)
        total = self.config.epochs * self.steps_per_epoch
        if self.config.compile:
            self.compiling = Compiling(self.student, self.device, self.precision, self.progress.say)
        with self.progress.task("distilling", total) as advance:
            advance(self.epoch * self.steps_per_epoch)
            while not self.over:
                began = time.perf_counter()
                figures = self._train_epoch(advance)
                seconds = time.perf_counter() - began
                check(figures, self.first_variance, self.epoch, self.progress.say if self.objective.may_collapse else None)
                dice = self.validate()
                self.epoch += 1
                better = dice > self.best
                if better:
                    self.best, self.best_epoch = dice, self.epoch
                if leads():
                    self._keep(run, better, {"epoch": self.epoch, "val_dice": dice, "seconds": seconds, **figures})
                    if watch:
                        watch(self.epoch, dice)
        if self.epoch < self.config.epochs:
            self.progress.say(f"stopped early: no better validation Dice for {self.config.patience} epochs")
        if leads():
            write_student(self, run.last)
            run.resume_state.unlink()

    def _keep(self, run: RunFolder, better: bool, record: dict[str, float]) -> None:
        run.log(record)
        draw_curves(run)
        if better:
            write_student(self, run.best)
        save(self, run)
        minutes = (self.config.epochs - self.epoch) * record["seconds"] / 60
        took = f"{record['seconds']:.1f} s" + (f", about {minutes:,.0f} minutes to go" if minutes > 1 else "")
        text = f"{digest(record)} val Dice {record['val_dice']:.4f} ({took})"
        self.progress.say(f"epoch {self.epoch}/{self.config.epochs}: {text}")

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The augmented train batches of an epoch."""
        c = self.config
        return self.train.epoch(epoch, c.batch_size, c.seed, self.affine, colour=c.colour, drop=c.drop_teachers)

    def _train_epoch(self, advance: Callable[[int], None]) -> dict[str, float]:
        torch.manual_seed((self.config.seed * 1_000_003 + self.epoch) * world() + rank())  # of a student's dropout
        means = Means()
        sound = torch.ones(self.steps_per_epoch, device=self.device)
        for step, batch in enumerate(self.batches(self.epoch)):
            parts, sound[step] = self.step(batch, self.epoch * self.steps_per_epoch + step)
            means.add(parts)
            advance(1)
        if (broken := average(sound) < 1).any():
            raise broken_step(self, int(broken.nonzero()[0]))
        return means.values()

    def step(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """One optimiser step; returns the loss parts, and whether loss and gradient were finite."""
        total = self.config.epochs * self.steps_per_epoch
        progress = step / total
        rests = self.objective.freezes_encoder(progress)
        self.student.train()
        self.student.encoder.train(not rests).requires_grad_(not rests)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * RATES[self.config.schedule](progress)
        descend = partial(self._descend, batch, progress)
        losses = self.compiling.step(descend, total - step) if self.compiling else descend()
        parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.config.clip or math.inf)
        self.optimizer.step()
        if self.average:
            self.average.update(self.student, step)
        return losses.parts, torch.isfinite(losses.total) & torch.isfinite(norm)

    def _descend(self, batch: Batch, progress: float) -> Losses:
        """The batch's losses, and their gradients; where memory is too small, in pieces of half as many frames."""
        while True:
            try:
                return self._gradients(batch, progress)
            except RuntimeError as error:
                if self.pieces >= len(batch.frames) or world() > 1 or not out_of_memory(error):
                    raise
            self.pieces *= 2  # outside of `except`, whose error holds on to the tensors
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.progress.say(
                f"out of memory: from here on {self._at_once(batch)} frames at once, their gradients added up to a batch's; "
                "batch norms see only so many together"
            )

    def _at_once(self, batch: Batch) -> int:
        return -(-len(batch.frames) // self.pieces)

    def _gradients(self, batch: Batch, progress: float) -> Losses:
        self.optimizer.zero_grad(set_to_none=True)
        if self.pieces == 1:
            losses = self._losses(batch, progress)
            losses.total.backward()
            return losses
        total, parts = torch.zeros((), device=self.device), dict[str, Tensor]()
        for piece in batch.split(self._at_once(batch)):
            share = len(piece.frames) / len(batch.frames)
            losses = self._losses(piece, progress)
            (share * losses.total).backward()
            total = total + share * losses.total.detach()
            parts = {name: parts.get(name, 0) + share * value for name, value in losses.parts.items()}
        return Losses(total, parts)

    def _losses(self, batch: Batch, progress: float) -> Losses:
        features = self.compiling.features if self.compiling else self.student.features
        with training_autocast(self.device, self.precision), synchronised():
            logits, taps = features(batch.frames)
        taps = {name: maps.float() for name, maps in taps.items()}  # heads, FFTs and losses stay in float32
        logits, sides = logits.float(), [taps.pop(name) for name in self.student.sides]
        segmentation = supervise(LOSSES[self.config.loss], logits, sides, batch.masks)
        return self.objective(segmentation, logits, taps, batch.targets, progress)

    def validate(self) -> float:
        """Mean per-image Dice at 0.5 on the validation frames, at the store's frame size."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for scores in self.scores():
            total += scores.sum()
        return float(average(total)) * world() / len(self.val)

    @torch.no_grad()
    def scores(self) -> Iterator[Tensor]:
        """Dice [b] of each validation frame, batch by batch; each process has its share of them."""
        self.kept.eval()
        for batch in self.val.plain(max(1, self.config.batch_size // world() // self.pieces)):
            with autocast(self.device, self.precision):
                logits = self.kept(batch.frames.contiguous(memory_format=torch.channels_last))
            yield dice(logits > 0, batch.masks > 0.5)
