"""Puts one damaged shard file, or one row of a store's records, in order, and leaves every other file of the store as it is."""

from __future__ import annotations

import numpy as np
import zarr
from numpy.typing import NDArray

from polyp_difom.cache import sums
from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.inspection import read_shard, shard_damages
from polyp_difom.cache.location import explained
from polyp_difom.cache.store import FeatureStore


def salvage(store: FeatureStore, key: str, shard: int) -> tuple[NDArray, NDArray[np.bool_]]:
    """Chunks of a shard [k, *chunk_shape], and which of them are not as they were written [k]; those hold anything."""
    values, faults = read_shard(store, key, shard)
    first = store.shards[shard].start * store.manifest.arrays[key].chunks_per_sample
    lost = np.zeros(len(values), bool)
    for fault in faults:
        lost[slice(None) if fault.whole_shard else fault.chunk - first] = True
    return values, lost


def rewrite(store: FeatureStore, key: str, shard: int, values: NDArray) -> None:
    """Writes the shard file of one array anew, and its sums, inside `store.writing()`; done mark and costs stay.

    Killed half-way, the file is missing, which readers and `verify` report; the same repair then goes on.

    Args:
        values: all chunks of the shard [k, *chunk_shape].

    Raises:
        CacheError: a value is not finite, or the disk refuses.
    """
    spec, rows = store.manifest.arrays[key], store.shards[shard]
    if spec.is_float and not np.isfinite(values).all():
        raise CacheError(f"{key} is not finite in shard {shard}", where=store.location, wanted="finite values")
    with explained(f"writing shard {shard} of {key}", store.location):
        array = store.root[key]
        assert isinstance(array, zarr.Array)  # noqa: S101
        file = store.sharded(key).file(shard)
        store.location.delete(file)  # Zarr would merge into a shard that is there, and fail on a damaged one.
        whole = array.with_config({"write_empty_chunks": True})
        whole[rows.start : rows.stop] = values.reshape(len(rows), *spec.shape)
        store.location.flush(file)
        sums.write(store.root, shard, {key: values}, store.manifest)


def drop_row(store: FeatureStore, ledger: str, shard: int) -> None:
    """Removes a damaged row of the ledger, inside `store.writing()`: what that shard cost is not known from then on."""
    store.location.delete(f"{ledger}/c/{shard}/0")


def record_anew(store: FeatureStore, record: str, shard: int) -> None:
    """Writes a shard's lost row of sums from chunks whose own checksums hold, inside `store.writing()`."""
    store.location.delete(f"{record}/c/{shard}/0")
    arrays = {key: read_shard(store, key, shard)[0] for key in sums.arrays_of(store.root, record)}
    sums.write(store.root, shard, arrays, store.manifest)


def settle_mark(store: FeatureStore, shard: int) -> bool:
    """Writes a shard's damaged done mark anew where the recorded sums prove the shard whole, else takes the mark back.

    Returns:
        Whether the shard is done.
    """
    store.mark_pending(shard)
    keys = list(store.manifest.arrays)
    recorded = all(sums.of_array(store.root, key, shard) is not None for key in keys)
    if recorded and not any(True for key in keys for _ in shard_damages(store, key, shard)):
        array = store.root["done"]
        assert isinstance(array, zarr.Array)  # noqa: S101
        array[shard] = True
        return True
    return False
