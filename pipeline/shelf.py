"""What was read of a store: each array of a split once, for any number of trainings over it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from polyp_difom.cache.errors import DataError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.progress import Progress

DEVICE_SHARE = 0.6
"""Share of free device memory that a preloaded store may take."""


class Shelf:
    """Arrays of one store, read when they are first asked for and kept, on the device where they fit."""

    def __init__(self, store: FeatureStore, device: torch.device, progress: Progress):
        self.store, self.device, self.progress = store, device, progress
        self.held: dict[tuple[str, str], Tensor] = {}
        """By (split, key of the array)."""

    def take(self, split: str, keys: Iterable[str]) -> dict[str, Tensor]:
        """Arrays [n, ...] of the n samples of a split, by key.

        Raises:
            DataError: the store has no such samples. CacheError: an array that is missing or damaged.
        """
        rows = np.array([i for i, name in enumerate(self.store.samples.split) if name == split], np.int64)
        if not len(rows):
            raise DataError(f"the store has no {split} frames", where=self.store.location)
        keys = list(keys)
        if lacking := [key for key in keys if (split, key) not in self.held]:
            specs = (self.store.manifest.arrays[key] for key in lacking)
            home = self._home(split, sum(len(rows) * spec.chunks_per_sample * spec.chunk_bytes for spec in specs))
            with self.progress.task(f"reading {split} frames", len(lacking)) as advance:
                for key in lacking:
                    self.held[split, key] = torch.from_numpy(self.store.read(key, rows)).to(home)
                    advance(1)
        return {key: self.held[split, key] for key in keys}

    def _home(self, split: str, size: int) -> torch.device:
        """The device itself where the data fits beside the training, else host memory; says which, and why."""
        if self.device.type != "cuda":
            return self.device
        free, _ = torch.cuda.mem_get_info(self.device)
        fits = size < DEVICE_SHARE * free
        place = "the GPU" if fits else "host memory"
        self.progress.say(f"{split} data goes to {place}: {size / 2**30:.2f} GiB, {free / 2**30:.1f} GiB free on the GPU")
        return self.device if fits else torch.device("cpu")
