"""The feature store: one Zarr v3 group that `extract` fills shard by shard and every student reads.

The store knows arrays and metadata; which arrays there are is the caller's choice, written down in the manifest.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from errno import EEXIST, ENOTEMPTY
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from polyp_difom.cache import constants, inspection, spare, sums
from polyp_difom.cache.claims import Claims, NoClaims, joined, sweep
from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.inspection import Damage
from polyp_difom.cache.location import Location, built_aside, explained, remove_strays
from polyp_difom.cache.lock import exclusive_lock
from polyp_difom.cache.manifest import Manifest
from polyp_difom.cache.payload import check_shard
from polyp_difom.cache.reading import ReadableStore
from polyp_difom.cache.samples import SampleTable
from polyp_difom.cache.skeleton import (
    DELETE_OR_MOVE,
    HOST_BYTES,
    LEDGER_FIELDS,
    SEALED,
    UNFINISHED,
    as_extended,
    is_unfinished,
    write_skeleton,
)
from polyp_difom.cache.text import encode_text

DERIVED = ("arrays.", "dataset_digest", "datasets.", "samples_per_shard")


class FeatureStore(ReadableStore):
    """A store that is open; made by `create` or `open`.

    Handles are opened lazily in each process, so a store can be pickled and used after a fork. Only a process that entered
    `writing` or `sharing` may write.
    """

    @classmethod
    def create(cls, path: str | os.PathLike[str], manifest: Manifest, samples: SampleTable) -> FeatureStore:
        """A new store, or the existing one of the same signature, to be resumed.

        Raises:
            CacheError: the path holds another signature or something else, or cannot be written.
            ValueError: the manifest was made for another sample table.
        """
        if manifest.dataset_digest != samples.digest():
            raise ValueError("manifest.dataset_digest must be samples.digest()")
        location = Location.parse(path)
        with explained("creating the store", location):
            if location.path is None:
                if location.is_vacant() or is_unfinished(location):
                    _create_at_url(location, manifest, samples)
            elif location.is_vacant():
                try:
                    with built_aside(location.path) as folder:
                        write_skeleton(Location(str(folder)), manifest, samples)
                        spare.add(Location(str(folder)), manifest)
                except OSError as error:
                    if error.errno not in (ENOTEMPTY, EEXIST) or not location.path.is_dir():
                        raise
            else:
                remove_strays(location.path)
        store = cls.open(path, writable=True)
        store.require_made_for(manifest)
        return store

    def require_made_for(self, manifest: Manifest) -> None:
        """CacheError unless the store was made, or may have been extended, with the settings of this manifest."""
        if SEALED in self.root.attrs:
            manifest = as_extended(manifest, self.manifest)
        # what follows from other settings comes last: a user types the others
        if differences := sorted(self.manifest.differences(manifest), key=lambda row: row[0].startswith(DERIVED)):
            first = differences[:4]
            more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
            raise CacheError(
                "the store was made with other settings",
                where=self.location,
                got="; ".join(f"{key} = {stored}" for key, stored, _ in first) + more,
                wanted="; ".join(f"{key} = {wanted}" for key, _, wanted in first) + more,
                remedy=DELETE_OR_MOVE,
            )

    # Writing

    @contextmanager
    def writing(self) -> Iterator[FeatureStore]:
        """To write alone: holds the store's lock (local stores) until the block ends or the process dies.

        Raises:
            CacheError: another writer is at work, or the store was opened for reading.
        """
        self._require_writable()
        folder = self.location.path
        with ExitStack() as stack:
            if folder is not None:
                with explained("locking the store", self.location):
                    stack.enter_context(exclusive_lock(folder / ".lock"))
                    sweep(folder)
            stack.enter_context(self._writing())
            yield self

    @contextmanager
    def sharing(self) -> Iterator[Claims]:
        """To write beside other workers: only shards that were claimed, and all else only in `claims.alone()`.

        Raises:
            CacheError: an exclusive writer is at work, or the store was opened for reading.
        """
        self._require_writable()
        folder = self.location.path
        with ExitStack() as stack:
            claims: Claims = NoClaims()
            if folder is not None:
                with explained("locking the store", self.location):
                    claims = stack.enter_context(joined(folder))
            stack.enter_context(self._writing())
            yield claims

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._leave_parent_process()
        self._is_writing = True
        try:
            yield
        finally:
            self._is_writing = False

    def write_shard(self, number: int, arrays: Mapping[str, NDArray[Any]], ledger: Mapping[str, float]) -> None:
        """Writes one whole shard of every array, then the ledger, then marks it done.

        Args:
            number: of the shard.
            arrays: one entry for each of the manifest's arrays, [k, *shape] of its dtype, k samples of the shard.
            ledger: teacher_seconds, decode_seconds and attempts; the store adds write_seconds and the host.

        Raises:
            CacheError: a value is not finite, or the disk refuses.
            ValueError: keys, shapes or dtypes are not the manifest's.
        """
        self._require_writing()
        rows = self.shards[number]
        check_shard(self.manifest, [self.samples.ids[row] for row in rows], arrays, ledger)
        began = time.perf_counter()
        with explained(f"writing shard {number}", self.location):
            self.mark_pending(number)
            for key in self.manifest.arrays:
                file = self.sharded(key).file(number)
                self.location.delete(file)  # Zarr would merge into a shard that is there, and fail on a damaged one.
                self._put(key, slice(rows.start, rows.stop), arrays[key])
                self.location.flush(file)
            sums.write(self.root, number, arrays, self.manifest)
            values = dict(ledger, write_seconds=time.perf_counter() - began)
            self._put(f"{self.marks}ledger/values", number, np.array([values[field] for field in LEDGER_FIELDS]))
            self._put(f"{self.marks}ledger/host", number, encode_text([socket.gethostname()], HOST_BYTES)[0])
            self._put(f"{self.marks}done", number, True)
        self._arrays.clear()

    def mark_pending(self, number: int) -> None:
        """Takes a shard's done mark back, so that `extract` makes it again."""
        self._require_writing()
        with explained(f"marking shard {number}", self.location):
            self.location.delete(f"{self.marks}done/c/{number}")

    def write_constants(self, prefix: str, arrays: Mapping[str, NDArray[Any]], attrs: Mapping[str, Any]) -> None:
        """Small whole arrays under the group `prefix`, in place of what was there; their digest is written last."""
        self._require_writing()
        with explained(f"writing {prefix}", self.location):
            spare.forget(self.location, prefix)
            constants.write(self.root, prefix, arrays, attrs)
        self.complete_copy()

    def complete_copy(self) -> None:
        """Copies what small files a writer that was killed had no time to copy."""
        self._require_writing()
        if not self.marks:  # an extension's are copied when it is sealed
            with explained("copying the metadata", self.location):
                spare.add(self.location, self.manifest)

    # Inspection

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[Damage]:
        """See `polyp_difom.cache.inspection.verify`."""
        with explained("verifying", self.location):
            return inspection.verify(self, progress)

    def summary(self) -> dict[str, Any]:
        """See `polyp_difom.cache.inspection.summary`."""
        with explained("looking the store over", self.location):
            return inspection.summary(self)

    def _put(self, key: str, rows: int | slice, values: NDArray[Any] | bool) -> None:
        """Writes rows of an array; chunks that equal the fill value too, which Zarr would leave out (an empty mask is data)."""
        array = self.root[key]
        assert isinstance(array, zarr.Array)  # noqa: S101
        array.with_config({"write_empty_chunks": True})[rows] = values  # zarr.config would set it for other threads too

    def _require_writable(self) -> None:
        if not self.writable:
            raise CacheError("the store is open for reading only", where=self.location, remedy="open it with writable=True")

    def _require_writing(self) -> None:
        self._leave_parent_process()
        if not self._is_writing:
            raise RuntimeError("write only inside `with store.writing():` or `store.sharing()`, in the process that entered it")


def _create_at_url(location: Location, manifest: Manifest, samples: SampleTable) -> None:
    """Where nothing can be renamed: file by file, the root's document last, nothing deleted.

    All writers of one manifest write the same bytes, so several may be at it at once, and one may be killed.
    """
    filesystem, root = location.filesystem()
    if not location.holds("zarr.json"):
        filesystem.pipe_file(f"{root}/zarr.json", json.dumps(UNFINISHED).encode())
    with TemporaryDirectory() as folder:
        local = Location(folder)
        write_skeleton(local, manifest, samples)
        spare.add(local, manifest)
        files = {f"{root}/{key}": local.read_bytes(key) for key in local.sizes()}
    last = files.pop(f"{root}/zarr.json")
    filesystem.pipe(files)
    filesystem.pipe_file(f"{root}/zarr.json", last)
