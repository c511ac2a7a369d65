"""Looks a store over: reads everything back (`verify`), or tells what it holds (`summary`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

from polyp_difom.cache import constants, spare, sums
from polyp_difom.cache.errors import CacheError, first_line
from polyp_difom.cache.shards import ChunkFault
from polyp_difom.cache.skeleton import COPY, LEDGER_FIELDS, read_small

if TYPE_CHECKING:
    from polyp_difom.cache.store import FeatureStore

LEDGERS = ("ledger/values", "ledger/host")
EXACT = 1e-4
"""Relative error of a precision below which maps are the float32 ones."""
MISPLACED = "its checksum holds, but it is not what was written here: another chunk, or an earlier state"


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
    """Every small file, ledger row, done mark, array layout, and chunk of a complete shard, that is not as it was written.

    Args:
        store: complete or not; shards that are not done are left out.
        progress: called with (shards read, shards in all), counted over all arrays.
    """
    sizes = store.location.sizes()
    damages = [Damage(key, None, None, reason) for key, reason in constants.faults(store.root, store.location, sizes)]
    damages.extend(Damage(key, None, None, reason) for key in store.manifest.arrays if (reason := _layout_fault(store, key)))
    known = {damage.key for damage in damages}
    damages.extend(damage for damage in _metadata_damages(store) if damage.key not in known)
    done, faults = _rows(store, "done")
    damages.extend(Damage("done", shard, None, reason) for shard, reason in faults.items())
    complete = sorted(shard for shard, mark in done.items() if mark)
    damages.extend(Damage(key, shard, None, reason) for key in LEDGERS for shard, reason in _rows(store, key)[1].items())
    recorded, missing = sums.of_shards(store.root, store.manifest.arrays, complete)
    damages.extend(Damage(key, shard, None, "missing, damaged, or another shard's") for key, shard in missing)
    work = [(key, shard) for key in store.manifest.arrays for shard in complete]
    for step, (key, shard) in enumerate(work, start=1):
        damages.extend(_chunk_damages(store, key, shard, recorded.get((key, shard))))
        if progress is not None:
            progress(step, len(work))
    return damages


def untold(store: FeatureStore) -> list[str]:
    """What `verify` cannot find in this store, because an earlier version wrote it without the means."""
    found = []
    if not sums.is_recorded(store.root, list(store.manifest.arrays)):
        found.append("it keeps no record of what each chunk held, so chunks that changed places are not found")
    if not store.location.holds(COPY):
        found.append("it keeps no copy of its metadata, so changes in notes and attributes are not found, nor put back")
    return found


def _metadata_damages(store: FeatureStore) -> Iterator[Damage]:
    """Small files that are not what the store's copy of them holds, by the Zarr node they belong to."""
    try:
        differing = spare.differing(store.location)
    except CacheError as error:
        yield Damage(COPY, None, None, str(error.details["got"]))
        return
    nodes = {key: key.removesuffix("/zarr.json").partition("/c/")[0] for key in sorted(differing)}
    for node in dict.fromkeys(nodes.values()):
        file = next(key for key in nodes if nodes[key] == node)
        yield Damage(node, None, None, f"{file} {differing[file]}")


def _rows(store: FeatureStore, key: str) -> tuple[dict[int, NDArray[Any]], dict[int, str]]:
    """Rows of a small array with one row a shard, and why the others cannot be read."""
    try:
        return dict(enumerate(read_small(store.root, key, store.location)[0])), {}
    except CacheError:
        pass
    try:
        array = store.root[key]
    except Exception as error:  # zarr raises whatever damaged metadata lead it to
        return {}, dict.fromkeys(range(len(store.shards)), first_line(error))
    good: dict[int, NDArray[Any]] = {}
    faults: dict[int, str] = {}
    for shard in range(len(store.shards)):
        try:
            if not isinstance(array, zarr.Array):
                raise ValueError("its array is missing")
            good[shard] = np.asarray(array[shard])
        except (ValueError, RuntimeError, OSError) as error:
            faults[shard] = first_line(error)
    return good, faults


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
    except Exception as error:  # likewise
        return f"zarr.json is missing or damaged: {first_line(error)}"
    found = (array.shape, array.dtype.name, array.shards, array.chunks) if isinstance(array, zarr.Array) else "a group"
    return None if found == wanted else f"zarr.json says {found}, the manifest {wanted}"


def read_shard(store: FeatureStore, key: str, shard: int) -> tuple[NDArray[Any], list[ChunkFault]]:
    """Chunks of one array's shard [k, *chunk_shape], and those that are not as they were written; they hold anything."""
    return _read_shard(store, key, shard, sums.of_array(store.root, key, shard))


def _read_shard(
    store: FeatureStore, key: str, shard: int, recorded: NDArray[np.int64] | None
) -> tuple[NDArray[Any], list[ChunkFault]]:
    rows, per_sample = store.shards[shard], store.manifest.arrays[key].chunks_per_sample
    first = rows.start * per_sample
    values, unread = store.sharded(key).read(np.arange(first, rows.stop * per_sample), verify="always")
    faults = list(unread)
    if recorded is not None and not any(fault.whole_shard for fault in faults):
        apart = np.flatnonzero(sums.of_chunks(values) != recorded[: len(values)]) + first
        told = {fault.chunk for fault in faults}
        faults += [ChunkFault(shard, chunk, MISPLACED) for chunk in apart.tolist() if chunk not in told]
    return values, faults


def shard_damages(store: FeatureStore, key: str, shard: int) -> Iterator[Damage]:
    """Every chunk of one array's shard that is not as it was written."""
    return _chunk_damages(store, key, shard, sums.of_array(store.root, key, shard))


def _chunk_damages(store: FeatureStore, key: str, shard: int, recorded: NDArray[np.int64] | None) -> Iterator[Damage]:
    rows, ids = store.shards[shard], store.samples.ids
    per_sample = store.manifest.arrays[key].chunks_per_sample
    for fault in _read_shard(store, key, shard, recorded)[1]:
        sample = f"{ids[rows.start]} .. {ids[rows.stop - 1]}" if fault.whole_shard else ids[fault.chunk // per_sample]
        yield Damage(key, shard, sample, fault.reason)


def _measured(store: FeatureStore, keys: Iterable[str]) -> dict[str, dict[str, float]]:
    """What was measured while the store was made, by group of constants.

    Of a teacher's basis: how much of the variance its stored channels hold, and out of how many; where maps are int8, the
    relative error of this at each scale. Of its equivariance: the
    cosine between a flipped (or moved, `affine`) map and the map of the frame moved likewise, and the relative error of the
    precision.
    """
    found: dict[str, dict[str, float]] = {}
    specs = store.manifest.arrays.items()
    added = {"", *(name.removeprefix(spec.continues.key) for name, spec in specs if spec.continues)}
    nodes = (key.split("/") for key in keys)
    groups = sorted("/".join(node[:3]) for node in nodes if len(node) == 4 and (node[0], node[3]) == ("teachers", "zarr.json"))
    for prefix, record in ((group, store.read_constants(group)) for group in groups):
        if record is None:
            continue
        arrays, attrs = record
        if "explained" in arrays and "rotation" in arrays:
            stored, native = arrays["rotation"].shape
            found[prefix] = {"stored": stored, "native": native, "variance_held": float(arrays["explained"][:stored].sum())}
            found[prefix] |= {f"int8_error, {scale}": error for scale, error in attrs.get("int8_error", {}).items()}
        elif "cosine" in arrays and prefix.rpartition("/")[2].removeprefix("equivariance") in added:  # else never sealed
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
            | {"kind": teacher.kind}
            for teacher in manifest.teachers
        ],
        "shards": {"done": int(done.sum()), "total": len(done)},
        "arrays": {
            key: {
                "shape": list(spec.shape),
                "dtype": spec.dtype,
                "bytes": sum(
                    size for name, size in files.items() if name.startswith(tuple(f"{p}/" for p in manifest.pieces(key)))
                ),
            }
            for key, spec in manifest.whole().items()
        },
        "measured": _measured(store, files),
        "bytes": dict(sorted(sizes.items())),
        "total_bytes": sizes.total(),
        "ledger": dict(zip(LEDGER_FIELDS, ledger.tolist(), strict=True)),
        "software": dict(manifest.software),
    }
