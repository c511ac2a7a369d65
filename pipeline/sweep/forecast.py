"""What a sweep will take, from a few real steps of each kind of trial; nothing is written."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from polyp_difom.cache.errors import CacheError, PolypDifomError, RunError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.distill import DistillConfig
from polyp_difom.pipeline.plan import free_space
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.sweep.folder import SweepConfig
from polyp_difom.pipeline.sweep.pace import Pace, side_by_side
from polyp_difom.pipeline.sweep.probe import choose_jobs, cores, priced, student_facts
from polyp_difom.pipeline.sweep.run import ONE_BY_ONE
from polyp_difom.pipeline.sweep.space import Trial, combinations, named

SECONDS = 1.0
"""Of timed steps of each kind of trial."""
GUIDED = "tpe chooses as it goes: random draws stand for its trials, and those that it prunes take less"


@dataclass(frozen=True)
class Row:
    """One trial: minutes beside its neighbours, and bytes of its run folder when it has ended; None where `note` says why."""

    number: int
    name: str
    settings: dict[str, Any]
    minutes: float | None
    bytes: int | None
    note: str = ""


@dataclass(frozen=True)
class Forecast:
    """What a sweep will take.

    Attributes:
        jobs, threads, reason: trials side by side, CPU threads of each, and why so many.
        minutes: of all trials and of what is measured before them, without reading the store and without trials of no figure.
        bytes: of all run folders at the fullest moment, with what running trials go on from.
        free_bytes: on the disk of the sweep's folder.
        store_bytes: of the store's arrays in memory, once for all trials.
        students: what was measured of each, see `student_facts`.
        note: how the trials were foreseen where they are not known beforehand.
    """

    trials: list[Row]
    jobs: int
    threads: int
    reason: str
    minutes: float
    bytes: int
    free_bytes: int
    store_bytes: int
    students: dict[str, dict[str, Any]]
    note: str = ""


def forecast(config: SweepConfig, store: FeatureStore, where: Path, progress: Progress | None = None) -> Forecast:
    """Predicts minutes and bytes of a sweep with checked factors and a named device.

    Args:
        where: the sweep's folder, there or not.

    Raises:
        RunError: its run folders will not fit on the disk. CacheError: the store cannot be read.
    """
    progress = progress or Progress()
    device, trials = torch.device(config.device), _expected(config)
    machine = {"device": config.device, "signature": config.signature, "threads": config.threads}
    configs = [trial.config(config.cache, config.reads, **machine) for trial in trials]
    began = perf_counter()
    facts = student_facts((one.network for one in configs), store, device, config.threads or 1, progress)
    known = [one for one in configs if facts[one.network]["error"] is None]
    jobs, threads, reason = _jobs(config, known, store, device, progress)
    measuring = perf_counter() - began
    paces = _paces(known, jobs, threads, progress)
    rows = [_row(trial, one, facts[one.network], paces, store) for trial, one in zip(trials, configs, strict=True)]
    found = [pace for pace in paces.values() if isinstance(pace, Pace)]
    predicted = Forecast(
        rows, jobs, threads, reason, measuring / 60 + last_end((row.minutes or 0.0 for row in rows), jobs),
        _peak_bytes(rows, found, jobs, config), free_space(where)[1], _store_bytes(found, store), facts,
        GUIDED if config.sampler == "tpe" else "",
    )  # fmt: skip
    if predicted.bytes > predicted.free_bytes:
        raise RunError(
            "the sweep will not fit on the disk", where=where, got=f"{predicted.free_bytes / 2**20:,.0f} MiB free",
            wanted=f"{predicted.bytes / 2**20:,.0f} MiB", remedy="give another -o, or fewer trials",
        )  # fmt: skip
    return predicted


def _expected(config: SweepConfig) -> list[Trial]:
    if config.sampler != "tpe":
        return config.planned()
    drawn = combinations(config.factors, "random", config.trials, config.sampler_seed)
    return [named(number, settings, config.factors) for number, settings in enumerate(drawn)]


def _jobs(
    config: SweepConfig, configs: Sequence[DistillConfig], store: FeatureStore, device: torch.device, progress: Progress
) -> tuple[int, int, str]:
    """As the sweep itself will decide."""
    if config.jobs is not None:
        return config.jobs, config.threads or max(1, cores() // config.jobs), "as asked"
    if config.sampler == "tpe":
        return 1, config.threads or cores(), ONE_BY_ONE
    return choose_jobs(configs, None, store, device, progress)


def _paces(
    configs: Sequence[DistillConfig], jobs: int, threads: int, progress: Progress
) -> dict[DistillConfig, Pace | PolypDifomError]:
    """The pace of each kind of trial beside others like it, or what is wrong with it."""
    found: dict[DistillConfig, Pace | PolypDifomError] = {}
    kinds = list(dict.fromkeys(priced(one) for one in configs))
    with progress.task("timing a few steps of each kind of trial", len(kinds)) as advance:
        for kind in kinds:
            one = kind.model_copy(update={"threads": threads})
            try:
                paces = side_by_side([one] * min(jobs, len(configs)), SECONDS)
                found[kind] = max(paces, key=lambda pace: pace.step_seconds)
            except CacheError:
                raise
            except PolypDifomError as error:
                found[kind] = error
            advance(1)
    return found


def _row(
    trial: Trial,
    config: DistillConfig,
    facts: Mapping[str, Any],
    paces: Mapping[DistillConfig, Pace | PolypDifomError],
    store: FeatureStore,
) -> Row:
    pace = paces.get(priced(config))
    if not isinstance(pace, Pace):
        error = facts["error"] or (pace.message if pace else "")
        return Row(trial.number, trial.name, trial.settings, None, None, error)
    counts = {split: store.samples.split.count(split) for split in ("train", "val")}
    steps = max(1, counts["train"] // config.batch_size)
    epoch = steps * pace.step_seconds + counts["val"] * (pace.val_seconds or 0.0)
    minutes = (pace.start_seconds + config.epochs * epoch) / 60
    return Row(trial.number, trial.name, trial.settings, minutes, 2 * pace.checkpoint_bytes)


def last_end(minutes: Iterable[float], jobs: int) -> float:
    """When the last trial ends, each begun by the first worker that is free."""
    ends = [0.0] * jobs
    for length in minutes:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def _peak_bytes(rows: Sequence[Row], paces: Sequence[Pace], jobs: int, config: SweepConfig) -> int:
    """Run folders, and states to go on from: two of a running trial while one replaces the other, one of a pruned trial.

    Trials of no figure, which cannot be trained, write neither.
    """
    written = [row.bytes for row in rows if row.bytes is not None]
    state = max((pace.resume_bytes for pace in paces), default=0)
    pruned = len(written) if config.sampler == "tpe" and config.prune else 0
    return sum(written) + (2 * min(jobs, len(written)) + pruned) * state


def _store_bytes(paces: Sequence[Pace], store: FeatureStore) -> int:
    arrays = {key for pace in paces for key in pace.arrays}
    specs = store.manifest.whole()
    return sum(store.samples.split.count(s) * specs[key].chunks_per_sample * specs[key].chunk_bytes for s, key in arrays)
