"""Stage two: a light student learns masks and the cached teachers' maps; no teacher is loaded, no image folder is read.

Every random draw is a function of (seed, epoch), so a run that was stopped and resumed ends at the same weights.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from polyp_difom.cache.errors import CacheError, RunError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.device import autocast, enough_memory, keep_freed_memory, pick_device, pick_precision
from polyp_difom.pipeline.feed import Batch, Feed, choose_teachers, target_specs
from polyp_difom.pipeline.objectives.protocol import OBJECTIVES, Needs, Objective
from polyp_difom.pipeline.progress import Logged, Progress
from polyp_difom.pipeline.runs import RunFolder, read_checkpoint, write_checkpoint
from polyp_difom.pipeline.schedule import one_cycle
from polyp_difom.pipeline.shelf import Shelf
from polyp_difom.pipeline.students.protocol import STUDENTS, Student, build_student, parameter_count

GRADIENT_NORM = 1.0
COLLAPSED = 0.01
"""A target whose variance falls below this share of its first epoch's has collapsed."""


class DistillConfig(BaseModel):
    """Everything that stage two can be told; the resolved values are saved with the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cache: str
    student: str = "unet"
    pretrained: bool = True
    """ImageNet weights for the encoder; resolved to False where the student has none."""
    objective: str = "multiscale"
    teachers: tuple[str, ...] | None = None
    scales: tuple[str, ...] | None = None
    channels: int | None = Field(None, gt=0)
    views: int | None = Field(None, gt=0)
    """Of the store: which scales, how many leading channels of each teacher, how many views; None for all."""
    epochs: int = Field(40, gt=0)
    batch_size: int = Field(16, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    distill_weight: float = Field(1.0, ge=0)
    affine: bool = True
    seed: int = Field(0, ge=0, lt=2**31)
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = Field(None, gt=0)
    """On the CPU; None for as many as PyTorch takes. Sums are rounded differently with another number."""
    signature: str | None = None
    """Of the store that a saved configuration was made for; another store is refused."""


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
    progress = progress or Progress()
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other", remedy="give one of them")
    if not resume:
        RunFolder(out).refuse_to_lose(overwrite)
    store = FeatureStore.open(config.cache)
    store.require_complete()
    if config.signature not in (None, store.manifest.signature()):
        raise CacheError(
            "not the store that the configuration was made for", where=store.location, got=store.manifest.signature(),
            wanted=config.signature, remedy="give that store, or take `signature` out of the configuration",
        )  # fmt: skip
    trainer = Trainer(config, store, progress, resume=resume, shelf=shelf)
    run = _open_run(trainer, out, resume=resume, overwrite=overwrite)
    trainer.progress = Logged(progress, run.path / "train.log")
    with enough_memory(trainer.device):
        trainer.fit(run, watch)
    return run


def _open_run(trainer: Trainer, out: Path, *, resume: bool, overwrite: bool) -> RunFolder:
    if not resume:
        run = RunFolder.create(out, overwrite=overwrite)
        run.describe(trainer.resolved, trainer.store.samples)
        trainer.save(run)
        return run
    run = RunFolder(out)
    if not run.resume_state.is_file():
        finished = run.last.is_file()
        raise RunError(
            "the run is finished already" if finished else "nothing to resume", where=out,
            wanted=None if finished else "a run that was interrupted",
            remedy=f"polyp-difom evaluate {out} --data DIR" if finished else "leave --resume away",
        )  # fmt: skip
    trainer.load(run)
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
        self.device = pick_device(config.device)
        self.precision, reason = pick_precision(self.device, config.precision)
        objective = OBJECTIVES.get(config.objective)
        STUDENTS.get(config.student.partition(":")[0])
        taught = objective.needs.maps or objective.needs.spectra
        self.affine = config.affine and not objective.needs.spectra
        if self.affine != config.affine:
            progress.say(f"no affine augmentation: {config.objective} reads stored spectra; give its control --no-affine too")
        chosen = choose_teachers(store, config.teachers)
        self.teachers = chosen if taught else ()
        specs = target_specs(store, self.teachers)
        torch.manual_seed(config.seed)
        self.student: Student = build_student(config.student, objective.needs.latents, config.pretrained and not resume)
        self.pretraining = self.student.pretraining if config.pretrained else None
        self.objective: Objective = objective(self.student.taps, specs, config.distill_weight)
        for module in (self.student, self.objective):
            module.to(self.device).to(memory_format=torch.channels_last)
        shelf = shelf or Shelf(store, self.device, progress)
        self.train = Feed(store, "train", self.objective.keys, objective.needs, self.device, config.seed, shelf)
        self.val = Feed(store, "val", [], Needs(), self.device, config.seed, shelf)
        self.steps_per_epoch = max(1, len(self.train) // config.batch_size)
        parameters = [*self.student.parameters(), *self.objective.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.epoch, self.best, self.first_variance = 0, -1.0, dict[str, float]()
        progress.say(
            f"{config.student} ({parameter_count(self.student) / 1e6:.2f} M parameters), objective {config.objective}, "
            f"{len(self.train)} train and {len(self.val)} val frames, on {self.device} in {self.precision}: {reason}"
        )
        if self.pretraining and not resume:
            progress.say(f"the encoder starts from pretrained weights: {self.pretraining}")

    @property
    def resolved(self) -> dict[str, Any]:
        """The configuration with every automatic choice replaced by what was chosen."""
        chosen: dict[str, Any] = {"teachers": list(self.teachers), "precision": self.precision, "device": str(self.device)}
        chosen |= {"affine": self.affine, "pretrained": self.pretraining is not None}
        chosen["threads"] = torch.get_num_threads()
        chosen["signature"] = self.store.manifest.signature()
        return {**self.config.model_dump(mode="json"), **chosen}

    def fit(self, run: RunFolder, watch: Watch | None = None) -> None:
        """All epochs that are left; after each, the run folder can be resumed from."""
        total = self.config.epochs * self.steps_per_epoch
        with self.progress.task("distilling", total) as advance:
            advance(self.epoch * self.steps_per_epoch)
            while self.epoch < self.config.epochs:
                began = time.perf_counter()
                figures = self._train_epoch(advance)
                seconds = time.perf_counter() - began
                dice = self.validate()
                self.epoch += 1
                self._check(figures)
                run.log({"epoch": self.epoch, "val_dice": dice, "seconds": seconds, **figures})
                if dice > self.best:
                    self.best = dice
                    self._write(run.best)
                self.save(run)
                text = f"{_digest(figures)} val Dice {dice:.4f} ({seconds:.1f} s)"
                self.progress.say(f"epoch {self.epoch}/{self.config.epochs}: {text}")
                if watch:
                    watch(self.epoch, dice)
        self._write(run.last)
        run.resume_state.unlink()

    def _train_epoch(self, advance) -> dict[str, float]:
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        batches = self.train.epoch(self.epoch, self.config.batch_size, self.config.seed, self.affine)
        for step, batch in enumerate(batches):
            for name, value in self._step(batch, self.epoch * self.steps_per_epoch + step).items():
                sums[name] += value
            advance(1)
        return {name: float(value) / self.steps_per_epoch for name, value in sums.items()}

    def _step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One optimiser step; returns the loss parts."""
        progress = step / (self.config.epochs * self.steps_per_epoch)
        rests = self.objective.freezes_encoder(progress)
        self.student.train()
        self.student.encoder.train(not rests).requires_grad_(not rests)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * one_cycle(progress)
        with autocast(self.device, self.precision):
            logits, taps = self.student.features(batch.frames)
        taps = {name: maps.float() for name, maps in taps.items()}  # heads, FFTs and losses stay in float32
        losses = self.objective(logits.float(), batch.masks, taps, batch.targets, progress)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        nn.utils.clip_grad_norm_((p for g in self.optimizer.param_groups for p in g["params"]), GRADIENT_NORM)
        self.optimizer.step()
        return losses.parts

    @torch.no_grad()
    def validate(self) -> float:
        """Mean per-image Dice at 0.5 on the validation frames, at the store's frame size."""
        self.student.eval()
        scores = []
        for batch in self.val.plain(self.config.batch_size):
            with autocast(self.device, self.precision):
                logits = self.student(batch.frames.contiguous(memory_format=torch.channels_last))
            scores.append(dice(logits > 0, batch.masks > 0.5))
        return float(torch.cat(scores).mean())

    def _check(self, figures: dict[str, float]) -> None:
        """An epoch's figures must be finite, and teachers' targets keep their variance: a collapse looks like a perfect loss.

        Raises:
            RunError: a figure is not finite, or a target's variance fell to less than 1 % of the first epoch's.
        """
        for name, value in figures.items():
            if not math.isfinite(value):
                remedy = "give a smaller --learning-rate, or --precision float32"
                raise RunError("the training has diverged", where=f"{name}, epoch {self.epoch}", got=value, remedy=remedy)
            if name.endswith("target_variance"):
                first = self.first_variance.setdefault(name, value)
                if value < COLLAPSED * first:
                    got, wanted = f"variance {value:.2e}", f"{first:.2e} as in the first epoch"
                    raise RunError("a teacher's target has collapsed", where=name, got=got, wanted=wanted)

    # Checkpoints

    def _write(self, path: Path) -> None:
        manifest = self.store.manifest
        header = {**self.resolved, "frame_size": manifest.frame_size, "split": manifest.split.model_dump()}
        header |= {"epoch": self.epoch, "val_dice": self.best, "provenance": self._provenance()}
        write_checkpoint(path, self.student.state_dict(), header)

    def _provenance(self) -> dict[str, Any]:
        """What the student learned from: data sets, and teachers with licence and what is known of their training data."""
        manifest = self.store.manifest
        kept = {"name", "weights_digest", "licence", "contamination"}
        return {
            "datasets": [entry.model_dump() for entry in manifest.datasets],
            "teachers": [entry.model_dump(include=kept) for entry in manifest.teachers if entry.name in self.teachers],
            "encoder_weights": self.pretraining,
        }

    def save(self, run: RunFolder) -> None:
        """Everything that the next epoch depends on: student, heads, optimiser."""
        tensors = {f"student.{name}": value for name, value in self.student.state_dict().items()}
        tensors |= {f"objective.{name}": value for name, value in self.objective.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        header = {"epoch": self.epoch, "best": self.best, "first_variance": self.first_variance, "config": self.resolved}
        write_checkpoint(run.resume_state, tensors, header)

    def load(self, run: RunFolder) -> None:
        """Go on where `save` left off.

        Raises:
            RunError: the run was made with another configuration.
        """
        tensors, header = read_checkpoint(run.resume_state)
        resolved, began_with = self.resolved, header["config"]
        if differing := {key for key in resolved.keys() & began_with if resolved[key] != began_with[key]} - {"cache"}:
            key = sorted(differing)[0]
            raise RunError(
                "the run was started with other settings", where=run.path,
                got=f"{key} = {began_with[key]} when it was started, {resolved[key]} now",
                wanted="the same settings", remedy=f"polyp-difom distill --resume -o {run.path}",
            )  # fmt: skip
        parts: dict[str, dict[str, Tensor]] = {"student": {}, "objective": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        self.student.load_state_dict(parts["student"])
        self.objective.load_state_dict(parts["objective"])
        state: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, value in parts["optimizer"].items():
            number, _, what = name.partition(".")
            is_map = value.ndim == 4  # AdamW fuses its kernels only where moments lie like their parameters
            state[int(number)][what] = value.contiguous(memory_format=torch.channels_last) if is_map else value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": dict(state)})
        self.epoch, self.best, self.first_variance = header["epoch"], header["best"], header["first_variance"]
        run.truncate_history(self.epoch)


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
