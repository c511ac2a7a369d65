"""A second copy of every small file of a store (`metadata.copy.json`): what is lost of them is put back byte for byte.

Copied are the metadata documents, the sample table and the groups of constants: all that is written once, before the shards.
Stores of earlier versions have no copy, and a killed writer may leave a file out of it; nothing is compared there.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import accumulate

from polyp_difom.cache import sums
from polyp_difom.cache.constants import DIGEST
from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.location import Location, explained
from polyp_difom.cache.lock import exclusive_lock
from polyp_difom.cache.manifest import Manifest
from polyp_difom.cache.replacing import replace_file
from polyp_difom.cache.skeleton import COPY, read_manifest

MARKS = ("done", "ledger/values", "ledger/host", sums.KEY)


def load(location: Location) -> dict[str, bytes] | None:
    """The copied files by key; None where the store has no copy.

    Raises:
        CacheError: the copy is damaged, or its manifest is not the store's sound one.
    """
    try:
        node = json.loads(location.read_bytes(COPY))
        if node["sha256"] != _digest(node["files"]):
            raise ValueError("its digest does not match")
        files = {key: base64.b64decode(text) for key, text in node["files"].items()}
        if _is_foreign(location, files):
            raise ValueError("it is another store's, or of an earlier state")
        return files
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(
            "the copy of the metadata is damaged", where=location.file(COPY), got=error,
            remedy=f"polyp-difom cache verify {location} --repair",
        ) from error  # fmt: skip


def save(location: Location, files: dict[str, bytes]) -> None:
    """Writes the copy anew, whole or not at all."""
    texts = {key: base64.b64encode(files[key]).decode() for key in sorted(files)}
    raw = json.dumps({"sha256": _digest(texts), "files": texts}, separators=(",", ":")).encode()
    _put(location, COPY, raw)


def forget(location: Location, prefix: str) -> None:
    """Leaves a file, or a group's files, out of the copy, before they change."""
    held = load(location) or {}
    kept = {key: raw for key, raw in held.items() if key != prefix and not key.startswith(f"{prefix}/")}
    if len(kept) < len(held):
        save(location, kept)


def add(location: Location, manifest: Manifest, extensions: Sequence[str] = ()) -> None:
    """Copies those of the store's small files that are not in the copy yet.

    Args:
        extensions: ids of the sealed ones.
    """
    held = load(location) or {}
    if fresh := [key for key in _small_files(location, manifest, extensions) if key not in held]:
        save(location, held | {key: location.read_bytes(key) for key in fresh})


def differing(location: Location) -> dict[str, str]:
    """Files that are not what the copy holds, with the reason."""
    found = {}
    for key, raw in (load(location) or {}).items():
        if not _equals(location, key, raw):
            found[key] = "is not as it was written" if location.holds(key) else "is missing"
    return found


def restore(location: Location) -> list[str]:
    """Puts back every file that is not what the copy holds, and says which.

    Raises:
        CacheError: a writer is at work on the store, the copy is damaged, or the disk refuses.
    """
    if not (wrong := differing(location)):
        return []
    held = load(location) or {}
    with explained("restoring metadata", location):
        if location.path is None:
            for key in wrong:
                _put(location, key, held[key])
        else:
            with exclusive_lock(location.path / ".lock"):
                for key in wrong:
                    _put(location, key, held[key])
    return sorted(wrong)


def _small_files(location: Location, manifest: Manifest, extensions: Sequence[str]) -> Iterator[str]:
    marks = [f"{prefix}{key}" for prefix in ("", *(f"extensions/{name}/" for name in extensions)) for key in MARKS]
    nodes = {node for key in (*manifest.arrays, *marks) for node in accumulate(key.split("/"), "{}/{}".format)}
    documents = {"zarr.json", *(f"{node}/zarr.json" for node in nodes)}
    teachers = {"/".join(key.split("/")[:2]) for key in manifest.arrays if key.startswith("teachers/")}
    files = sorted(key for key in location.sizes() if not key.endswith(".partial"))
    groups = {"/".join(parts[:3]) for parts in (key.split("/") for key in files) if "/".join(parts[:2]) in teachers} - nodes
    constants = tuple(f"{group}/" for group in groups if f"{group}/zarr.json" in files and _is_whole(location, group))
    yield from (key for key in files if key in documents or key.startswith(("samples/", *constants)))


def _is_foreign(location: Location, files: dict[str, bytes]) -> bool:
    """The store's own manifest is sound and another one; unless it is that one which the sample table disowns."""
    try:
        ours = read_manifest(location)
    except CacheError:
        return False  # the copy is all there is
    if "zarr.json" not in files or (copied := json.loads(files["zarr.json"])["attributes"])["signature"] == ours.signature():
        return False
    samples = [key for key in files if key.startswith("samples/")]
    disowned = ours.dataset_digest != copied["manifest"]["dataset_digest"]
    return not (disowned and samples and all(_equals(location, key, files[key]) for key in samples))


def _equals(location: Location, key: str, raw: bytes) -> bool:
    try:
        return location.read_bytes(key) == raw
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_whole(location: Location, group: str) -> bool:
    try:
        return DIGEST in json.loads(location.read_bytes(f"{group}/zarr.json")).get("attributes", {})
    except ValueError:
        return False


def _digest(texts: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


def _put(location: Location, key: str, raw: bytes) -> None:
    if location.path is None:
        filesystem, root = location.filesystem()
        filesystem.pipe_file(f"{root}/{key}", raw)
        return
    replace_file(location.path / key, raw)
