"""From the store to batches on the device: everything is read once, then every epoch runs from memory.

Shapes: b batch, n samples, v views, c channels, h w grid, s frame side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polyp_difom.cache.errors import CacheError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import augment, schema, spectra
from polyp_difom.pipeline.data.frames import flip_axes
from polyp_difom.pipeline.objectives.protocol import Key, Needs, Targets, TargetSpec
from polyp_difom.pipeline.shelf import Shelf


@dataclass(frozen=True)
class Batch:
    """Frames float [b, 3, s, s] in 0..1, masks float [b, 1, s, s], and the teachers' maps of just these frames."""

    frames: Tensor
    masks: Tensor
    targets: Targets


def choose_teachers(store: FeatureStore, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """The wanted teachers of a store, all of them by default.

    Raises:
        UsageError: a teacher that the store does not hold.
    """
    held = tuple(entry.name for entry in store.manifest.teachers)
    strangers = set(wanted or ()) - set(held)
    if strangers:
        raise UsageError(
            f"the store does not hold teacher {sorted(strangers)[0]!r}",
            where=store.location,
            wanted=f"some of: {', '.join(held)}",
        )
    return wanted or held


def target_specs(store: FeatureStore, teachers: tuple[str, ...]) -> dict[Key, TargetSpec]:
    """What the store offers an objective, by (teacher, scale).

    Raises:
        CacheError: a teacher's basis is missing.
    """
    specs: dict[Key, TargetSpec] = {}
    entries = {entry.name: entry for entry in store.manifest.teachers}
    for name in teachers:
        entry = entries[name]
        for scale, cells in store.manifest.scales.items():
            record = store.read_constants(schema.basis_of(entry, scale))
            if record is None:
                raise CacheError(f"the basis of teacher {name!r} is missing", where=store.location, remedy="run extract again")
            std = float(np.sqrt(record[1]["variances"][scale]))
            specs[name, scale] = TargetSpec(entry.channels_at(scale), cells, schema.scale_stride(scale), std)
    return specs


class Feed:
    """One split of a store, preloaded.

    Args:
        keys: the (teacher, scale) maps to load; none for a control or for validation.
        needs: of the objective: maps or spectra, from the right or (shuffled) another frame.
        shelf: where the arrays lie, or are read to.
    """

    def __init__(
        self,
        store: FeatureStore,
        split: str,
        keys: list[Key],
        needs: Needs,
        device: torch.device,
        seed: int,
        shelf: Shelf,
    ):
        self.needs, self.device = needs, device
        self.axes = [flip_axes(view) for view in store.manifest.views]
        full = store.manifest.spectra == "full"
        stored_spectra = needs.spectra and full
        target_key = schema.spectrum_key if stored_spectra else schema.embedding_key
        loaded = shelf.take(split, [schema.IMAGE, schema.MASK, *(target_key(*key) for key in keys)])
        self.images, self.masks = loaded.pop(schema.IMAGE), loaded.pop(schema.MASK)
        self.maps = {key: loaded[target_key(*key)] for key in keys}
        self._holds_spectra = stored_spectra
        self._wrong = _derangement(len(self.images), seed) if needs.shuffled else None

    def __len__(self) -> int:
        return len(self.images)

    def epoch(self, number: int, batch_size: int, seed: int, affine: bool) -> Iterator[Batch]:
        """Shuffled, augmented full batches; a pure function of (seed, number), whatever ran before."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        order = torch.randperm(len(self), generator=generator)
        whole = max(1, len(order) // batch_size) * batch_size
        for rows in order[:whole].split(batch_size):
            yield self._batch(rows, generator, affine)

    def plain(self, batch_size: int) -> Iterator[Batch]:
        """All frames in order, as they are, without targets."""
        for rows in torch.arange(len(self)).split(batch_size):
            yield Batch(self._take(self.images, rows).float() / 255, self._take(self.masks, rows)[:, None].float(), Targets())

    def _batch(self, rows: Tensor, generator: torch.Generator, affine: bool) -> Batch:
        views = torch.randint(len(self.axes), (len(rows),), generator=generator)
        frames = augment.flip_views(self._take(self.images, rows).float() / 255, views, self.axes)
        masks = augment.flip_views(self._take(self.masks, rows)[:, None].float(), views, self.axes)
        source = rows if self._wrong is None else self._wrong[rows]
        maps = {key: self._take(held, source, views).float() for key, held in self.maps.items()}
        if affine:
            matrices = augment.draw_affine(generator, len(rows))
            frames = augment.resample(frames, matrices)
            masks = augment.resample(masks, matrices, mode="nearest")
            maps = {key: augment.resample(value, matrices) for key, value in maps.items()}
        frames = augment.jitter_colour(frames, generator).contiguous(memory_format=torch.channels_last)
        return Batch(frames, masks, self._targets(maps))

    def _targets(self, maps: dict[Key, Tensor]) -> Targets:
        if not self.needs.spectra:
            return Targets(maps=maps)
        convert = spectra.unpack if self._holds_spectra else spectra.spectrum
        return Targets(spectra={key: convert(value) for key, value in maps.items()})

    def _take(self, held: Tensor, *index: Tensor) -> Tensor:
        return held[tuple(i.to(held.device) for i in index)].to(self.device, non_blocking=True)


def _derangement(n: int, seed: int) -> Tensor:
    """A fixed permutation without fixed points, [n]: every frame gets another one's targets (unless it is alone)."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    wrong = torch.empty_like(order)
    wrong[order] = order.roll(1)
    return wrong
