"""Checkpoints of a training: the student alone, and all that the next epoch depends on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyp_difom.cache.errors import RunError, first_line
from polyp_difom.pipeline.distributed import leads
from polyp_difom.pipeline.files import contents
from polyp_difom.pipeline.recipe import DistillConfig
from polyp_difom.pipeline.runs import RunFolder, read_checkpoint, write_checkpoint
from polyp_difom.pipeline.students.encoder_weights import digest_of

if TYPE_CHECKING:
    from polyp_difom.pipeline.trainer import Trainer

STATE = ("epoch", "best", "best_epoch", "pieces", "first_variance")
"""What of a trainer, beside tensors, the next epoch depends on."""


def write_student(trainer: Trainer, path: Path) -> None:
    """The student alone, with what it is and what it learned from."""
    manifest = trainer.store.manifest
    header = {**trainer.resolved, "frame_size": manifest.frame_size, "split": manifest.split.model_dump()}
    header |= {"epoch": trainer.epoch, "val_dice": trainer.best, "provenance": _provenance(trainer)}
    write_checkpoint(path, trainer.kept.state_dict(), header)


def _provenance(trainer: Trainer) -> dict[str, Any]:
    """What the student learned from: data sets, and teachers with licence and what is known of their training data."""
    manifest = trainer.store.manifest
    kept = {"name", "weights_digest", "licence", "contamination"}
    return {
        "datasets": [entry.model_dump() for entry in manifest.datasets],
        "teachers": [entry.model_dump(include=kept) for entry in manifest.teachers if entry.name in trainer.teachers],
        "encoder_weights": trainer.pretraining,
    }


def save(trainer: Trainer, run: RunFolder) -> None:
    """Everything that the next epoch depends on: student, its average, heads, optimiser."""
    tensors = {f"student.{name}": value for name, value in trainer.student.state_dict().items()}
    tensors |= {f"objective.{name}": value for name, value in trainer.objective.state_dict().items()}
    if trainer.average:
        tensors |= {f"average.{name}": value for name, value in trainer.kept.state_dict().items()}
    for number, state in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    header = {name: getattr(trainer, name) for name in STATE} | {"config": trainer.resolved}
    write_checkpoint(run.resume_state, tensors, header)


def require_resumable(run: RunFolder) -> None:
    """Raise RunError for a run that is finished, or that was ended before there was anything to go on with."""
    if run.resume_state.is_file():
        return
    finished = run.last.is_file()
    afresh = "give --overwrite in place of --resume" if run.path.is_dir() and contents(run.path) else "leave --resume away"
    raise RunError(
        "the run is finished already" if finished else "nothing to resume", where=run.path,
        wanted=None if finished else "a run that was interrupted",
        remedy=f"polyp-difom evaluate {run.path} --data DIR" if finished else afresh,
    )  # fmt: skip


def as_begun(config: DistillConfig, began: Mapping[str, Any]) -> DistillConfig:
    """The settings of one who goes on: what of the store they leave open is what the run began with."""
    names = ("teachers", "scales", "channels", "encoder_weights", "signature", "reads")
    kept = {name: began.get(name) for name in names if getattr(config, name) is None}
    return config.model_copy(update={name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()})


def _digest(config: Mapping[str, Any]) -> str | None:
    source = config.get("encoder_weights")
    return source and digest_of(source)


def load(trainer: Trainer, run: RunFolder) -> None:
    """Go on where `save` left off.

    Raises:
        RunError: the run was made with another configuration.
    """
    tensors, header = read_checkpoint(run.resume_state)
    if lacking := [name for name in (*STATE, "config") if name not in header]:
        raise RunError(
            "the run's state is of an older version, or damaged", where=run.resume_state, got=f"no {lacking[0]}",
            remedy="give --overwrite to start afresh",
        )  # fmt: skip
    resolved, began_with = trainer.resolved, header["config"]
    free = {"cache", "signature"} if "reads" in began_with else {"cache"}
    if _digest(resolved) == _digest(began_with):
        free |= {"encoder_weights"}
    if differing := {key for key in resolved.keys() & began_with if resolved[key] != began_with[key]} - free:
        key = sorted(differing)[0]
        raise RunError(
            "the run was started with other settings", where=run.path,
            got=f"{key} = {began_with[key]} when it was started, {resolved[key]} now",
            wanted="the same settings", remedy=f"polyp-difom distill --resume -o {run.path}",
        )  # fmt: skip
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    try:
        trainer.student.load_state_dict(parts["student"])
        trainer.kept.load_state_dict(parts["average" if trainer.average else "student"])
        trainer.objective.load_state_dict(parts["objective"])
    except RuntimeError as error:
        raise RunError(
            "the run's state is of another student or objective", where=run.resume_state, got=first_line(error),
            wanted=f"that of {trainer.config.student}, objective {trainer.config.objective}",
            remedy="give --overwrite to start afresh",
        ) from error  # fmt: skip
    state: dict[int, dict[str, Tensor]] = defaultdict(dict)
    parameters = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    for name, value in parts["optimizer"].items():
        number, _, what = name.partition(".")  # fused kernels take it that moments lie like their parameters
        state[int(number)][what] = torch.empty_like(parameters[int(number)]).copy_(value) if value.ndim else value
    trainer.optimizer.load_state_dict({**trainer.optimizer.state_dict(), "state": dict(state)})
    for name in STATE:
        setattr(trainer, name, header[name])
    if leads():
        run.truncate_history(trainer.epoch)
