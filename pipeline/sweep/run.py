"""A sweep from its settings to its table: made or joined, measured, run on an engine."""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch

from polyp_difom.cache.claims import joined
from polyp_difom.cache.errors import UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.device import pick_device
from polyp_difom.pipeline.files import write_json
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.reads import parts, views_read
from polyp_difom.pipeline.sweep.arrays import shared_arrays
from polyp_difom.pipeline.sweep.folder import SweepConfig, SweepFolder
from polyp_difom.pipeline.sweep.local import Look, run_local
from polyp_difom.pipeline.sweep.probe import choose_jobs, cores, student_facts
from polyp_difom.pipeline.sweep.processes import context, end_with_parent
from polyp_difom.pipeline.sweep.results import write_results
from polyp_difom.pipeline.sweep.space import Span, checked, networks
from polyp_difom.pipeline.sweep.worker import Arrays

ONE_BY_ONE = "one trial after another, each chosen from those before it; --jobs N for several side by side"


class Engine(Protocol):
    """Where trials run."""

    def device(self, name: str) -> str:
        """What trials are told of the device that a user names."""

    def ready(self, config: SweepConfig, store: FeatureStore, progress: Progress) -> tuple[SweepConfig, Arrays | None]:
        """The settings with threads (and jobs, where they are a setting of the sweep) decided, and the store's arrays."""

    def facts(
        self, names: tuple[str, ...], config: SweepConfig, store: FeatureStore, progress: Progress
    ) -> dict[str, dict[str, Any]]:
        """What `student_facts` measures, of students on trials' device and threads."""

    def run(self, folder: SweepFolder, config: SweepConfig, arrays: Arrays | None, progress: Progress, look: Look) -> None:
        """Runs trials until all have ended; raises what would stop every other trial too."""


class Local:
    """Processes on this machine, as many as are measured to be fastest."""

    run = staticmethod(run_local)

    def device(self, name: str) -> str:
        """See `Engine`; named in full."""
        return str(pick_device(name))

    def ready(self, config: SweepConfig, store: FeatureStore, progress: Progress) -> tuple[SweepConfig, Arrays | None]:
        """See `Engine`."""
        device = torch.device(config.device)
        arrays = shared_arrays(store, config, device, progress)
        if config.jobs is not None:
            jobs, threads = config.jobs, max(1, cores() // config.jobs)
        else:
            machine = {"device": config.device, "signature": config.signature, "threads": config.threads}
            configs = [trial.config(config.here().cache, config.reads, **machine) for trial in config.planned()]
            jobs, threads, reason = (1, cores(), ONE_BY_ONE)
            if configs:
                jobs, threads, reason = choose_jobs(configs, arrays, store, device, progress)
            progress.say(reason)
        return config.model_copy(update={"jobs": jobs, "threads": config.threads or threads}), arrays

    def facts(
        self, names: tuple[str, ...], config: SweepConfig, store: FeatureStore, progress: Progress
    ) -> dict[str, dict[str, Any]]:
        """See `Engine`."""
        device = torch.device(config.device)
        progress.say(f"measuring {len(names)} students")
        threads = config.threads or 1
        apart = ProcessPoolExecutor(
            1, context(device, threads), end_with_parent
        )  # the timed threads would stay in this process
        with apart:
            return apart.submit(student_facts, names, store, device, threads, Progress()).result()


LOCAL = Local()


def resolved(config: SweepConfig, store: FeatureStore, engine: Engine = LOCAL) -> SweepConfig:
    """The same settings with every factor checked against the store and the device named.

    Raises:
        UsageError: a factor or value that cannot be. CacheError: the store is incomplete.
    """
    store.require_complete()
    factors, device = checked(config.factors, store, config.sampler), engine.device(config.device)
    reads = parts(store.manifest, views_read(config.reads, store.manifest))
    held = {"signature": store.manifest.signature(), "reads": reads}
    return config.model_copy(update={"factors": factors, "device": device, **held})


def sweep(
    config: SweepConfig | None,
    path: Path,
    progress: Progress | None = None,
    *,
    resume: bool = False,
    join: bool = False,
    overwrite: bool = False,
    retry_failed: bool = False,
    look: Look = lambda: None,
    engine: Engine = LOCAL,
) -> SweepFolder:
    """Trains every trial, or those that are left, and returns the sweep's folder.

    Args:
        config: what to sweep; None to go on with what the folder says.
        resume: go on with a sweep that is there. join: help with it, or begin it where it is not there yet.
        retry_failed: with `resume`, trials that failed go on too.
        look: called about once a second.

    Raises:
        UsageError: settings that cannot be, or that differ from those that the sweep was begun with.
        CacheError: a store that cannot be read, or is not the one that the sweep was begun over. RunError: the folder, or
            the disk.
    """
    progress = progress or Progress()
    if resume + join + overwrite > 1:
        raise UsageError("--resume, --join and --overwrite exclude each other", remedy="give one of them")
    if retry_failed and not resume:
        raise UsageError("--retry-failed goes with --resume", wanted="--resume --retry-failed -o FOLDER")
    folder = SweepFolder.open(path) if resume or config is None else SweepFolder(path)
    goes_on = resume or join
    if not goes_on:
        folder.refuse_to_lose(overwrite)
    asked = config or folder.config()
    if goes_on and folder.exists:  # in the views that there were
        asked = asked.model_copy(update={"reads": folder.config().reads})
    store = FeatureStore.open(asked.here(progress.say).cache)
    asked = resolved(asked, store, engine)
    folder.make()
    if not goes_on:
        folder.clear(overwrite)
    with joined(folder.path) as claims, claims.alone():
        asked = _agreed(asked, folder, goes_on)
        if resume:
            folder.revive(failed=retry_failed)
        asked, arrays = _ready(asked, folder, store, progress, engine)
        if not folder.exists:
            folder.create(asked)
    engine.run(folder, asked, arrays, progress, look)
    write_results(folder)
    return folder


def _agreed(asked: SweepConfig, folder: SweepFolder, goes_on: bool) -> SweepConfig:
    """The settings beside those of a sweep that goes on; for a new one the folder must still be free."""
    if folder.exists and goes_on:
        return folder.agreed(asked)
    folder.refuse_to_lose(overwrite=False)  # another process may have begun one meanwhile
    folder.students.unlink(missing_ok=True)
    return asked


def _ready(
    config: SweepConfig, folder: SweepFolder, store: FeatureStore, progress: Progress, engine: Engine
) -> tuple[SweepConfig, Arrays | None]:
    """What the engine decides, and the store's arrays; the students are measured while nothing else runs."""
    if config.sampler != "tpe":
        trials, every = len(config.planned()), math.prod(len(v) for v in config.factors.values() if not isinstance(v, Span))
        merged = "; combinations that differ only in what their objective does not read are one trial"
        progress.say(f"{trials} trials{merged if config.sampler == 'grid' and trials < every else ''}")
    config, arrays = engine.ready(config, store, progress)
    held = folder.facts()
    if missing := tuple(name for name in networks(config.factors) if name not in held):  # some, where an older version measured
        write_json(folder.students, held | engine.facts(missing, config, store, progress))
    return config, arrays
