"""Looks a store over: reads everything back (`verify`), or tells what it holds (`summary`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from polyp_difom.cache import constants
from polyp_difom.cache.skeleton import LEDGER_FIELDS, read_small

if TYPE_CHECKING:
    from polyp_difom.cache.store import FeatureStore


@dataclass(frozen=True)
class Damage:
    """Something in a store that cannot be read back as it was written.

    Args:
        key: array or group.
        shard: number of the shard; None outside shards.
        sample: id of the sample, or "first .. last" where a whole shard is lost; None outside shards.
        reason: what is wrong.
    """

    key: str
    shard: int | None
    sample: str | None
    reason: str


def verify(store: FeatureStore, progress: Callable[[int, int], None] | None = None) -> list[Damage]:
    """Every chunk of every complete shard, every array's layout and every group of constants that is not as it was written.

    Args:
        store: complete or not; shards that are not done are left out.
        progress: called with (shards read, shards in all), counted over all arrays.

    Raises:
        CacheError: the done marks themselves are damaged.
    """
    damages = [
        Damage(prefix, None, None, reason)
        for prefix, reason in constants.faults(store.root, store.location, store.location.sizes())
    ]
    damages.extend(Damage(key, None, None, reason) for key in store.manifest.arrays if (reason := _layout_fault(store, key)))
    complete = np.flatnonzero(store.done()).tolist()
    work = [(key, shard) for key in store.manifest.arrays for shard in complete]
    for step, (key, shard) in enumerate(work, start=1):
        damages.extend(_shard_damages(store, key, shard))
        if progress is not None:
            progress(step, len(work))
    return damages


def _layout_fault(store: FeatureStore, key: str) -> str | None:
    """Why Zarr's own readers would not see the array as the manifest describes it."""
    spec = store.manifest.arrays[key]
    wanted = (
        (len(store), *spec.shape),
        spec.dtype,
        (store.manifest.samples_per_shard, *spec.shape),
        (1,) * (1 + spec.chunk_dims) + spec.chunk_shape,
    )
    try:
        array = store.root[key]
    except (KeyError, ValueError) as error:
        return f"zarr.json is missing or damaged: {error}"
    found = (array.shape, array.dtype.name, array.shards, array.chunks) if isinstance(array, zarr.Array) else "a group"
    return None if found == wanted else f"zarr.json says {found}, the manifest {wanted}"


def _shard_damages(store: FeatureStore, key: str, shard: int) -> Iterator[Damage]:
    rows, ids = store.shards[shard], store.samples.ids
    per_sample = store.manifest.arrays[key].chunks_per_sample
    _, faults = store.sharded(key).read(np.arange(rows.start * per_sample, rows.stop * per_sample), verify=True)
    for fault in faults:
        sample = f"{ids[rows.start]} .. {ids[rows.stop - 1]}" if fault.whole_shard else ids[fault.chunk // per_sample]
        yield Damage(key, shard, sample, fault.reason)


def summary(store: FeatureStore) -> dict[str, Any]:
    """What the store is, holds and cost, as plain JSON values."""
    manifest, done = store.manifest, store.done()
    ledger = np.nansum(read_small(store.root, "ledger/values", store.location)[0], axis=0)
    rows = list(zip(store.samples.split, store.samples.dataset, strict=True))
    sizes: Counter[str] = Counter()
    for key, size in store.location.sizes().items():
        depth = 2 if key.startswith("teachers/") else 1
        sizes["/".join(key.split("/")[:-1][:depth]) or "metadata"] += size
    return {
        "path": str(store.location),
        "signature": manifest.signature(),
        "frames": len(store),
        "splits": dict(Counter(store.samples.split)),
        "datasets": {name: dict(Counter(s for s, d in rows if d == name)) for name in sorted(set(store.samples.dataset))},
        "frame_size": manifest.frame_size,
        "views": list(manifest.views),
        "scales": dict(manifest.scales),
        "spectra": manifest.spectra,
        "precision": manifest.precision,
        "teachers": [
            teacher.model_dump(include={"name", "channels", "licence", "contamination", "weights_digest"})
            for teacher in manifest.teachers
        ],
        "shards": {"done": int(done.sum()), "total": len(done)},
        "bytes": dict(sorted(sizes.items())),
        "total_bytes": sizes.total(),
        "ledger": dict(zip(LEDGER_FIELDS, ledger.tolist(), strict=True)),
        "software": dict(manifest.software),
    }
