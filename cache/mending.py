"""Puts one damaged shard file of one array in order, and leaves every other file of the store as it is."""

from __future__ import annotations

import numpy as np
import zarr
from numpy.typing import NDArray

from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.location import explained
from polyp_difom.cache.store import FeatureStore


def salvage(store: FeatureStore, key: str, shard: int) -> tuple[NDArray, NDArray[np.bool_]]:
    """Chunks of a shard [k, *chunk_shape], and which of them could not be read [k]; those hold anything."""
    rows, per_sample = store.shards[shard], store.manifest.arrays[key].chunks_per_sample
    numbers = np.arange(rows.start * per_sample, rows.stop * per_sample)
    values, faults = store.sharded(key).read(numbers, verify=True)
    lost = np.zeros(len(numbers), bool)
    for fault in faults:
        lost[slice(None) if fault.whole_shard else fault.chunk - numbers[0]] = True
    return values, lost


def rewrite(store: FeatureStore, key: str, shard: int, values: NDArray) -> None:
    """Writes the shard file of one array anew, inside `store.writing()`; the store's done mark and ledger stay.

    Killed half-way, the file is missing, which readers and `verify` report; the same repair then goes on.

    Args:
        values: all chunks of the shard [k, *chunk_shape].

    Raises:
        CacheError: a value is not finite, or the disk refuses.
    """
    spec, rows = store.manifest.arrays[key], store.shards[shard]
    if spec.is_float and not np.isfinite(values).all():
        raise CacheError(f"{key} is not finite in shard {shard}", where=store.location, wanted="finite values")
    with explained(f"writing shard {shard} of {key}", store.location), zarr.config.set({"array.write_empty_chunks": True}):
        array = store.root[key]
        assert isinstance(array, zarr.Array)  # noqa: S101
        file = store.sharded(key).file(shard)
        store.location.delete(file)  # Zarr would merge into a shard that is there, and fail on a damaged one.
        array[rows.start : rows.stop] = values.reshape(len(rows), *spec.shape)
        store.location.flush(file)
