"""A training that goes wrong by itself: what broke, and what can be typed then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from polyp_difom.pipeline.distributed import leads
from polyp_difom.pipeline.figures import Collapsed, Diverged
from polyp_difom.pipeline.recipe import DistillConfig
from polyp_difom.pipeline.runs import RunFolder

if TYPE_CHECKING:
    from polyp_difom.pipeline.trainer import Trainer

STEADIER = 0.1
"""What the learning rate that is proposed is of the one that was too large, if that is no more than the default."""


def broken_step(trainer: Trainer, step: int) -> Diverged:
    """The error that names the frames of a step of the current epoch, counted from 0."""
    samples, config = trainer.store.samples, trainer.config
    train = [name for name, split in zip(samples.ids, samples.split, strict=True) if split == "train"]
    rows = trainer.train.rows(trainer.epoch, config.batch_size, config.seed)[step]
    return Diverged(
        "the training has diverged: a loss or gradient is not finite",
        where=f"epoch {trainer.epoch + 1}, step {step + 1} of {trainer.steps_per_epoch}",
        got=f"the frames {', '.join(train[row] for row in rows.tolist())}", wanted="finite numbers",
    )  # fmt: skip


@contextmanager
def with_a_way_out(trainer: Trainer, run: RunFolder) -> Iterator[None]:
    """Within it, the error of a training that diverges says what to type, and what is kept; the log says that it diverged.

    A run that diverges in its first epoch has nothing to go on with, and can not be resumed.

    Raises:
        Diverged: it diverged.
    """
    try:
        yield
    except Collapsed:
        raise
    except Diverged as error:
        kept = trainer.epoch > 0
        if leads():
            trainer.progress.say(f"diverged in epoch {trainer.epoch + 1}")
            if not kept:
                run.resume_state.unlink(missing_ok=True)
        details = {name: error.details[name] for name in ("where", "got", "wanted")}
        raise Diverged(error.what, **details, remedy=_remedy(trainer, run, kept)) from error


def _remedy(trainer: Trainer, run: RunFolder, kept: bool) -> str:
    rate = min(STEADIER * trainer.config.learning_rate, DistillConfig.model_fields["learning_rate"].default)
    again = f"polyp-difom distill --config {run.path / 'config.yaml'} --learning-rate {rate:g}"
    precision = ", or with --precision float32" if trainer.precision != "float32" else ""
    if kept:
        return f"{again} -o NEW{precision}; the best student, of epoch {trainer.best_epoch}, is kept in {run.best}"
    return f"{again} -o NEW, or in its place: -o {run.path} --overwrite{precision}; no epoch was done, so nothing is kept"
