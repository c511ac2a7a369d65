"""Files in a store's folder that no reader will ever look at, and their removal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polyp_difom.cache.constants import DIGEST
from polyp_difom.cache.errors import UsageError
from polyp_difom.cache.location import explained
from polyp_difom.cache.lock import exclusive_lock
from polyp_difom.cache.shards import shard_key
from polyp_difom.cache.store import FeatureStore

TREES = ("frames/", "teachers/")
"""Where a store keeps arrays that its manifest names; nothing is looked for elsewhere, .partial files apart."""


@dataclass(frozen=True)
class Litter:
    """One file that may go.

    Args:
        key: path within the store.
        size: in bytes.
        reason: why nothing reads it.
    """

    key: str
    size: int
    reason: str


def prune(store: FeatureStore, *, dry_run: bool = False) -> list[Litter]:
    """Removes what killed writers and other programs left: half-written files, shards beyond the last sample or of unfinished
    work, arrays and constants that belong to nothing in the manifest (those of a killed `extend` too, which then begins anew).
    Every other file stays, also those it does not know.

    Args:
        dry_run: look only.

    Returns:
        What was (or would be) removed.

    Raises:
        CacheError: a writer is at work on the store.
        UsageError: the store is at a URL, where no lock keeps writers away.
    """
    folder = store.location.path
    if folder is None:
        raise UsageError("only a local store can be pruned", where=store.location, wanted="a path")
    with explained("pruning", store.location), exclusive_lock(folder / ".lock"):
        found = list(_litter(store))
        for item in [] if dry_run else found:
            path = folder / item.key
            path.unlink()
            _remove_empty(path.parent, folder)
    return found


def _litter(store: FeatureStore) -> Iterator[Litter]:
    sizes = store.location.sizes()
    wanted = _wanted_shards(store)
    arrays = tuple(f"{key}/" for key in store.manifest.arrays)
    teachers = {tuple(key.split("/")[:2]) for key in store.manifest.arrays if key.startswith("teachers/")}
    strays = tuple(f"{prefix}/" for prefix in _stray_nodes(store, sizes, teachers))
    for key, size in sorted(sizes.items()):
        if key.endswith(".partial"):
            yield Litter(key, size, "half-written by a program that was killed")
        elif key.startswith(arrays):
            number = _shard_number(key, arrays)
            if number is not None and number >= len(store.shards):
                yield Litter(key, size, "a shard beyond the last sample")
            elif number is not None and key not in wanted:
                yield Litter(key, size, "of a shard that is not complete; extract makes it anew")
        elif key.startswith(strays):
            yield Litter(key, size, "of an array or teacher that the manifest does not name")


def _wanted_shards(store: FeatureStore) -> set[str]:
    """Files of all complete shards."""
    complete = [number for number, done in enumerate(store.done()) if done]
    specs = store.manifest.arrays.items()
    return {shard_key(key, number, 1 + len(spec.shape)) for key, spec in specs for number in complete}


def _shard_number(key: str, arrays: tuple[str, ...]) -> int | None:
    """Number of the shard whose file this is; None for an array's other files."""
    prefix = next(prefix for prefix in arrays if key.startswith(prefix))
    kind, *numbers = key.removeprefix(prefix).split("/")
    return int(numbers[0]) if kind == "c" and numbers and all(number.isdecimal() for number in numbers) else None


def _stray_nodes(store: FeatureStore, sizes: dict[str, int], teachers: set[tuple[str, ...]]) -> Iterator[str]:
    """Prefixes of Zarr nodes below `TREES` that the manifest knows nothing of."""
    known = store.manifest.arrays
    for key in sizes:
        prefix, _, name = key.rpartition("/")
        if name != "zarr.json" or not prefix.startswith(TREES) or any(f"{held}/".startswith(f"{prefix}/") for held in known):
            continue
        if tuple(prefix.split("/")[:2]) not in teachers or not _is_constants(store, prefix):
            yield prefix


def _is_constants(store: FeatureStore, prefix: str) -> bool:
    """A group of constants, whole or half-written, or one of the arrays in it."""
    for node in (prefix, prefix.rpartition("/")[0]):
        try:
            attributes = json.loads(store.location.read_bytes(f"{node}/zarr.json")).get("attributes", {})
        except (FileNotFoundError, ValueError):
            continue
        if DIGEST in attributes or "arrays" in attributes:
            return True
    return False


def _remove_empty(folder: Path, root: Path) -> None:
    while folder != root and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
