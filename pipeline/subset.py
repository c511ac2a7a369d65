"""What of a store one training reads: scales, leading channels, views; the store itself stays as it is.

Stored channels are rotated, mixed and scaled (`polyp_difom.pipeline.basis`). Fewer of them means the leading principal
directions: unmixed, cut off and mixed again, which gives the maps that `extract --channels K` would have stored.
Shapes: n samples, v views, c stored channels, k kept ones, h w grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyp_difom.cache.errors import UsageError
from polyp_difom.cache.manifest import TeacherEntry
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.basis import Moments
from polyp_difom.pipeline.fitting import basis_rows
from polyp_difom.pipeline.reads import of_store, require_kept, views_read
from polyp_difom.pipeline.recipe import DistillConfig

BLOCK_VALUES = 2**24
"""Values that are unpacked to float32 at once."""


@dataclass(frozen=True)
class Subset:
    """Scales, and how many leading channels (of each map that has so many) and views."""

    scales: tuple[str, ...]
    channels: int
    views: int

    def resolved(self) -> dict[str, Any]:
        """As a run's configuration records it."""
        return {"scales": list(self.scales), "channels": self.channels, "views": self.views}


def open_store(config: DistillConfig) -> FeatureStore:
    """The complete store of a configuration.

    Raises:
        CacheError: it is missing, incomplete, damaged, or not the one that the configuration was made for.
    """
    store = FeatureStore.open(config.cache)
    store.require_complete()
    if config.signature or config.reads:
        require_kept(
            "not the store that the configuration was made for", store.location, dict(config), of_store(store.manifest),
            "give that store, or take `signature` and `reads` out of the configuration",
        )  # fmt: skip
    return store


def views_of(config: DistillConfig, store: FeatureStore) -> int | None:
    """How many of the store's views a training sees, None for all: saved settings stay with those that there were."""
    return (config.views or views_read(config.reads, store.manifest)) if config.flips else 1


def choose_subset(
    store: FeatureStore,
    teachers: Sequence[str],
    scales: Sequence[str] | None = None,
    channels: int | None = None,
    views: int | None = None,
) -> Subset:
    """The wanted part of a store, everything where nothing is said.

    Raises:
        UsageError: a scale that the store does not hold, or more channels or views than it holds.
    """
    manifest = store.manifest
    held = tuple(manifest.scales)
    if strangers := [scale for scale in scales or () if scale not in held]:
        raise UsageError(
            f"the store does not hold scale {strangers[0]!r}", where=store.location, wanted=f"some of: {', '.join(held)}",
            remedy=f"polyp-difom cache extend {store.location} --scales {strangers[0]}",
        )  # fmt: skip
    chosen = tuple(scale for scale in held if scale in (scales or held))
    entries = [entry for entry in manifest.teachers if entry.name in teachers]
    most, native = (max(entry.map_at(scale)[part] for entry in entries for scale in chosen) for part in (2, 1))
    counts = (("channels", channels, most, range(native + 1)), ("views", views, len(manifest.views), (2, 4)))
    for what, got, stored, possible in counts:
        if got is not None and got > stored:
            enough = next((number for number in possible if number >= got), None)
            way = f"extract --channels {enough} with another --cache"
            larger = f", or polyp-difom {way if what == 'channels' else f'cache extend {store.location} --views {enough}'}"
            raise UsageError(
                f"the store holds fewer {what}", where=store.location, got=f"{what} = {got}", wanted=f"at most {stored}",
                remedy=f"leave --{what} out{larger if enough else ''}",
            )  # fmt: skip
    return Subset(chosen, channels or most, views or len(manifest.views))


def narrowing(store: FeatureStore, entry: TeacherEntry, scale: str, subset: Subset) -> Tensor | None:
    """From a scale's stored channels to the kept ones, float32 [k, c]; None where all are kept."""
    if subset.channels >= entry.channels_at(scale):
        return None
    basis = schema.stored_basis(store, entry, (scale,))
    return torch.from_numpy(basis.narrowing(subset.channels, store.manifest.basis.seed)).float()


def narrowed(maps: Tensor, weight: Tensor) -> Tensor:
    """Maps or spectra [n, v, c, ...] with `weight` [k, c] as float16 [n, v, k, ...], where they lie."""
    weight = weight.to(maps.device)
    found = torch.empty((*maps.shape[:2], len(weight), *maps.shape[3:]), dtype=torch.float16, device=maps.device)
    samples = max(1, BLOCK_VALUES // max(1, maps[0].numel()))
    for kept, piece in zip(found.split(samples), maps.split(samples), strict=True):
        kept.copy_(torch.einsum("kc,nvc...->nvk...", weight, piece.float()))
    return found


def deviation(store: FeatureStore, entry: TeacherEntry, scale: str, subset: Subset) -> float:
    """Standard deviation of the kept channels on the frames that the basis was fitted on.

    What the store has of it where all channels are kept, else measured on the stored maps.
    """
    weight = narrowing(store, entry, scale, subset)
    if weight is None:
        return float(np.sqrt(schema.stored_record(store, entry, scale)[1]["variances"][scale]))
    key = schema.embedding_key(entry.name, scale)
    steps = torch.from_numpy(np.asarray(schema.steps_of(store).get(key, 1.0), np.float32))
    rows, moments = np.array(basis_rows(store)), Moments()
    for start in range(0, len(rows), 64):
        chunks = np.stack([part := rows[start : start + 64], np.zeros_like(part)], 1)
        maps = torch.from_numpy(store.read(key, chunks)).float() * steps
        moments.add(torch.einsum("kc,nchw->nkhw", weight, maps))
    return float(np.sqrt(np.trace(moments.covariance()) / len(weight)))
