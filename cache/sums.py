"""What every chunk of a complete shard held when it was written: a crc32c of its values, kept apart from the shard files.

A chunk's own crc32c finds a flipped bit. It does not find that a chunk or a shard is another one's, or of an earlier state.
Stores of earlier versions hold no such record; nothing is compared there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from typing import Any, TypeAlias

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from polyp_difom.cache.manifest import Manifest

Table: TypeAlias = dict[tuple[str, int], NDArray[np.int64]]

KEY = "ledger/crc32c"
NONE = -1


def create(root: zarr.Group, manifest: Manifest, shards: int, marks: str) -> None:
    """Room for one row a shard: its number, then a sum for each chunk of each array of the manifest; -1 where there is none."""
    counts = {key: manifest.samples_per_shard * spec.chunks_per_sample for key, spec in manifest.arrays.items()}
    width = 1 + sum(counts.values())
    root.create_array(
        f"{marks}{KEY}", shape=(shards, width), chunks=(1, width), dtype="int64", fill_value=NONE,
        compressors=[Crc32cCodec()], attributes={"arrays": [[key, count] for key, count in counts.items()]},
    )  # fmt: skip


def of_chunks(chunks: NDArray[Any]) -> NDArray[np.int64]:
    """Sums [k] of chunks [k, *chunk_shape]."""
    raw = np.ascontiguousarray(chunks).reshape(len(chunks), -1).view(np.uint8)
    return np.fromiter((google_crc32c.value(row) for row in raw), np.int64, len(raw))


def write(root: zarr.Group, shard: int, arrays: Mapping[str, NDArray[Any]], manifest: Manifest) -> None:
    """Records what these arrays [k, *shape] of a shard hold; a row that cannot be read stays, unless all of it is new."""
    for array, columns in _records(root):
        held = {key: columns[key] for key in columns if key in arrays}
        if not held:
            continue
        row = row_of(array, shard) if len(held) < len(columns) else np.full(array.shape[1], NONE, np.int64)
        if row is None:
            continue
        row[0] = shard
        for key, place in held.items():
            spec = manifest.arrays[key]
            sums = of_chunks(arrays[key].reshape(-1, *spec.chunk_shape))
            row[place] = np.pad(sums, (0, place.stop - place.start - len(sums)), constant_values=NONE)
        array[shard] = row


def row_of(array: zarr.Array, shard: int) -> NDArray[np.int64] | None:
    """One row of a record; None where it is missing, unreadable or another shard's."""
    try:
        row = np.array(array[shard])
    except (ValueError, OSError, RuntimeError):
        return None
    return row if row[0] == shard else None


def of_array(root: zarr.Group, key: str, shard: int) -> NDArray[np.int64] | None:
    """Recorded sums [chunks_per_shard] of an array's shard; None where nothing is recorded."""
    for array, columns in _records(root):
        if key in columns:
            row = row_of(array, shard)
            return None if row is None else row[columns[key]]
    return None


def of_shards(root: zarr.Group, keys: Collection[str], shards: Sequence[int]) -> tuple[Table, list[tuple[str, int]]]:
    """Sums [chunks_per_shard] by (key, shard), and (record, shard) of every row that ought to be there and cannot be read."""
    table: Table = {}
    missing = []
    for array, columns in _records(root):
        held = {key: place for key, place in columns.items() if key in keys}
        for shard in shards if held else ():
            if (row := row_of(array, shard)) is None:
                missing.append((array.path, shard))
            else:
                table |= {(key, shard): row[place] for key, place in held.items()}
    return table, missing


def arrays_of(root: zarr.Group, record: str) -> list[str]:
    """Keys of the arrays that a record is about."""
    return next(list(columns) for array, columns in _records(root) if array.path == record)


def is_recorded(root: zarr.Group, keys: Collection[str]) -> bool:
    """Every one of these arrays has a record."""
    return set(keys) <= {key for _, columns in _records(root) for key in columns}


def _records(root: zarr.Group) -> Iterator[tuple[zarr.Array, dict[str, slice]]]:
    """The store's record and those of its extensions, each with the columns of its arrays; unreadable ones are left out."""
    with suppress(KeyError, ValueError, TypeError, AttributeError):
        extensions = root.get("extensions")
        names = sorted(extensions.group_keys()) if isinstance(extensions, zarr.Group) else []
        for marks in ("", *(f"extensions/{name}/" for name in names)):
            if isinstance(array := root.get(f"{marks}{KEY}"), zarr.Array):
                arrays: Any = array.attrs["arrays"]
                stops = accumulate((count for _, count in arrays), initial=1)
                yield array, {key: slice(*pair) for (key, _), pair in zip(arrays, pairwise(stops), strict=True)}
