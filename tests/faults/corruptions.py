"""A store whose bytes were hurt: is it found, named, and put right by computing anew only what is hurt?

The tests run a seeded few faults; thousands of them are a matter of `run` and its `count`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.inspection import Damage
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.data.sources import Source
from polyp_difom.pipeline.extend import ExtendConfig, extend
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.plan import ExtractConfig
from polyp_difom.pipeline.repair import repair, restore_metadata

from .byte_faults import ON_READ, PER_SHARD, READ, Fault, catalogue, files_of
from .frames import write_frames

TEACHERS = {"dinov2:small": 32, "dinov2:base": 24}
NOT_COMPARED = ("ledger/values/", "ledger/host/")
"""Seconds and hosts. With `.lock` and the done marks of a sealed extension, which nobody reads any more, they are all that a
store may lose without harm: no array, sample, manifest or constant depends on them."""


@dataclass(frozen=True)
class Outcome:
    """What became of a fault.

    Attributes:
        detected_by: "open", "read", "verify" (joined by "+"), "incomplete", or "" where nothing told.
        named: what told of it.
        repaired: the store is as it was, byte for byte but for `NOT_COMPARED`.
        recomputed: samples that a teacher or `extract` worked on; `limit` is what was hurt.
        silent: not told, and something that a reader gets is not what it was.
        unread: that bytes are not what was written must be told on reading, and was not.
    """

    kind: str
    place: str
    detected_by: str
    named: str
    repaired: bool
    recomputed: int
    limit: int
    silent: bool
    unread: bool = False

    @property
    def is_good(self) -> bool:
        """Found, named and put right by computing no more than what was hurt; or of no consequence at all."""
        return self.repaired and self.recomputed <= self.limit and not (self.silent or self.unread)


class Bench:
    """A sound store of 22 samples in three shards, two teachers, the second by extension; and an older state of the same."""

    def __init__(self, folder: Path, data: Sequence[Path] = ()):
        from transformers import Dinov2Config, Dinov2Model

        self.folder, self.weights, self.data = folder, {}, data
        for seed, (name, width) in enumerate(TEACHERS.items()):
            torch.manual_seed(seed)
            self.weights[name] = str(folder / name.replace(":", "-"))
            shape: dict[str, Any] = {
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "mlp_ratio": 2,
                "image_size": 56,
                "patch_size": 14,
            }
            Dinov2Model(Dinov2Config(hidden_size=width, **shape)).save_pretrained(self.weights[name])
        self.sound = self._make("sound", seed=0)
        self.older = self._make("older", seed=1)

    def config(self, name: str, cache: Path, teachers: tuple[str, ...]) -> ExtractConfig:
        """Of the extraction that made a store, or makes one with all teachers."""
        return ExtractConfig.model_validate({
            "sources": (Source(self.folder / name / "frames"),), "teachers": teachers, "cache": str(cache), "size": 64, "views": 2,
            "weights": {key: self.weights[key] for key in teachers}, "channels": 8, "scales": ("s16",), "device": "cpu",
            "precision": "float32",
        })  # fmt: skip

    def _make(self, name: str, seed: int) -> Path:
        write_frames(self.folder / name / "frames", 24, 64, seed, self.data)
        cache = self.folder / f"{name}.zarr"
        first, second = TEACHERS
        with shards_of(PER_SHARD):
            extract(self.config(name, cache, (first,)))
            extend(ExtendConfig(cache=str(cache), teachers=(second,), weights={second: self.weights[second]}, device="cpu"))
        return cache

    def extract_again(self, cache: Path) -> None:
        """What a user types who is told that a shard is pending."""
        with shards_of(PER_SHARD):
            extract(self.config("sound", cache, tuple(TEACHERS)))


def shards_of(samples: int) -> AbstractContextManager[Any]:
    """Small stores with several shards."""
    return patch.object(schema, "MOST_SAMPLES_PER_SHARD", samples)


def run(seed: int, count: int, folder: Path) -> list[Outcome]:
    """Hurts up to `count` copies of one small store with an extension, one fault a copy, and follows the remedy."""
    bench = Bench(folder)
    return [follow(bench, fault, folder / f"hurt-{number}.zarr") for number, fault in enumerate(chosen(bench, seed, count))]


def chosen(bench: Bench, seed: int, count: int) -> list[Fault]:
    """Up to `count` faults, seeded: every kind of fault on every class of bytes comes once, then again."""
    rng = np.random.default_rng(seed)
    faults = list(catalogue(bench.sound, bench.older, rng))
    ranks: dict[tuple[str, str], int] = {}
    order = []
    for number in rng.permutation(len(faults)).tolist():
        group = faults[number].kind, faults[number].place.split(" ")[0]
        ranks[group] = ranks.get(group, -1) + 1
        order.append((ranks[group], number))
    return [faults[number] for _, number in sorted(order)[:count]]


def follow(bench: Bench, fault: Fault, place: Path) -> Outcome:
    """Hurt a copy, read it as a user would, do what the messages say, and compare."""
    shutil.copytree(bench.sound, place, ignore=shutil.ignore_patterns(".lock", ".claims"))
    fault.hurt(place)
    found, named = detect(place)
    harmless = not found and values_of(place) == values_of(bench.sound)
    recomputed = remedy(bench, place) if found else 0
    repaired = harmless or (same_bytes(place, bench.sound) and FeatureStore.open(place).verify() == [])
    shutil.rmtree(place)
    silent = not found and not harmless
    promised = fault.kind in ON_READ and fault.place.split(" ")[0] in READ and not harmless
    unread = promised and not ("read" in found or "open" in found)
    return Outcome(fault.kind, fault.place, found, named, repaired, recomputed, fault.limit, silent, unread)


def detect(place: Path) -> tuple[str, str]:
    """By what a user is told, and what the messages name; anything but a CacheError goes through."""
    found, named = [], []
    try:
        store = FeatureStore.open(place)
    except CacheError as error:
        return "open", error.message
    try:
        if not store.is_complete:
            found, named = ["incomplete"], [f"done, shards {store.pending()}"]
        for key in store.manifest.arrays:
            store.read(key)
    except CacheError as error:
        found.append("read")
        named.append(error.message)
    if damages := store.verify():
        found.append("verify")
        named += [f"{damage.key} {damage.shard} {damage.sample} {damage.reason}" for damage in damages]
    return "+".join(found), "\n".join(named)


def remedy(bench: Bench, place: Path) -> int:
    """`cache verify --repair`, and `extract` again where shards are pending. Samples that were computed anew."""
    restore_metadata(str(place))
    store = FeatureStore.open(place)
    damages = store.verify()
    anew: set[str] = set()
    pending: list[int] = []
    if damages:
        done = repair(str(place), damages, weights=bench.weights, device="cpu")
        anew = {name for damage in damages if damage.shard not in done.pending for name in samples_of(store, damage)}
    pending = FeatureStore.open(place).pending()
    if pending:
        bench.extract_again(place)
    return len(anew) + sum(len(store.shards[number]) for number in pending)


def samples_of(store: FeatureStore, damage: Damage) -> list[str]:
    """Ids that a damage is about."""
    if damage.sample is None or damage.shard is None:
        return []
    ids = [store.samples.ids[row] for row in store.shards[damage.shard]]
    return ids if " .. " in damage.sample else [damage.sample]


def same_bytes(place: Path, sound: Path) -> bool:
    """All files but costs."""
    one, two = (
        {name: raw for name, raw in files_of(folder).items() if not any(part in name for part in NOT_COMPARED)}
        for folder in (place, sound)
    )
    return one == two


def values_of(place: Path) -> dict[str, bytes]:
    """All that readers get from a store: arrays, samples, manifest, constants; costs are not among it."""
    store = FeatureStore.open(place)
    values = {key: store.read(key).tobytes() for key in store.manifest.arrays}
    values |= {name: repr(list(column)).encode() for name, column in vars(store.samples).items()}
    values["manifest"] = store.manifest.model_dump_json().encode()
    groups = {os.path.dirname(path) for path in files_of(place) if path.startswith("teachers/") and path.endswith("zarr.json")}
    for group in sorted(groups):
        if len(group.split("/")) == 3 and (record := store.read_constants(group)) is not None:
            arrays, attributes = record
            values[group] = repr((sorted((key, held.tobytes()) for key, held in arrays.items()), attributes)).encode()
    return values
