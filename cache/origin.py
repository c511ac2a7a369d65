"""Where a staged copy comes from, and how a shard of it arrives: fetched once by whichever process of the node needs it
first, under another name, checked chunk by chunk, and renamed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polyp_difom.cache import sums
from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.location import Location, explained
from polyp_difom.cache.shards import ShardedArray

if TYPE_CHECKING:
    from polyp_difom.cache.reading import ReadableStore

NOTE = ".staged.json"
"""File in a staged copy that tells its source."""
ARRIVING = ".arriving"
"""Folder in a staged copy where shards lie until they are checked."""
DOWNLOADS = 4


@dataclass(frozen=True)
class Origin:
    """A staged copy and the store that it is of."""

    copy: Path
    source: Location

    @classmethod
    def of(cls, location: Location) -> Origin | None:
        """None for a store that is no staged copy.

        Raises:
            CacheError: the note that tells its source is damaged.
        """
        if location.path is None:
            return None
        try:
            source = json.loads((location.path / NOTE).read_bytes())["source"]
            return cls(location.path, Location.parse(source))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise CacheError(
                "the staged copy's note of its source is damaged", where=location.file(NOTE), got=error,
                remedy="delete the copy; it is staged again when it is needed",
            ) from error  # fmt: skip

    def read_only(self) -> CacheError:
        """The error for one who wants to write into the copy."""
        return CacheError(
            "a staged copy is for reading only", where=self.copy, remedy=f"give the store that it is of: {self.source}"
        )

    def fetch(self, store: ReadableStore, key: str, shards: Sequence[int]) -> None:
        """Brings the shards of an array that are not there yet.

        Raises:
            UnreachableError: the source does not answer.
            CacheError: a shard arrives damaged twice, or the copy's disk is too small.
        """
        lacking = [shard for shard in shards if not (self.copy / store.sharded(key).file(shard)).exists()]
        if not lacking:
            return
        with explained(f"staging {key}", self.source):
            needed = sum(self._size(store.sharded(key).file(shard)) for shard in lacking)
        if needed > shutil.disk_usage(self.copy).free:
            raise self._full(key, needed)
        with ThreadPoolExecutor(DOWNLOADS) as pool:
            for _ in pool.map(lambda shard: self._fetch(store, key, shard, needed), lacking):
                pass

    def _fetch(self, store: ReadableStore, key: str, shard: int, needed: int) -> None:
        file = store.sharded(key).file(shard)
        target, arriving = self.copy / file, self.copy / ARRIVING / file
        with explained(f"staging {key}", Location(str(self.copy))), alone_with(arriving):
            if target.exists():
                return
            reason = None
            for _ in range(2):
                self._download(key, file, arriving, needed)
                if (reason := self._fault(store, key, shard)) is None:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    arriving.rename(target)
                    return
        raise CacheError(
            f"a shard of {key} arrived damaged, twice", where=self.source.file(file), got=reason,
            wanted="chunks that match their checksums", remedy=f"polyp-difom cache verify {self.source}",
        )  # fmt: skip

    def _size(self, file: str) -> int:
        filesystem, root = self.source.filesystem()
        return filesystem.size(f"{root}/{file}")

    def _download(self, key: str, file: str, arriving: Path, needed: int) -> None:
        filesystem, root = self.source.filesystem()
        with explained(f"staging {key}", self.source):
            try:
                filesystem.get_file(f"{root}/{file}", str(arriving))
                with arriving.open("rb") as stream:
                    os.fsync(stream.fileno())
            except OSError as error:
                if error.errno != ENOSPC:
                    raise
                raise self._full(key, needed) from error

    def _fault(self, store: ReadableStore, key: str, shard: int) -> str | None:
        """Why the shard that lies in `ARRIVING` is not the one that was written; None for a sound one."""
        spec, size, rows = store.manifest.arrays[key], store.manifest.samples_per_shard, store.shards[shard]
        per_sample = spec.chunks_per_sample
        arrived = ShardedArray(Location(str(self.copy / ARRIVING)), key, spec, size)
        values, faults = arrived.read(np.arange(rows.start * per_sample, rows.stop * per_sample), verify="always")
        if (fault := next(faults, None)) is not None:
            return fault.reason
        recorded = sums.of_array(store.root, key, shard)
        if recorded is None or (sums.of_chunks(values) == recorded[: len(values)]).all():
            return None
        return "sound chunks, but not those that the store had when it was staged"

    def _full(self, key: str, needed: int) -> CacheError:
        free = shutil.disk_usage(self.copy).free
        return CacheError(
            f"the disk is too small to stage {key}", where=self.copy, got=f"{free:,} bytes free",
            wanted=f"{needed:,} bytes", remedy="make room there, or give another --stage-dir",
        )  # fmt: skip


@contextmanager
def alone_with(file: Path) -> Iterator[None]:
    """One process and thread at a time; the others wait. The file is made, and gone at the end unless it was renamed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        stream = file.open("ab")
        fcntl.flock(stream, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), file.stat()):
                break
        stream.close()  # the one before renamed or removed it
    with stream:
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
