"""From the store to batches on the device: everything is read once, then every epoch runs from memory, if it holds that much.

Shapes: b batch, n samples, v views, c channels, h w grid, s frame side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple

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

BLOCK = 64
"""Masks that are looked at together."""


@dataclass(frozen=True)
class Batch:
    """Frames float [b, 3, s, s] in 0..1, masks float [b, 1, s, s], and the teachers' maps of just these frames."""

    frames: Tensor
    masks: Tensor
    targets: Targets

    def split(self, size: int) -> list[Batch]:
        """The same frames in pieces of at most `size`."""
        frames, masks = self.frames.split(size), self.masks.split(size)
        maps = {key: value.split(size) for key, value in self.targets.maps.items()}
        halves = {key: value.split(size) for key, value in self.targets.spectra.items()}
        return [
            Batch(*pair, Targets({key: v[n] for key, v in maps.items()}, {key: v[n] for key, v in halves.items()}))
            for n, pair in enumerate(zip(frames, masks, strict=True))
        ]


def choose_teachers(store: FeatureStore, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """The wanted teachers of a store under their full names, all of them by default.

    A family alone ("sam", "sam@mask") stands for the one teacher of it that the store holds.

    Raises:
        UsageError: a teacher that the store does not hold, or a family of which it holds several; the message lists them.
    """
    held = tuple(entry.name for entry in store.manifest.teachers)
    return tuple(dict.fromkeys(_held(name, held, store) for name in wanted)) if wanted else held


def _held(name: str, held: tuple[str, ...], store: FeatureStore) -> str:
    """The full name of a wanted teacher."""
    if name in held:
        return name
    meant = [full for full in held if name in (re.split("[:@]", full)[0], re.sub(":[^@]*", "", full))]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise UsageError(
            f"the store holds several teachers {name!r}", where=store.location, wanted=f"one of: {', '.join(meant)}"
        )
    close = get_close_matches(re.sub(r"[^:+]*/", "", name), held, n=3, cutoff=0.4)  # a store's names hold no folders
    hint = f"did you mean {' or '.join(close)}? else " if close else ""
    raise UsageError(
        f"the store does not hold teacher {name!r}", where=store.location, wanted=f"some of: {', '.join(held)}",
        remedy=f"{hint}polyp-difom cache extend {store.location} --teachers {name}",
    )  # fmt: skip


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
            specs[name, scale] = TargetSpec(channels, cells, schema.scale_stride(scale), std, entry.kind)
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

    def epoch(
        self, number: int, batch_size: int, seed: int, affine: bool, *, colour: bool = True, drop: float = 0.0
    ) -> Iterator[Batch]:
        """Shuffled, augmented full batches; a pure function of (seed, number), whatever ran before.

        Of several processes each draws for the whole batch and gets its share of it.

        Args:
            affine, colour: which augmentation; without colour, all else is drawn as with it.
            drop: probability with which each of several teachers is left out of a batch; one stays. Drawn apart from the
                augmentation, so that a control sees the same frames.
        """
        generator, chance = _generator(number, seed), _generator(number, ~seed)
        teachers = list(dict.fromkeys(teacher for teacher, _ in self.maps))
        for rows in self._order(generator, batch_size):
            staying = _staying(teachers, drop, chance)
            yield self._batch(rows, generator, affine, colour, [key for key in self.maps if key[0] in staying])

    def rows(self, number: int, batch_size: int, seed: int) -> tuple[Tensor, ...]:
        """Which samples of the split the whole batches of `epoch` are made of."""
        return self._order(_generator(number, seed), batch_size)

    def all_empty(self) -> bool:
        """Whether no mask has a lesion; looks no further than the first block of frames that has one."""
        return not any(self._take(self.masks, self._index(rows)).any() for rows in torch.arange(len(self)).split(BLOCK))

    def plain(self, batch_size: int) -> Iterator[Batch]:
        """All frames in order, as they are, without targets; they are dealt out to several processes."""
        own = torch.arange(len(self))[distributed.rank() :: distributed.world()]
        for rows in own.split(batch_size) if len(own) else ():
            index = self._index(rows)
            yield Batch(self._take(self.images, index).float() / 255, self._take(self.masks, index)[:, None].float(), Targets())

    def _order(self, generator: torch.Generator, batch_size: int) -> tuple[Tensor, ...]:
        order = torch.randperm(len(self), generator=generator)
        whole = max(1, len(order) // batch_size) * batch_size
        return order[:whole].split(batch_size)

    def _batch(self, rows: Tensor, generator: torch.Generator, affine: bool, colour: bool, keys: list[Key]) -> Batch:
        b, share = len(rows), distributed.own(len(rows))
        views = torch.randint(len(self.axes), (b,), generator=generator)[share]
        matrices = augment.draw_affine(generator, b)[share] if affine else None
        gains = augment.draw_colour(generator, b)[share]
        rows = rows[share]
        shown = self._index(rows)
        taught = self._index(rows if self._wrong is None else self._wrong[rows], views)
        flips = {axes: self._sent(own) for axes, own in augment.rows_by_view(views, self.axes).items()}
        frames = augment.flip_views(self._take(self.images, shown), flips).float() / 255
        masks = augment.flip_views(self._take(self.masks, shown), flips)[:, None].float()
        maps = {key: self._take(self.maps[key], taught).float() for key in keys}
        maps |= {key: maps[key] * steps for key, steps in self._steps.items() if key in maps}
        if matrices is not None:
            grids, matrices = dict[torch.Size, Tensor](), self._sent(matrices)
            frames = augment.resample(frames, matrices, grids=grids)
            masks = augment.resample(masks, matrices, mode="nearest", grids=grids)
            maps = {key: augment.resample(value, matrices, grids=grids) for key, value in maps.items()}
        if colour:
            frames = augment.jitter_colour(frames, self._sent(gains))
        return Batch(frames.contiguous(memory_format=torch.channels_last), masks, self._targets(maps))

    def _targets(self, maps: dict[Key, Tensor]) -> Targets:
        if not self.needs.spectra:
            return Targets(maps=maps)
        convert = spectra.unpack if self._holds_spectra else spectra.spectrum
        return Targets(spectra={key: convert(value) for key, value in maps.items()})

    def _index(self, *numbers: Tensor) -> Index:
        """Numbers of samples (and views), where arrays lie that memory of the device does not hold, and on the device."""
        return Index(numbers, tuple(self._sent(each) for each in numbers))

    def _take(self, held: Tensor | OnDisk, index: Index) -> Tensor:
        return held[index.there] if held.device.type == self.device.type else self._sent(held[index.here])

    def _sent(self, tensor: Tensor) -> Tensor:
        """On the device; a GPU works on meanwhile, which it does not while pageable memory is copied."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


class Index(NamedTuple):
    """What a held array is indexed with, in host memory and on the device."""

    here: tuple[Tensor, ...]
    there: tuple[Tensor, ...]


def _generator(number: int, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + number)


def _staying(teachers: list[str], drop: float, chance: torch.Generator) -> set[str]:
    """Those teachers that a batch keeps: each unless it falls to `drop`, one at least."""
    if not drop or len(teachers) < 2:
        return set(teachers)
    falls = torch.rand(len(teachers), generator=chance)
    return {name for name, fall in zip(teachers, falls, strict=True) if fall >= drop or fall == falls.max()}


def _derangement(n: int, seed: int) -> Tensor:
    """A fixed permutation without fixed points, [n]: every frame gets another one's targets (unless it is alone)."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    wrong = torch.empty_like(order)
    wrong[order] = order.roll(1)
    return wrong
