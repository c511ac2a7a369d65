"""Looks a store over: reads everything back (`verify`), or tells what it holds (`summary`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
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
        damages.extend(shard_damages(store, key, shard))
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


def shard_damages(store: FeatureStore, key: str, shard: int) -> Iterator[Damage]:
    """Every chunk of one array's shard that cannot be read back."""
    rows, ids = store.shards[shard], store.samples.ids
    per_sample = store.manifest.arrays[key].chunks_per_sample
    _, faults = store.sharded(key).read(np.arange(rows.start * per_sample, rows.stop * per_sample), verify=True)
    for fault in faults:
        sample = f"{ids[rows.start]} .. {ids[rows.stop - 1]}" if fault.whole_shard else ids[fault.chunk // per_sample]
        yield Damage(key, shard, sample, fault.reason)


def _measured(store: FeatureStore, keys: Iterable[str]) -> dict[str, dict[str, float]]:
    """What was measured while the store was made, by group of constants.

    Of a teacher's basis: how much of the variance its stored channels hold, and out of how many. Of its equivariance: the
    cosine between a flipped (or moved, `affine`) map and the map of the frame moved likewise, and the relative error of the
    precision.
    """
    found: dict[str, dict[str, float]] = {}
    nodes = (key.split("/") for key in keys)
    groups = sorted("/".join(node[:3]) for node in nodes if len(node) == 4 and (node[0], node[3]) == ("teachers", "zarr.json"))
    for prefix, record in ((group, store.read_constants(group)) for group in groups):
        if record is None:
            continue
        arrays, attrs = record
        if "explained" in arrays and "rotation" in arrays:
            stored, native = arrays["rotation"].shape
            found[prefix] = {"stored": stored, "native": native, "variance_held": float(arrays["explained"][:stored].sum())}
        elif "cosine" in arrays:
            found[prefix] = dict(zip(attrs["views"], arrays["cosine"].tolist(), strict=True))
            if "affine_cosine" in arrays:
                found[prefix]["affine"] = float(arrays["affine_cosine"].mean())
            if "precision_error" in attrs:
                found[prefix]["precision_error"] = attrs["precision_error"]
    return found


def summary(store: FeatureStore) -> dict[str, Any]:
    """What the store is, holds and cost, as plain JSON values."""
    manifest, done = store.manifest, store.done()
    ledger = np.nansum(read_small(store.root, "ledger/values", store.location)[0], axis=0)
    rows = list(zip(store.samples.split, store.samples.dataset, strict=True))
    sizes: Counter[str] = Counter()
    files = store.location.sizes()
    for key, size in files.items():
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
        "arrays": {
            key: {
                "shape": list(spec.shape),
                "dtype": spec.dtype,
                "bytes": sum(size for name, size in files.items() if name.startswith(f"{key}/")),
            }
            for key, spec in manifest.arrays.items()
        },
        "measured": _measured(store, files),
        "bytes": dict(sorted(sizes.items())),
        "total_bytes": sizes.total(),
        "ledger": dict(zip(LEDGER_FIELDS, ledger.tolist(), strict=True)),
        "software": dict(manifest.software),
    }
