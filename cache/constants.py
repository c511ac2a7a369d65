"""Small whole arrays kept as one group (a teacher's basis): all of them, matching one digest, or none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.location import Location
from polyp_difom.cache.skeleton import read_small, write_whole

DIGEST = "constants_sha256"


def write(root: zarr.Group, prefix: str, arrays: Mapping[str, NDArray[Any]], attrs: Mapping[str, Any]) -> None:
    """Writes the group anew, its digest last: a group without one was not written to the end."""
    group = root.create_group(prefix, overwrite=True, attributes={**attrs, "arrays": sorted(arrays)})
    for name in sorted(arrays):
        write_whole(group, name, np.asarray(arrays[name]))
    group.update_attributes({DIGEST: _digest(arrays, attrs)})


def read(root: zarr.Group, prefix: str, location: Location) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
    """Arrays and attributes of the group; None where it is missing or was not written to the end.

    Raises:
        CacheError: arrays or attributes do not match the digest.
    """
    group = root.get(prefix)
    if not isinstance(group, zarr.Group):
        return None
    attrs: dict[str, Any] = group.attrs.asdict()
    stored = attrs.pop(DIGEST, None)
    if stored is None:
        return None
    names: list[str] = attrs.pop("arrays")
    arrays = {name: read_small(root, f"{prefix}/{name}", location)[0] for name in names}
    if (found := _digest(arrays, attrs)) != stored:
        raise CacheError(
            f"{prefix} is damaged",
            where=location.file(prefix),
            got=found,
            wanted=stored,
            remedy=f"polyp-difom cache verify {location}",
        )
    return arrays, attrs


def faults(root: zarr.Group, location: Location, keys: Iterable[str]) -> list[tuple[str, str]]:
    """(key, reason) of every metadata document, among the store's files `keys`, or group of constants that cannot be read."""
    found = []
    for key in sorted(key.removesuffix("/zarr.json") for key in keys if key.endswith("/zarr.json")):
        try:
            if DIGEST in json.loads(location.read_bytes(f"{key}/zarr.json")).get("attributes", {}):
                read(root, key, location)
        except CacheError as error:
            found.append((key, error.what))
        except ValueError as error:
            found.append((key, f"zarr.json is damaged: {error}"))
    return found


def _digest(arrays: Mapping[str, NDArray[Any]], attrs: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(dict(attrs), sort_keys=True).encode())
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {values.dtype.str} {np.shape(arrays[name])}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
