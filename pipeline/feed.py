"""From the store to batches on the device: everything is read once, then every epoch runs from memory, if it holds that much.

Shapes: b batch, n samples, v views, c channels, h w grid, s frame side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from polyp_difom.cache.errors import UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import augment, distributed, schema, spectra
from polyp_difom.pipeline.data.frames import flip_axes
from polyp_difom.pipeline.objectives.protocol import Key, Needs, Targets, TargetSpec
from polyp_difom.pipeline.ondisk import OnDisk
from polyp_difom.pipeline.shelf import Shelf
from polyp_difom.pipeline.subset import Subset, choose_subset, deviation, narrowed, narrowing


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


def target_specs(store: FeatureStore, teachers: tuple[str, ...], subset: Subset | None = None) -> dict[Key, TargetSpec]:
    """What the store, or a subset of it, offers an objective, by (teacher, scale).

    Raises:
        CacheError: a teacher's basis is missing.
    """
    specs: dict[Key, TargetSpec] = {}
    entries = {entry.name: entry for entry in store.manifest.teachers}
    subset = subset or choose_subset(store, tuple(entries))
    for name in teachers:
        entry = entries[name]
        for scale in subset.scales:
            channels, cells = min(subset.channels, entry.channels_at(scale)), store.manifest.scales[scale]
            std = deviation(store, entry, scale, subset)
            specs[name, scale] = TargetSpec(channels, cells, schema.scale_stride(scale), std)
    return specs


class Feed:
    """One split of a store, preloaded where it fits.

    Args:
        keys: the (teacher, scale) maps to load; none for a control or for validation.
        needs: of the objective: maps or spectra, from the right or (shuffled) another frame.
        shelf: where the arrays lie, or are read to.
        subset: channels and views to read; all by default.
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
        subset: Subset | None = None,
    ):
        entries = {entry.name: entry for entry in store.manifest.teachers}
        subset = subset or choose_subset(store, tuple(entries))
        self.needs, self.device = needs, device
        self.axes = [flip_axes(view) for view in store.manifest.views[: subset.views]]
        self._holds_spectra = needs.spectra and store.manifest.spectra == "full"
        target_key = schema.spectrum_key if self._holds_spectra else schema.embedding_key
        loaded = shelf.take(split, [schema.IMAGE, schema.MASK, *(target_key(*key) for key in keys)], subset.views)
        self.images, self.masks = loaded.pop(schema.IMAGE), loaded.pop(schema.MASK)
        self.maps: dict[Key, Tensor | OnDisk] = {}
        self._steps: dict[Key, Tensor] = {}
        steps_of = schema.steps_of(store)
        for key in keys:
            held, steps = loaded.pop(target_key(*key)), steps_of.get(target_key(*key))
            if (weight := narrowing(store, entries[key[0]], key[1], subset)) is not None:
                weight = weight if steps is None else weight * torch.from_numpy(steps).flatten()
                held = held.narrowed(weight) if isinstance(held, OnDisk) else narrowed(held, weight)
            elif steps is not None:
                self._steps[key] = torch.from_numpy(steps).to(device)
            self.maps[key] = held
        self._wrong = _derangement(len(self.images), seed) if needs.shuffled else None

    def __len__(self) -> int:
        return len(self.images)

    def epoch(self, number: int, batch_size: int, seed: int, affine: bool) -> Iterator[Batch]:
        """Shuffled, augmented full batches; a pure function of (seed, number), whatever ran before.

        Of several processes each draws for the whole batch and gets its share of it.
        """
        generator = _generator(number, seed)
        for rows in self._order(generator, batch_size):
            yield self._batch(rows, generator, affine)

    def rows(self, number: int, batch_size: int, seed: int) -> tuple[Tensor, ...]:
        """Which samples of the split the whole batches of `epoch` are made of."""
        return self._order(_generator(number, seed), batch_size)

    def plain(self, batch_size: int) -> Iterator[Batch]:
        """All frames in order, as they are, without targets; they are dealt out to several processes."""
        for rows in torch.arange(len(self))[distributed.rank() :: distributed.world()].split(batch_size):
            yield Batch(self._take(self.images, rows).float() / 255, self._take(self.masks, rows)[:, None].float(), Targets())

    def _order(self, generator: torch.Generator, batch_size: int) -> tuple[Tensor, ...]:
        order = torch.randperm(len(self), generator=generator)
        whole = max(1, len(order) // batch_size) * batch_size
        return order[:whole].split(batch_size)

    def _batch(self, rows: Tensor, generator: torch.Generator, affine: bool) -> Batch:
        b, share = len(rows), distributed.own(len(rows))
        views = torch.randint(len(self.axes), (b,), generator=generator)[share]
        matrices = augment.draw_affine(generator, b)[share] if affine else None
        colour = augment.draw_colour(generator, b)[share]
        rows = rows[share]
        frames = augment.flip_views(self._take(self.images, rows).float() / 255, views, self.axes)
        masks = augment.flip_views(self._take(self.masks, rows)[:, None].float(), views, self.axes)
        source = rows if self._wrong is None else self._wrong[rows]
        maps = {key: self._take(held, source, views).float() * self._steps.get(key, 1) for key, held in self.maps.items()}
        if matrices is not None:
            frames = augment.resample(frames, matrices)
            masks = augment.resample(masks, matrices, mode="nearest")
            maps = {key: augment.resample(value, matrices) for key, value in maps.items()}
        frames = augment.jitter_colour(frames, colour).contiguous(memory_format=torch.channels_last)
        return Batch(frames, masks, self._targets(maps))

    def _targets(self, maps: dict[Key, Tensor]) -> Targets:
        if not self.needs.spectra:
            return Targets(maps=maps)
        convert = spectra.unpack if self._holds_spectra else spectra.spectrum
        return Targets(spectra={key: convert(value) for key, value in maps.items()})

    def _take(self, held: Tensor | OnDisk, *index: Tensor) -> Tensor:
        return held[tuple(i.to(held.device) for i in index)].to(self.device, non_blocking=True)


def _generator(number: int, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + number)


def _derangement(n: int, seed: int) -> Tensor:
    """A fixed permutation without fixed points, [n]: every frame gets another one's targets (unless it is alone)."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    wrong = torch.empty_like(order)
    wrong[order] = order.roll(1)
    return wrong
