"""Evaluates every finished trial of a sweep in its own run folder; what was evaluated alike before is not scored again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyp_difom.cache.errors import CacheError, PolypDifomError, RunError, UsageError
from polyp_difom.pipeline.data.sources import Source
from polyp_difom.pipeline.evaluation.evaluate import Evaluation, evaluate
from polyp_difom.pipeline.evaluation.frames import Frames, frames_of
from polyp_difom.pipeline.evaluation.targets import open_target
from polyp_difom.pipeline.progress import Advance, Progress
from polyp_difom.pipeline.sweep.folder import SweepFolder
from polyp_difom.pipeline.sweep.results import Row, rows
from polyp_difom.pipeline.sweep.trial import is_fault_of_machine


@dataclass(frozen=True)
class Outcome:
    """One finished trial: its evaluation, or why there is none."""

    row: Row
    evaluation: Evaluation | None
    error: PolypDifomError | None = None


def evaluate_trials(
    folder: SweepFolder,
    sources: tuple[Source, ...],
    *,
    split: str = "test",
    split_by: str | None = None,
    seed: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
    **how: Any,
) -> list[Outcome]:
    """Evaluates all trials that were trained to their end, by number, on frames that are decoded once for all of them.

    Args:
        overwrite: trials whose record holds the same figures already are scored again.
        how: further arguments of `evaluate`.

    Raises:
        UsageError, DataError: options or frames that no trial could be scored with. RunError: no trial has finished, or the
            disk refuses. What is wrong with one trial alone is in its outcome.
    """
    progress = progress or Progress()
    trials = [row for row in rows(folder) if row.state == "finished" and row.same_as is None]
    if not trials:
        raise RunError(
            "no trial has finished", where=folder.path, remedy=f"polyp-difom sweep --resume -o {folder.path}"
        )  # fmt: skip
    frames, once, found = Frames(keep=True), _Once(progress), list[Outcome]()
    _refuse_unusable([folder.path / "runs" / row.name for row in trials], sources, split, split_by, seed, device)
    for number, row in enumerate(trials, start=1):
        try:
            result = evaluate(
                folder.path / "runs" / row.name, sources, split=split, split_by=split_by, seed=seed, device=device,
                progress=once, frames=frames, again=overwrite, **how,
            )  # fmt: skip
        except PolypDifomError as error:
            if isinstance(error, UsageError) or error is frames.fault or is_fault_of_machine(error):
                raise
            found.append(Outcome(row, None, error))
            progress.say(f"{number} of {len(trials)}, {row.name} failed: {error.what}")
        else:
            found.append(Outcome(row, result))
            dice = ", ".join(f"{summary.dataset} {summary.mdice:.4f}" for summary in result.summaries)
            kept = " (scored before with these weights, frames and settings; --overwrite scores again)" if result.kept else ""
            progress.say(f"{number} of {len(trials)}, {row.name}: {dice}{kept}")
    return found


def _refuse_unusable(
    runs: Sequence[Path], sources: tuple[Source, ...], split: str, split_by: str | None, seed: int | None, device: str
) -> None:
    """Raises what is wrong with the data, which all trials share; a trial that cannot be opened is no reason to stop."""
    for run in runs:
        try:
            target = open_target(run, device=device)
        except (RunError, CacheError):
            continue
        frames_of(target, sources, split, split_by, seed)
        return


class _Once(Progress):
    """Says each line once, however many trials say it."""

    def __init__(self, inner: Progress):
        self.inner, self.said = inner, set[str]()

    def say(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            self.inner.say(text)

    def task(self, label: str, total: int) -> AbstractContextManager[Advance]:
        return self.inner.task(label, total)
