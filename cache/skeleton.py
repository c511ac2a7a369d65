"""Lays out a new store and reads an existing one's manifest: everything that is written first, before any shard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import ValidationError
from zarr.codecs import BloscCodec, Crc32cCodec

from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.location import Location, explained
from polyp_difom.cache.manifest import SCHEMA_VERSION, ArraySpec, Manifest, SampleTable

FORMAT = "polyp-difom feature store"
LEDGER_FIELDS = ("teacher_seconds", "decode_seconds", "write_seconds", "attempts")
HOST_BYTES = 64
DELETE_OR_MOVE = "give another path, or delete this one if nothing needs it"


def write_skeleton(location: Location, manifest: Manifest, samples: SampleTable) -> None:
    """Metadata of every array, the sample table, and last the manifest and its signature, without which a store is not one."""
    root = zarr.create_group(
        location.zarr_store(read_only=False), zarr_format=3, overwrite=location.path is None, attributes={"format": FORMAT}
    )
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
        fill_value=np.nan if spec.is_float else 0,
        compressors=[*blosc, Crc32cCodec()],
    )


def is_unfinished(location: Location) -> bool:
    """A creation at a URL, where nothing can be renamed, was killed before it wrote the manifest."""
    attributes = _root_attributes(location)
    return location.path is None and attributes.get("format") == FORMAT and "signature" not in attributes


def read_manifest(location: Location) -> Manifest:
    """The manifest of the store at `location`, its signature recomputed.

    Raises:
        CacheError: nothing there, not a feature store, a newer schema, or a manifest that does not match its signature.
    """
    with explained("opening the store", location):
        missing = location.is_vacant()
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
        array = root[key]
        if not isinstance(array, zarr.Array):
            raise KeyError(f"{key} is a group")
        return np.asarray(array[...]), array.attrs.asdict()
    except (KeyError, ValueError, OSError, RuntimeError) as error:
        raise CacheError(
            f"array {key!r} is missing or damaged", where=location.file(key), got=error, remedy=DELETE_OR_MOVE
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
    except (ValueError, KeyError, IndexError) as error:
        raise CacheError(
            "the sample table is damaged", where=location.file("samples"), got=error, remedy=DELETE_OR_MOVE
        ) from error
    if samples.digest() != manifest.dataset_digest:
        raise CacheError(
            "the sample table is not the manifest's",
            where=location.file("samples"),
            got=samples.digest(),
            wanted=manifest.dataset_digest,
            remedy=DELETE_OR_MOVE,
        )
    return samples


def _root_attributes(location: Location) -> dict[str, Any]:
    try:
        node = json.loads(location.read_bytes("zarr.json"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _foreign(location, "no zarr.json in it") from error
    except OSError as error:
        raise CacheError("opening the store failed", where=location, got=error.strerror or error) from error
    except ValueError as error:
        raise _damaged(location, f"zarr.json: {error}") from error
    if not isinstance(node, dict) or node.get("node_type") != "group":
        raise _foreign(location, "zarr.json is not that of a group")
    return node.get("attributes") or {}


def _foreign(location: Location, got: str) -> CacheError:
    return CacheError(
        "not a feature store, left untouched",
        where=location,
        got=got,
        wanted="a store made by polyp-difom extract",
        remedy="give another path",
    )


def _damaged(location: Location, got: str, wanted: str | None = None) -> CacheError:
    return CacheError(
        "the store's manifest is damaged", where=location.file("zarr.json"), got=got, wanted=wanted, remedy=DELETE_OR_MOVE
    )
