"""Lays out a new store and reads an existing one's manifest: everything that is written first, before any shard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import ValidationError
from zarr.codecs import BloscCodec, Crc32cCodec

from polyp_difom.cache import sums
from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.location import Location, explained, stranger_in
from polyp_difom.cache.manifest import SCHEMA_VERSION, ArraySpec, Manifest
from polyp_difom.cache.samples import SampleTable

FORMAT = "polyp-difom feature store"
UNFINISHED = {"zarr_format": 3, "node_type": "group", "attributes": {"format": FORMAT}}
"""The root's document at a URL while a store is being created there."""
LEDGER_FIELDS = ("teacher_seconds", "decode_seconds", "write_seconds", "attempts")
HOST_BYTES = 64
LARGEST_SMALL = 1 << 28
"""Bytes of a column of the sample table, of the ledger, or of a basis; tells a bomb before its memory is taken."""
SEALED = "extensions"
"""Attribute of the root: ids of the sealed extensions."""
COPY = "metadata.copy.json"
"""Second copy of a store's small files, see `polyp_difom.cache.spare`."""
DELETE_OR_MOVE = "give another path, or delete this one if nothing needs it"


def write_skeleton(location: Location, manifest: Manifest, samples: SampleTable) -> None:
    """Metadata of every array, the sample table, and last the manifest and its signature, without which a store is not one."""
    root = zarr.create_group(location.zarr_store(read_only=False), zarr_format=3, attributes={"format": FORMAT})
    for name, (column, attributes) in samples.to_arrays().items():
        write_whole(root, f"samples/{name}", column, attributes)
    write_arrays(root, manifest, len(samples))
    root.update_attributes({"manifest": manifest.model_dump(mode="json"), "signature": manifest.signature()})


def write_arrays(root: zarr.Group, manifest: Manifest, n: int, marks: str = "") -> None:
    """Metadata of the manifest's arrays for `n` samples, and of the ledger and done marks of their shards.

    Args:
        marks: prefix of ledger and done marks; those of an extension lie apart.
    """
    for key, spec in manifest.arrays.items():
        _create_sharded(root, key, spec, n, manifest.samples_per_shard)
    shards = -(-n // manifest.samples_per_shard)
    rows: tuple[tuple[str, int, str, float, dict[str, Any]], ...] = (
        ("ledger/values", len(LEDGER_FIELDS), "float64", np.nan, {"fields": list(LEDGER_FIELDS)}),
        ("ledger/host", HOST_BYTES, "uint8", 0, {"encoding": "utf-8, zero padded"}),
    )
    for key, width, dtype, fill, attributes in rows:
        root.create_array(
            f"{marks}{key}",
            shape=(shards, width),
            chunks=(1, width),
            dtype=dtype,
            fill_value=fill,
            compressors=[Crc32cCodec()],
            attributes=attributes,
        )
    sums.create(root, manifest, shards, marks)
    root.create_array(f"{marks}done", shape=(shards,), chunks=(1,), dtype="bool", fill_value=False, compressors=[Crc32cCodec()])


def write_whole(root: zarr.Group, key: str, values: NDArray[Any], attributes: Mapping[str, Any] | None = None) -> None:
    """A small array as one chunk under a crc32c."""
    root.create_array(key, data=values, chunks=values.shape, compressors=[Crc32cCodec()], attributes=dict(attributes or {}))


def _create_sharded(root: zarr.Group, key: str, spec: ArraySpec, n: int, samples_per_shard: int) -> None:
    itemsize = np.dtype(spec.dtype).itemsize
    blosc = [BloscCodec(typesize=itemsize, cname="zstd", clevel=3, shuffle="bitshuffle")] if spec.compressed else []
    root.create_array(
        key,
        shape=(n, *spec.shape),
        shards=(samples_per_shard, *spec.shape),
        chunks=(1,) * (1 + spec.chunk_dims) + spec.chunk_shape,
        dtype=spec.dtype,
        fill_value=spec.fill,
        compressors=[*blosc, Crc32cCodec()],
    )


def is_unfinished(location: Location) -> bool:
    """A creation at a URL, where nothing can be renamed, was killed before it wrote the manifest."""
    attributes = _root_attributes(location)
    return location.path is None and attributes.get("format") == FORMAT and "signature" not in attributes


def as_extended(manifest: Manifest, held: Manifest) -> Manifest:
    """What a store of these settings has for a manifest where it was not made at once, but extended to them.

    Its shards are as large as its first arrays asked for, an added scale's map has an entry of its own, added views an array.

    Args:
        held: of the extended store.
    """
    entries = {entry.name: entry for entry in held.teachers}
    teachers = tuple(
        entry.model_copy(update={"maps": other.maps})
        if (other := entries.get(entry.name)) and all(entry.map_at(scale) == other.map_at(scale) for scale in manifest.scales)
        else entry
        for entry in manifest.teachers
    )
    whole = held.whole()
    arrays = {
        name: piece
        for key, spec in manifest.arrays.items()
        for name, piece in (held.pieces(key) if whole.get(key) == spec else {key: spec}).items()
    }
    alike = {"samples_per_shard": held.samples_per_shard, "schema_version": held.schema_version}
    return manifest.model_copy(update={"teachers": teachers, "arrays": arrays, **alike})


def read_manifest(location: Location) -> Manifest:
    """The manifest of the store at `location`, its signature recomputed.

    Raises:
        CacheError: nothing there, not a feature store, a newer schema, or a manifest that does not match its signature.
    """
    with explained("opening the store", location):
        missing = location.is_vacant()
        if not missing and location.path is not None:
            _require_closed(location.path)
    if missing:
        raise CacheError("no feature store here", where=location, remedy="polyp-difom extract makes one; or correct the path")
    attributes = _root_attributes(location)
    if attributes.get("format") != FORMAT:
        raise _foreign(location, f"attribute format is {attributes.get('format')!r}")
    stored = attributes.get("manifest")
    version = stored.get("schema_version") if isinstance(stored, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise CacheError(
            "the store was made by a newer polyp-difom",
            where=location,
            got=f"schema version {version}",
            wanted=f"schema version {SCHEMA_VERSION}",
            remedy="pip install --upgrade polyp-difom",
        )
    try:
        manifest = Manifest.model_validate(stored)
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(location, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if manifest.signature() != attributes.get("signature"):
        raise _damaged(
            location, f"signature {attributes.get('signature')}", wanted=f"{manifest.signature()}, recomputed from the manifest"
        )
    return manifest


def read_small(root: zarr.Group, key: str, location: Location) -> tuple[NDArray[Any], dict[str, Any]]:
    """A small array and its attributes.

    Raises:
        CacheError: it is missing or damaged.
    """
    try:
        with explained(f"reading {key}", location):
            array = root[key]
            if not isinstance(array, zarr.Array):
                raise KeyError(f"{key} is a group")
            if array.nbytes > LARGEST_SMALL:
                raise ValueError(f"{array.nbytes} bytes, where ours have at most {LARGEST_SMALL}")
            return np.asarray(array[...]), array.attrs.asdict()
    except CacheError:
        raise
    except Exception as error:  # zarr and its codecs raise whatever damaged metadata lead them to
        raise CacheError(
            f"array {key!r} is missing or damaged", where=location.file(key), got=error, remedy=_repair(location)
        ) from error


def read_samples(root: zarr.Group, location: Location, manifest: Manifest) -> SampleTable:
    """The sample table, compared with the manifest's dataset digest.

    Raises:
        CacheError: a column is missing or damaged, or the table is not the one that the manifest was made for.
    """
    columns = {
        name: read_small(root, f"samples/{name}", location)
        for name in ("id", "sha256", "mask_sha256", "pixel_sha256", "height", "width", "split", "dataset")
    }
    try:
        samples = SampleTable.from_arrays(columns)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CacheError(
            "the sample table is damaged", where=location.file("samples"), got=error, remedy=_repair(location)
        ) from error
    if samples.digest() != manifest.dataset_digest:
        raise CacheError(
            "the sample table is not the manifest's",
            where=location.file("samples"),
            got=samples.digest(),
            wanted=manifest.dataset_digest,
            remedy=_repair(location),
        )
    return samples


def _require_closed(folder: Path) -> None:
    """Raise CacheError for a link that leads out of a local store, and for what is neither file nor folder."""
    if found := stranger_in(folder):
        path, is_link = found
        raise CacheError(
            "something in the store is no file of its own, left untouched", where=path,
            got="a link that leads out of the store" if is_link else "a pipe, a socket or a device",
            remedy="put the file itself there, if you trust it",
        )  # fmt: skip


def _root_attributes(location: Location) -> dict[str, Any]:
    with explained("opening the store", location):
        try:
            raw = location.read_bytes("zarr.json")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _foreign(location, "no zarr.json in it") from error
    try:
        node = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _damaged(location, f"zarr.json: {error}") from error
    if not isinstance(node, dict) or node.get("node_type") != "group" or not isinstance(node.get("attributes") or {}, dict):
        raise _foreign(location, "zarr.json is not that of a group")
    return node.get("attributes") or {}


def _foreign(location: Location, got: str) -> CacheError:
    if location.holds(COPY):
        return _damaged(location, got)
    return CacheError(
        "not a feature store, left untouched",
        where=location,
        got=got,
        wanted="a store made by polyp-difom extract",
        remedy="give another path",
    )


def _damaged(location: Location, got: str, wanted: str | None = None) -> CacheError:
    return CacheError(
        "the store's manifest is damaged", where=location.file("zarr.json"), got=got, wanted=wanted, remedy=_repair(location)
    )


def _repair(location: Location) -> str:
    return f"polyp-difom cache verify {location} --repair"
