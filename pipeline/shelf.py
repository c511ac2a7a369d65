"""What was read of a store: each array of a split once, for any number of trainings over it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyp_difom.cache.errors import DataError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.memory import free_memory
from polyp_difom.pipeline.ondisk import OnDisk
from polyp_difom.pipeline.progress import Progress

DEVICE_SHARE = 0.6
"""Share of free memory that a preloaded store may take."""
PLACES = {"cuda": "the GPU", "cpu": "host memory"}


class Shelf:
    """Arrays of one store, read when they are first asked for and kept, on the device where they fit."""

    def __init__(
        self, store: FeatureStore, device: torch.device, progress: Progress, held: dict[tuple[str, str], Tensor] | None = None
    ):
        self.store, self.device, self.progress = store, device, progress
        self.held: dict[tuple[str, str], Tensor] = held or {}
        """By (split, key of the array)."""

    def take(self, split: str, keys: Iterable[str], views: int | None = None) -> dict[str, Tensor | OnDisk]:
        """Arrays [n, ...] of the n samples of a split, by key; where memory is too small for them, they stay on the disk.

        Args:
            views: of arrays that have views, read and give the first few only.

        Raises:
            DataError: the store has no such samples. CacheError: an array that is missing or damaged.
        """
        rows = np.array([i for i, name in enumerate(self.store.samples.split) if name == split], np.int64)
        if not len(rows):
            raise DataError(f"the store has no {split} frames", where=self.store.location)
        specs = self.store.manifest.whole()
        wanted = {key: min(specs[key].chunks_per_sample, views or specs[key].chunks_per_sample) for key in keys}
        if lacking := [key for key, chunks in wanted.items() if self._chunks_held(split, key) < chunks]:
            size = sum(len(rows) * wanted[key] * specs[key].chunk_bytes for key in lacking)
            home = self._home(split, size)
            if home is None:
                on_disk = {key: OnDisk(self.store, key, rows) for key in lacking}
                return {key: on_disk[key] if key in on_disk else self.held[split, key] for key in wanted}
            with self.progress.task(f"reading {split} frames", len(lacking)) as advance:
                for key in lacking:
                    self.held[split, key] = self._read(key, rows, wanted[key]).to(home)
                    advance(1)
        held = {key: self.held[split, key] for key in wanted}
        return {key: held[key][:, :chunks] if specs[key].chunk_dims else held[key] for key, chunks in wanted.items()}

    def _chunks_held(self, split: str, key: str) -> int:
        """Chunks of a sample that are here: views, where the array has some."""
        held = self.held.get((split, key))
        if held is None:
            return 0
        return held.shape[1] if self.store.manifest.arrays[key].chunk_dims else 1

    def _read(self, key: str, rows: NDArray[np.int64], chunks: int) -> Tensor:
        spec = self.store.manifest.whole()[key]
        if chunks == spec.chunks_per_sample:
            return torch.from_numpy(self.store.read(key, rows))
        numbers = np.stack([rows.repeat(chunks), np.tile(np.arange(chunks), len(rows))], 1)
        return torch.from_numpy(self.store.read(key, numbers)).unflatten(0, (len(rows), chunks))

    def _home(self, split: str, size: int) -> torch.device | None:
        """The device itself where the data fits beside the training, else host memory, else None; says which, and why."""
        for device in dict.fromkeys((self.device, torch.device("cpu"))):
            if device.type == "cuda":
                torch.cuda.empty_cache()  # else what an earlier training of this process let go of counts as taken
            free = free_memory(device)
            if fits := size < DEVICE_SHARE * free:
                break
        place = "stays on disk, each batch is read when it is needed" if not fits else f"goes to {PLACES[device.type]}"
        if not fits or self.device.type == "cuda":
            self.progress.say(f"{split} data {place}: {size / 2**30:.2f} GiB, {free / 2**30:.1f} GiB free")
        return device if fits else None
