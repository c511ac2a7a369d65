"""The store's arrays that a sweep's trials read, once in memory for all of them."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from polyp_difom.cache.errors import PolypDifomError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.distill import DistillConfig
from polyp_difom.pipeline.feed import choose_teachers, target_specs
from polyp_difom.pipeline.memory import free_memory
from polyp_difom.pipeline.objectives.weighted import build_objective, needs_of
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.shelf import DEVICE_SHARE, Shelf
from polyp_difom.pipeline.students.protocol import build_student
from polyp_difom.pipeline.sweep.folder import SweepConfig
from polyp_difom.pipeline.sweep.space import Span, as_read, named
from polyp_difom.pipeline.sweep.worker import Arrays

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
DECIDING = ("student", "objective", "teachers", "scales")
"""Factors that decide which arrays a trial reads."""


def shared_arrays(store: FeatureStore, config: SweepConfig, device: torch.device, progress: Progress) -> Arrays | None:
    """All arrays that any trial reads, in memory that processes share (or on the GPU, where they fit).

    None where shared memory is too small; each process then reads its own.
    """
    wanted, size = arrays_read(store, config)
    on_host = device.type == "cpu" or size >= DEVICE_SHARE * free_memory(device)
    if on_host and SHARED_MEMORY.is_dir() and size > (free := shutil.disk_usage(SHARED_MEMORY).free):
        progress.say(f"each trial reads the store for itself: {size / 2**20:,.0f} MiB, {free / 2**20:,.0f} in {SHARED_MEMORY}")
        return None
    shelf = Shelf(store, device, progress)
    for split, names in wanted.items():
        shelf.take(split, names)
    if not shelf.held:
        return None
    for array in shelf.held.values():
        array.share_memory_()
    held = sum(array.nbytes for array in shelf.held.values())
    progress.say(f"{held / 2**20:,.0f} of {size / 2**20:,.0f} MiB of the store are in memory, once for all trials")
    return shelf.held


def arrays_read(store: FeatureStore, config: SweepConfig) -> tuple[dict[str, list[str]], int]:
    """Keys of all arrays that any trial reads, by split, and the bytes of their rows."""
    keys = [schema.IMAGE, schema.MASK, *sorted(set(_target_keys(store, config)))]
    wanted = {"train": keys, "val": keys[:2]}
    count = {split: store.samples.split.count(split) for split in wanted}
    specs = store.manifest.whole()
    return wanted, sum(count[s] * specs[key].chunks_per_sample * specs[key].chunk_bytes for s in wanted for key in wanted[s])


def _target_keys(store: FeatureStore, config: SweepConfig) -> Iterator[str]:
    """Keys of the teachers' arrays that any combination reads; one that cannot be trained fails later, as a trial."""
    full = store.manifest.spectra == "full"
    for settings in _deciding(config):
        try:
            trial = named(0, settings, config.factors).config(config.cache, config.reads)
            needs = needs_of(trial.objective)
            if not (needs.maps or needs.spectra):
                continue
            specs = target_specs(store, choose_teachers(store, trial.teachers))
            kept = {key: spec for key, spec in specs.items() if trial.scales is None or key[1] in trial.scales}
            with torch.device("meta"):
                student = build_student(trial.student, needs.latents, False)
                pairs = build_objective(trial.objective, student.taps, kept).keys
        except (PolypDifomError, RuntimeError, NotImplementedError):
            continue
        make_key = schema.spectrum_key if needs.spectra and full else schema.embedding_key
        yield from (make_key(*pair) for pair in pairs)


def _deciding(config: SweepConfig) -> Iterator[dict[str, Any]]:
    """Combinations of the factors that decide which arrays are read, each once."""
    default = DistillConfig.model_fields
    lists: dict[str, Iterable[Any]] = {}
    for name in DECIDING:
        values = config.factors.get(name, (default[name].default,))
        lists[name] = () if isinstance(values, Span) else values
    seen: list[dict[str, Any]] = []
    for row in itertools.product(*lists.values()):
        if (settings := as_read(dict(zip(lists, row, strict=True)))) not in seen:
            seen.append(settings)
            yield settings
