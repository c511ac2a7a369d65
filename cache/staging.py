"""A node's own copy of a store that lies elsewhere (`--stage-dir`): an ordinary local store whose shards come when they are
first read. All processes of the node share it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from polyp_difom.cache import constants, spare
from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.location import Location, UnreachableError, built_aside, explained
from polyp_difom.cache.origin import NOTE, Origin, alone_with
from polyp_difom.cache.reading import ReadableStore
from polyp_difom.cache.skeleton import COPY

SMALL = ("samples/", "ledger/", "done/", "extensions/")


def staged(source: str, folder: Path, say: Callable[[str], None] = lambda line: None) -> Path:
    """The local copy of a complete store, made if it is not there yet: all but its shards, which `read` fetches.

    Args:
        source: URL or path of the store. Where it does not answer, what was staged of it before is gone on with.
        folder: for any number of copies; each is named by its store's signature, and by its source.
        say: told what is done, in a line.

    Raises:
        CacheError: no store there, an incomplete one, or one whose small files arrive damaged twice; the disk refuses.
    """
    origin, folder = Location.parse(source), folder.expanduser().absolute()
    try:
        store = ReadableStore.open(source)
        store.require_complete()
    except UnreachableError:
        copy = next((copy for copy in sorted(folder.glob("*.zarr")) if _source_of(copy) == origin), None)
        if copy is None:
            raise
        say(f"{origin} does not answer: going on with what was staged of it")
        return copy
    place = hashlib.sha256(origin.text.encode()).hexdigest()
    copy = folder / f"{store.manifest.signature()[:16]}-{place[:8]}.zarr"
    say(f"{origin} is read through {copy}")
    with explained("staging", Location(str(folder))), alone_with(folder / f".{copy.name}.lock"):
        if not copy.exists():
            _stage(store, copy)
    return copy


class _ArrivalError(CacheError):
    """Small files that are not as they were written."""


def _stage(store: ReadableStore, copy: Path) -> None:
    try:
        _bring_metadata(store, copy)
    except _ArrivalError:
        _bring_metadata(store, copy)


def _bring_metadata(store: ReadableStore, copy: Path) -> None:
    """Everything but the shards, checked; `copy` appears whole or not at all."""
    with explained("staging", store.location):
        keys = [key for key in store.location.sizes() if not key.endswith(".partial")]
    with built_aside(copy) as aside:
        documents = {key for key in keys if key.endswith("zarr.json") or key == COPY or key.startswith(SMALL)}
        _bring(store.location, aside, sorted(documents))
        _bring(store.location, aside, sorted(key for key in keys if key not in documents and _is_constant(aside, key)))
        if (reason := _fault(store, aside)) is not None:
            raise _ArrivalError(
                "the store's metadata arrived damaged, twice", where=store.location, got=reason,
                wanted="files that match their digests", remedy=f"polyp-difom cache verify {store.location}",
            )  # fmt: skip
        (aside / NOTE).write_text(json.dumps({"source": store.location.text}))


def _bring(origin: Location, target: Path, keys: list[str]) -> None:
    with explained("staging", origin):
        filesystem, root = origin.filesystem()
        contents = filesystem.cat_ranges([f"{root}/{key}" for key in keys], None, None, on_error="raise")
    for key, raw in zip(keys, contents, strict=True):
        file = target / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(raw)


def _is_constant(arrived: Path, key: str) -> bool:
    """A file of a group of constants, whose metadata has arrived; not a shard, nor what an unfinished writer left."""
    document = (arrived / key.partition("/c/")[0]).parent / "zarr.json"
    return "/c/" in key and document.is_file() and f'"{constants.DIGEST}"' in document.read_text()


def _fault(store: ReadableStore, aside: Path) -> str | None:
    """What of the small files is not as it was written."""
    try:
        arrived = ReadableStore.open(aside)
        arrived.require_complete()
    except CacheError as error:
        return error.what
    if arrived.manifest != store.manifest:
        return "the manifest has changed meanwhile"
    found = constants.faults(arrived.root, arrived.location, arrived.location.sizes())
    return next((f"{key}: {reason}" for key, reason in (*found, *spare.differing(arrived.location).items())), None)


def _source_of(copy: Path) -> Location | None:
    origin = Origin.of(Location(str(copy)))
    return None if origin is None else origin.source
