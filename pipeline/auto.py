"""`--objective auto`: short pilot trainings decide on the validation frames whether the teachers are to teach, and how.

All candidates and the control `none` are trained for a quarter of the epochs, then the best one and `none` for half of them,
with the same seed, each along its whole schedule. A short training flatters whatever makes learning faster or smoother, which
teaching does: so the longer round decides, and a gain that is gone by then was not one. It must reach a point of mean Dice,
about what another seed moves, and be no chance among the frames (paired sign-flip test). Otherwise nobody teaches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from polyp_difom.cache.errors import RunError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.device import pick_device
from polyp_difom.pipeline.distributed import world
from polyp_difom.pipeline.feed import choose_teachers
from polyp_difom.pipeline.figures import Diverged
from polyp_difom.pipeline.files import alone_in, empty, write_json, write_text
from polyp_difom.pipeline.progress import Advance, Progress
from polyp_difom.pipeline.reads import parts_read
from polyp_difom.pipeline.recipe import DistillConfig
from polyp_difom.pipeline.resuming import as_begun, require_resumable
from polyp_difom.pipeline.runs import PILOTS, RunFolder, read_checkpoint
from polyp_difom.pipeline.schema import learned_by
from polyp_difom.pipeline.shelf import Shelf
from polyp_difom.pipeline.students.encoder_weights import pinned
from polyp_difom.pipeline.subset import choose_subset, open_store, views_of
from polyp_difom.pipeline.teachers.guard import validation_learned
from polyp_difom.pipeline.trainer import Trainer
from polyp_difom.pipeline.yaml_files import read_mapping

AUTO = "auto"
ROUNDS = (0.25, 0.5)
"""Shares of the epochs that pilots are trained for."""
LEAST_EPOCHS = 3
MARGIN = 0.01
"""Mean Dice that the best candidate must gain."""
LEVEL = 0.05
"""Largest probability of such a gain by chance among frames."""
LEAST_FRAMES = 5
"""On which a gain may be no chance: signs of four agree by chance in one case of 16, which is above `LEVEL`."""
FLIPS = 10_000
LESS = 0.3
"""The smaller weight that is tried, as a share of the wanted one."""

Train = Callable[..., RunFolder]
"""`distill`."""


@dataclass(frozen=True)
class Candidate:
    """A way to teach: in words, and what it changes in the settings."""

    label: str
    objective: str
    distill_weight: float
    weight_schedule: str = "constant"

    def settings(self, config: DistillConfig, **others: Any) -> DistillConfig:
        """The settings under which it is trained."""
        changes = {name: value for name, value in asdict(self).items() if name != "label"}
        return config.model_copy(update={**changes, **others})


@dataclass(frozen=True)
class Verdict:
    """What a round found: gains are of mean validation Dice over `none`, by candidate."""

    epochs: int
    gains: dict[str, float]
    best: str
    chance: float

    @property
    def helps(self) -> bool:
        """Whether the best candidate's gain is large enough, and no chance."""
        return self.gains[self.best] >= MARGIN and self.chance < LEVEL

    @property
    def line(self) -> str:
        """In words."""
        gain = f"{100 * self.gains[self.best]:+.1f} points"
        if self.helps:
            return f"auto: {self.best}: {gain} of validation Dice over none after {self.epochs} epochs"
        found = f"{self.best} {gain} after {self.epochs} epochs, chance {self.chance:.2f}"
        verdict = "is shown to help" if self.gains[self.best] > 0 else "helped"
        return f"auto: no teacher {verdict} (best: {found}); training without teachers"


def candidates(config: DistillConfig, store: FeatureStore) -> list[Candidate]:
    """What is tried for the teachers of these settings."""
    chosen = choose_teachers(store, config.teachers)
    kinds = {entry.kind for entry in store.manifest.teachers if entry.name in chosen}
    weight, found = config.distill_weight, []
    if "features" in kinds:
        found = [
            Candidate("multiscale", "multiscale", weight),
            Candidate(f"multiscale (weight {LESS * weight:g})", "multiscale", LESS * weight),
            Candidate("multiscale, decay", "multiscale", weight, "decay"),
            Candidate("multiscale, representation-first", "multiscale", weight, "representation-first"),
        ]
        found += [Candidate(name, name, weight) for name in ("relational", "multiscale+relational")]
    if "mask" in kinds:
        name = "multiscale+logit" if "features" in kinds else "logit"
        found += [Candidate("logit", "logit", weight)] + ([Candidate(name, name, weight)] if name != "logit" else [])
    return found


def choose(
    config: DistillConfig, out: Path, progress: Progress, train: Train, *,
    resume: bool, overwrite: bool, shelf: Shelf | None = None,
) -> tuple[DistillConfig, bool]:  # fmt: skip
    """The settings with the objective that the pilots chose, and whether the training itself is under way already.

    Pilots are run folders in `out`/pilots; with `resume` those that have ended are kept and others go on.

    Raises:
        UsageError: several processes. RunError: the folder is not free, or `resume` and nothing is there to go on with.
    """
    if world() > 1:
        raise UsageError(
            "auto chooses in one process", where="--objective", remedy="run it without torchrun, then train what it chose"
        )
    run, file = RunFolder(out), out / PILOTS / "config.yaml"
    if resume and (run.resume_state.is_file() or not file.is_file()):
        require_resumable(run)
        began = DistillConfig(**run.config())
        names = ("objective", "distill_weight", "weight_schedule", "auto")
        return config.model_copy(update={name: getattr(began, name) for name in names}), True
    if resume and run.last.is_file():
        require_resumable(run)
    if resume and file.is_file():
        config = as_begun(config, read_mapping(file))
    store = open_store(config)
    asked = _settled(config, store)
    _refuse_biased(store, asked.teachers or ())
    control = Candidate("none", "none", config.distill_weight)
    shelf = shelf or Shelf(store, pick_device(config.device), progress)
    judge = Trainer(control.settings(config, compile=False), store, Progress(), resume=True, shelf=shelf)
    replaced = not resume and run.refuse_to_lose(overwrite)
    with alone_in(out):
        if replaced:
            for mark in (file, run.resume_state):  # first: nothing half deleted is gone on with
                mark.unlink(missing_ok=True)
            empty(out)
        _begin(asked, file, store)
        if (frames := store.samples.split.count("val")) < LEAST_FRAMES:
            line = f"auto: {frames} validation frames are too few to show that a gain is no chance; training without teachers"
            progress.say(line)
            return control.settings(asked, auto=line), False
        pilots = _Pilots(asked, out / PILOTS, progress, train, judge, shelf)
        tried = candidates(config, store)
        verdict = pilots.verdict(control, tried)
        write_json(out / PILOTS / "rounds.json", [asdict(found) for found in pilots.rounds])
    progress.say(verdict.line)
    chosen = next(c for c in tried if c.label == verdict.best) if verdict.helps else control
    return chosen.settings(asked, auto=verdict.line), False


def _refuse_biased(store: FeatureStore, teachers: tuple[str, ...]) -> None:
    """UsageError where a teacher has learned the validation frames, on which it would look better than it is."""
    for teacher in teachers:
        seen = {row["pixel_sha256"]: row["split"] for row in learned_by(store, (teacher,))}
        known, held = validation_learned(store.samples, seen)
        if known:
            raise UsageError(
                f"auto cannot judge teacher {teacher!r}", where="--objective auto",
                got=f"it has learned from {known} of the {held} validation frames",
                remedy="name the objective, or leave this teacher out of --teachers",
            )  # fmt: skip


def _settled(config: DistillConfig, store: FeatureStore) -> DistillConfig:
    """The settings with the teachers and scales that pilots and training are to read, whatever the store gains meanwhile."""
    teachers = choose_teachers(store, config.teachers)
    scales = choose_subset(store, teachers, config.scales).scales
    reads = parts_read(store.manifest, teachers, scales, views_of(config, store))
    held: dict[str, Any] = {"signature": config.signature or store.manifest.signature(), "reads": reads}
    own = config.encoder_weights
    held["encoder_weights"] = pinned(own) if own else None
    return config.model_copy(update={"teachers": teachers, "scales": scales, **held})


def _begin(config: DistillConfig, file: Path, store: FeatureStore) -> None:
    """Keeps the settings under which the pilots are trained, or compares those that are resumed under."""
    now = config.model_dump(mode="json") | {"cache": str(store.source)}
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        write_text(file, yaml.safe_dump(now, sort_keys=False))
        return
    before, free = read_mapping(file), {"cache", "signature", "compile"}
    if not before.get("reads"):  # of an older version, which left open what the store held
        before, free = _settled(DistillConfig(**before), store).model_dump(mode="json"), {"cache", "compile"}
    if differing := sorted(name for name in now.keys() - free if before.get(name) != now[name]):
        raise RunError(
            "the pilots were started with other settings", where=file.parent,
            got=f"{differing[0]} = {before.get(differing[0])} when they were started, {now[differing[0]]} now",
            wanted="the same settings", remedy=f"polyp-difom distill --resume -o {file.parent.parent}",
        )  # fmt: skip


class _Bars(Progress):
    """Bars alone: what a pilot says stands in its own log."""

    def __init__(self, inner: Progress, label: str):
        self.inner, self.label = inner, label

    def task(self, label: str, total: int) -> AbstractContextManager[Advance]:
        return self.inner.task(f"pilot {self.label}", total)


@dataclass
class _Pilots:
    """The pilot trainings of one choice."""

    config: DistillConfig
    folder: Path
    progress: Progress
    train: Train
    judge: Trainer
    shelf: Shelf

    def __post_init__(self) -> None:
        self.rounds: list[Verdict] = []

    def verdict(self, control: Candidate, tried: Iterable[Candidate]) -> Verdict:
        """What the last round found that had to be."""
        rivals = list(tried)
        for share in ROUNDS:
            epochs = min(self.config.epochs, max(LEAST_EPOCHS, round(share * self.config.epochs)))
            self.progress.say(f"auto: {len(rivals) + 1} pilots of {epochs} epochs")
            scores = self._scores(control, epochs)
            gains = {c.label: found - scores for c in rivals if (found := self._tried(c, epochs)) is not None}
            if not gains:
                what = "no objective can teach this student from this store"
                raise UsageError(what, where="--objective auto", remedy="give --objective none, or another student")
            best = max(gains, key=lambda label: float(gains[label].mean()))
            means = {label: float(gain.mean()) for label, gain in gains.items()}
            self.rounds.append(Verdict(epochs, means, best, by_chance(gains[best], self.config.seed)))
            listed = ", ".join(f"{label} {100 * mean:+.1f}" for label, mean in means.items())
            self.progress.say(f"auto: after {epochs} epochs none has {float(scores.mean()):.4f}; points over it: {listed}")
            if means[best] <= 0:
                break
            rivals = [c for c in rivals if c.label == best]
        return self.rounds[-1]

    def _tried(self, candidate: Candidate, epochs: int) -> Tensor | None:
        """None where the candidate does not fit student and store, or diverges."""
        try:
            return self._scores(candidate, epochs)
        except (UsageError, Diverged) as error:
            self.progress.say(f"auto: {candidate.label} is left out: {error.what}")
            return None

    def _scores(self, candidate: Candidate, epochs: int) -> Tensor:
        """Dice [n] of the validation frames by the best checkpoint of a pilot, which is trained as far as it was not."""
        run = RunFolder(self.folder / f"{epochs:03d}-{re.sub(r'[^a-z0-9.]+', '-', candidate.label).strip('-')}")
        begun = run.resume_state.is_file()
        if begun or not run.last.is_file():
            settings = candidate.settings(self.config, epochs=epochs, patience=None, compile=False)  # too short for it
            how = {"resume": begun, "overwrite": not begun and run.path.exists(), "shelf": self.shelf}
            self.train(settings, run.path, _Bars(self.progress, candidate.label), **how)
        self.judge.kept.load_state_dict(read_checkpoint(run.best)[0])
        return torch.cat(list(self.judge.scores())).double().cpu()


def by_chance(gains: Tensor, seed: int) -> float:
    """Probability of a mean of paired gains [n] at least as large if each one's sign were a coin's (one-sided)."""
    signs = 2 * torch.randint(2, (FLIPS, len(gains)), generator=torch.Generator().manual_seed(seed)) - 1
    return (1 + int((signs.double() @ gains >= gains.sum() - 1e-12).sum())) / (1 + FLIPS)
