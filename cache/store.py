"""The feature store: one Zarr v3 group that `extract` fills shard by shard and every student reads.

The store knows arrays and metadata; which arrays there are is the caller's choice, written down in the manifest.
Shapes: n samples, v views, c channels, h w grid.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from errno import EEXIST, ENOTEMPTY
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray

from polyp_difom.cache import constants, inspection
from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.inspection import Damage
from polyp_difom.cache.location import Location, built_aside, explained
from polyp_difom.cache.lock import exclusive_lock
from polyp_difom.cache.manifest import ArraySpec, Manifest, SampleTable, encode_text
from polyp_difom.cache.payload import check_shard
from polyp_difom.cache.shards import UNWRITTEN, ChunkFault, ShardedArray, chunk_numbers
from polyp_difom.cache.skeleton import (
    DELETE_OR_MOVE,
    HOST_BYTES,
    LEDGER_FIELDS,
    is_unfinished,
    read_manifest,
    read_samples,
    read_small,
    write_skeleton,
)

DERIVED = ("arrays.", "dataset_digest", "datasets.", "samples_per_shard")
RESUME = "run the same `polyp-difom extract` again; it resumes"


class FeatureStore:
    """A store that is open; made by `create` or `open`.

    Handles are opened lazily in each process, so a store can be pickled and used after a fork. Only the process that entered
    `writing` may write.
    """

    def __init__(self, location: Location, manifest: Manifest, samples: SampleTable, *, writable: bool):
        self.location = location
        self.manifest = manifest
        self.samples = samples
        self.writable = writable
        self._forget_handles()

    def _forget_handles(self) -> None:
        self._pid = os.getpid()
        self._group: zarr.Group | None = None
        self._arrays: dict[str, ShardedArray] = {}
        self._is_writing = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("location", "manifest", "samples", "writable")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_handles()

    def __len__(self) -> int:
        return len(self.samples)

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
                    write_skeleton(location, manifest, samples)
            elif location.is_vacant():
                try:
                    with built_aside(location.path) as folder:
                        write_skeleton(Location(str(folder)), manifest, samples)
                except OSError as error:
                    if error.errno not in (ENOTEMPTY, EEXIST) or not location.path.is_dir():
                        raise
        store = cls.open(path, writable=True)
        # what follows from other settings comes last: a user types the others
        if differences := sorted(store.manifest.differences(manifest), key=lambda row: row[0].startswith(DERIVED)):
            first = differences[:4]
            more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
            raise CacheError(
                "the store was made with other settings",
                where=location,
                got="; ".join(f"{key} = {stored}" for key, stored, _ in first) + more,
                wanted="; ".join(f"{key} = {wanted}" for key, _, wanted in first) + more,
                remedy=DELETE_OR_MOVE,
            )
        return store

    @classmethod
    def open(cls, path: str | os.PathLike[str], writable: bool = False) -> FeatureStore:
        """The store at `path`, its signature and sample table checked.

        Raises:
            CacheError: missing, foreign, damaged, or of a newer schema.
        """
        location = Location.parse(path)
        manifest = read_manifest(location)
        root = zarr.open_group(location.zarr_store(read_only=True), mode="r", zarr_format=3, use_consolidated=False)
        return cls(location, manifest, read_samples(root, location, manifest), writable=writable)

    # Progress

    @property
    def shards(self) -> list[range]:
        """Sample indices of each shard."""
        size = self.manifest.samples_per_shard
        return [range(start, min(start + size, len(self))) for start in range(0, len(self), size)]

    def done(self) -> NDArray[np.bool_]:
        """Which shards are complete [n_shards]."""
        return read_small(self.root, "done", self.location)[0]

    def pending(self) -> list[int]:
        """Numbers of the shards that are not complete."""
        return np.flatnonzero(~self.done()).tolist()

    @property
    def is_complete(self) -> bool:
        """Every shard is complete."""
        return bool(self.done().all())

    def require_complete(self) -> None:
        """Raises CacheError unless every shard is complete."""
        done = self.done()
        if not done.all():
            raise CacheError(
                "the store is incomplete",
                where=self.location,
                got=f"{done.sum()} of {len(done)} shards",
                wanted="all of them",
                remedy=RESUME,
            )

    # Writing

    @contextmanager
    def writing(self) -> Iterator[FeatureStore]:
        """The only way to write: holds the store's lock (local stores) until the block ends or the process dies.

        Raises:
            CacheError: another writer is at work, or the store was opened for reading.
        """
        if not self.writable:
            raise CacheError("the store is open for reading only", where=self.location, remedy="open it with writable=True")
        folder = self.location.path
        with ExitStack() as stack:
            if folder is not None:
                with explained("locking the store", self.location):
                    stack.enter_context(exclusive_lock(folder / ".lock"))
                    for stray in folder.rglob("*.partial"):  # A killed Zarr write leaves these.
                        stray.unlink()
            self._leave_parent_process()
            self._is_writing = True
            try:
                yield self
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
            values = dict(ledger, write_seconds=time.perf_counter() - began)
            self._put("ledger/values", number, np.array([values[field] for field in LEDGER_FIELDS]))
            self._put("ledger/host", number, encode_text([socket.gethostname()], HOST_BYTES)[0])
            self._put("done", number, True)
        self._arrays.clear()

    def mark_pending(self, number: int) -> None:
        """Takes a shard's done mark back, so that `extract` makes it again."""
        self._require_writing()
        with explained(f"marking shard {number}", self.location):
            self.location.delete(f"done/c/{number}")

    def write_constants(self, prefix: str, arrays: Mapping[str, NDArray[Any]], attrs: Mapping[str, Any]) -> None:
        """Small whole arrays under the group `prefix`, in place of what was there; their digest is written last."""
        self._require_writing()
        with explained(f"writing {prefix}", self.location):
            constants.write(self.root, prefix, arrays, attrs)

    # Reading

    def read_constants(self, prefix: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
        """What `write_constants` wrote; None where it was never written or not to the end.

        Raises:
            CacheError: the arrays do not match their digest.
        """
        return constants.read(self.root, prefix, self.location)

    def read(self, key: str, indices: NDArray[np.integer] | None = None, verify: bool = True) -> NDArray[Any]:
        """Samples of one array, straight from the shard files.

        Args:
            key: as in the manifest.
            indices: None for all, [n, *shape]; sample numbers [k], giving [k, *shape]; or chunk coordinates [k, 1 + chunk_dims]
                ((sample, view) of an embedding), giving [k, *chunk_shape].
            verify: compare every chunk's crc32c.

        Raises:
            CacheError: a chunk was never written, or is damaged; names shard file and sample.
            IndexError: an index out of range.
        """
        spec = self._spec(key)
        numbers, shape = chunk_numbers(key, spec, len(self), indices)
        with explained(f"reading {key}", self.location):
            out, faults = self.sharded(key).read(numbers, verify)
            fault = next(faults, None)
        if fault is not None:
            raise self._unreadable(key, fault)
        return out.reshape(shape)

    def _unreadable(self, key: str, fault: ChunkFault) -> CacheError:
        spec = self._spec(key)
        sample, rest = divmod(fault.chunk, spec.chunks_per_sample)
        chunk = [int(i) for i in np.unravel_index(rest, spec.shape[: spec.chunk_dims])] if spec.chunk_dims else []
        name = f"sample {self.samples.ids[sample]!r}" + (f", chunk {chunk}" if chunk else "")
        unwritten = fault.reason.startswith(UNWRITTEN)
        return CacheError(
            f"{key} {'holds no data' if unwritten else 'is damaged'} for {name}",
            where=self.location.file(self.sharded(key).file(fault.shard)),
            got=fault.reason,
            wanted="a chunk that matches its checksum",
            remedy=RESUME if unwritten and not self.done()[fault.shard] else f"polyp-difom cache verify {self.location}",
        )

    # Inspection

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[Damage]:
        """See `polyp_difom.cache.inspection.verify`."""
        return inspection.verify(self, progress)

    def summary(self) -> dict[str, Any]:
        """See `polyp_difom.cache.inspection.summary`."""
        return inspection.summary(self)

    # Handles

    @property
    def root(self) -> zarr.Group:
        """The Zarr group, opened by this process."""
        self._leave_parent_process()
        if self._group is None:
            store = self.location.zarr_store(read_only=not self.writable)
            mode: Literal["r", "r+"] = "r+" if self.writable else "r"
            self._group = zarr.open_group(store, mode=mode, zarr_format=3, use_consolidated=False)
        return self._group

    def sharded(self, key: str) -> ShardedArray:
        """The chunks of one array, opened by this process."""
        self._leave_parent_process()
        if key not in self._arrays:
            self._arrays[key] = ShardedArray(self.location, key, self._spec(key), self.manifest.samples_per_shard)
        return self._arrays[key]

    def _leave_parent_process(self) -> None:
        if self._pid != os.getpid():
            self._forget_handles()

    def _spec(self, key: str) -> ArraySpec:
        if key not in self.manifest.arrays:
            raise CacheError(
                f"the store has no array {key!r}",
                where=self.location,
                wanted=f"one of: {', '.join(sorted(self.manifest.arrays))}",
            )
        return self.manifest.arrays[key]

    def _put(self, key: str, rows: int | slice, values: NDArray[Any] | bool) -> None:
        """Writes rows of an array; chunks that equal the fill value too, which Zarr would leave out (an empty mask is data)."""
        with zarr.config.set({"array.write_empty_chunks": True}):
            array = self.root[key]
        assert isinstance(array, zarr.Array)  # noqa: S101
        array[rows] = values

    def _require_writing(self) -> None:
        self._leave_parent_process()
        if not self._is_writing:
            raise RuntimeError("write only inside `with store.writing():`, in the process that entered it")
