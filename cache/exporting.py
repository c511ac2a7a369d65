"""A store's arrays as plain .npy or .safetensors files, for trainers that know no Zarr.

Both formats are a short header and then the values in C order, so files are streamed shard by shard.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from polyp_difom.cache.errors import CacheError, UsageError
from polyp_difom.cache.location import built_aside, explained
from polyp_difom.cache.manifest import ArraySpec
from polyp_difom.cache.store import FeatureStore

FORMATS = ("npy", "safetensors")
COLUMNS = ("id", "dataset", "split", "height", "width", "sha256", "mask_sha256", "pixel_sha256")


def export(
    store: FeatureStore,
    target: Path,
    to: str,
    keys: Sequence[str],
    splits: Iterable[str],
    progress: Callable[[int], None] | None = None,
    steps: Mapping[str, NDArray[np.float32]] | None = None,
) -> list[str]:
    """Writes `target`/<key>.<to> for each key, samples.csv (one line a row of every array) and manifest.json.

    The folder appears whole or not at all.

    Args:
        keys: arrays to write, each [rows, *shape].
        splits: of train, val, test; rows keep the store's order.
        progress: called with the bytes that were just written.
        steps: what the values of some integer arrays are multiplied by, broadcast; these are written as float16.

    Returns:
        The files' names within `target`.

    Raises:
        UsageError: neither npy nor safetensors, the target is there, or no sample is in these splits.
        CacheError: the store is incomplete or damaged, or the disk is too small.
    """
    if to not in FORMATS:
        raise UsageError("unknown format", where="--to", got=to, wanted=" or ".join(FORMATS))
    store.require_complete()
    wanted, steps, whole = set(splits), steps or {}, store.manifest.whole()
    specs = {key: exported(whole[key], steps.get(key)) for key in keys}
    kept = np.array([name in wanted for name in store.samples.split])
    if not kept.any():
        raise UsageError("no sample is in these splits", where=store.location, got=", ".join(sorted(wanted)))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError("the target is there already", where=target, remedy="give another -o, or delete it")
    _check_space(target, specs.values(), int(kept.sum()))
    written: list[str] = []
    with explained("exporting", store.location), built_aside(target) as folder:
        for key in keys:
            path = folder / f"{key}.{to}"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as stream:
                _write_header(key, specs[key], int(kept.sum()), to, stream)
                _write_values(store, key, kept, steps.get(key), stream, progress)
                _flush(stream)
            written.append(f"{key}.{to}")
        _write_tables(store, folder, kept, dict(zip(keys, written, strict=True)))
    return [*written, "samples.csv", "manifest.json"]


def exported(spec: ArraySpec, steps: NDArray[np.float32] | None) -> ArraySpec:
    """An array as it is exported: as it is stored, but float16 where it is multiplied by steps."""
    return spec if steps is None else spec.model_copy(update={"dtype": "float16"})


def _check_space(target: Path, specs: Iterable[ArraySpec], rows: int) -> None:
    needed = rows * sum(spec.chunks_per_sample * spec.chunk_bytes for spec in specs)
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise CacheError(
            "the export will not fit on the disk", where=parent, got=f"{free / 2**20:,.0f} MiB free",
            wanted=f"{needed / 2**20:,.0f} MiB", remedy="use another -o, or fewer --teachers, --scales or --split",
        )  # fmt: skip


def _write_header(key: str, spec: ArraySpec, rows: int, to: str, stream: BinaryIO) -> None:
    shape = (rows, *spec.shape)
    if to == "npy":
        descr = np.lib.format.dtype_to_descr(np.dtype(spec.dtype).newbyteorder("<"))
        np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    else:
        stream.write(safetensors_header(key, spec, shape))


def _write_values(
    store: FeatureStore, key: str, kept: np.ndarray, steps: NDArray[np.float32] | None, stream: BinaryIO,
    progress: Callable[[int], None] | None,
) -> None:  # fmt: skip
    for shard in store.shards:
        rows = np.array([row for row in shard if kept[row]], np.int64)
        values = store.read(key, rows, verify="always")
        if steps is not None:
            values = (values * steps).astype(np.float16)
        stream.write(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)
        if progress is not None:
            progress(values.nbytes)


def safetensors_header(key: str, spec: ArraySpec, shape: tuple[int, ...]) -> bytes:
    """What precedes the values of a safetensors file with one tensor: a length (uint64), then JSON padded to 8 bytes."""
    dtype = np.dtype(spec.dtype)
    name = "BOOL" if dtype.kind == "b" else f"{dtype.kind.upper()}{8 * dtype.itemsize}"
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    text = json.dumps({key: {"dtype": name, "shape": list(shape), "data_offsets": [0, size]}}).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write_tables(store: FeatureStore, folder: Path, kept: np.ndarray, files: dict[str, str]) -> None:
    columns = [store.samples.ids, *(getattr(store.samples, name) for name in COLUMNS[1:])]
    with (folder / "samples.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(row for row, keep in zip(zip(*columns, strict=True), kept, strict=True) if keep)
        _flush(stream)
    manifest = store.manifest
    node = {"signature": manifest.signature(), "files": files, "manifest": manifest.model_dump(mode="json")}
    with (folder / "manifest.json").open("w", encoding="utf-8") as stream:
        json.dump(node, stream, indent=2)
        _flush(stream)


def _flush(stream: IO[Any]) -> None:
    stream.flush()
    os.fsync(stream.fileno())
