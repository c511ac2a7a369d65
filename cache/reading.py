"""A store that is open: its progress, and its samples straight from the shard files.

Shapes: n samples, v views, c channels, h w grid.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import zarr
from numpy.typing import NDArray

from polyp_difom.cache import constants
from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.location import Location, explained
from polyp_difom.cache.manifest import ArraySpec, Manifest
from polyp_difom.cache.origin import Origin
from polyp_difom.cache.samples import SampleTable
from polyp_difom.cache.shards import UNWRITTEN, Bytes, ChunkFault, ShardedArray, Verify, chunk_numbers, room
from polyp_difom.cache.skeleton import LEDGER_FIELDS, read_manifest, read_samples, read_small

RESUME = "run the same `polyp-difom extract` again; it resumes"


class ReadableStore:
    """What can be asked of an open store; see `polyp_difom.cache.store.FeatureStore`.

    Args:
        marks: prefix of the done marks and the ledger: "" for those of the whole store, else those of an extension.
    """

    def __init__(self, location: Location, manifest: Manifest, samples: SampleTable, *, writable: bool, marks: str = ""):
        self.location = location
        self.manifest = manifest
        self.samples = samples
        self.writable = writable
        self.marks = marks
        self._forget_handles()

    def _forget_handles(self) -> None:
        self._pid = os.getpid()
        self._group: zarr.Group | None = None
        self._arrays: dict[str, ShardedArray] = {}
        self._pieces: dict[str, tuple[ArraySpec, dict[str, ArraySpec]]] = {}
        self._is_writing = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("location", "manifest", "samples", "writable", "marks")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_handles()

    def __len__(self) -> int:
        return len(self.samples)

    @classmethod
    def open(cls, path: str | os.PathLike[str], writable: bool = False) -> Self:
        """The store at `path`, its signature and sample table checked.

        Raises:
            CacheError: missing, foreign, damaged, of a newer schema, or a staged copy that is to be written.
        """
        location = Location.parse(path)
        if writable and (origin := Origin.of(location)) is not None:
            raise origin.read_only()
        manifest = read_manifest(location)
        with explained("opening the store", location):
            root = zarr.open_group(location.zarr_store(read_only=True), mode="r", zarr_format=3, use_consolidated=False)
        return cls(location, manifest, read_samples(root, location, manifest), writable=writable)

    @property
    def source(self) -> Location:
        """Where the store is; of a staged copy, where the store is that it was made of."""
        origin = Origin.of(self.location)
        return self.location if origin is None else origin.source

    # Progress

    @property
    def shards(self) -> list[range]:
        """Sample indices of each shard."""
        size = self.manifest.samples_per_shard
        return [range(start, min(start + size, len(self))) for start in range(0, len(self), size)]

    def done(self) -> NDArray[np.bool_]:
        """Which shards are complete [n_shards]."""
        return read_small(self.root, f"{self.marks}done", self.location)[0]

    def pending(self) -> list[int]:
        """Numbers of the shards that are not complete."""
        return np.flatnonzero(~self.done()).tolist()

    def ledger(self) -> dict[str, float]:
        """Sums over the complete shards, by field."""
        values = read_small(self.root, f"{self.marks}ledger/values", self.location)[0][self.done()]
        return dict(zip(LEDGER_FIELDS, values.sum(axis=0).tolist(), strict=True))

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

    # Reading

    def read_constants(self, prefix: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
        """What `write_constants` wrote; None where it was never written or not to the end.

        Raises:
            CacheError: the arrays do not match their digest.
        """
        with explained(f"reading {prefix}", self.location):
            return constants.read(self.root, prefix, self.location)

    def read(self, key: str, indices: NDArray[np.integer] | None = None, verify: Verify = True) -> NDArray[Any]:
        """Samples of one array, with all that continues it, straight from the shard files.

        Args:
            key: as in the manifest.
            indices: None for all, [n, *shape]; sample numbers [k], giving [k, *shape]; or chunk coordinates [k, 1 + chunk_dims]
                ((sample, view) of an embedding), giving [k, *chunk_shape].
            verify: True compares the crc32c of each chunk that this process reads for the first time from the open store (at a
                URL, of each chunk that arrives), "always" of every chunk, from files opened anew, False of none.

        Raises:
            CacheError: a chunk was never written, or is damaged; names shard file and sample.
            IndexError: an index out of range.
        """
        whole, pieces = self._whole(key)
        numbers, shape = chunk_numbers(key, whole, len(self), indices)
        out, rows = room(len(numbers), whole)
        if len(pieces) == 1:
            self._fill(key, numbers, rows, verify)
            return out.reshape(shape)
        samples, places = np.divmod(numbers, whole.chunks_per_sample)
        for name, spec in pieces.items():
            count = spec.chunks_per_sample
            local = places - spec.first * (count // spec.shape[0])
            here = np.flatnonzero((local >= 0) & (local < count))
            self._fill(name, samples[here] * count + local[here], [rows[row] for row in here.tolist()], verify)
        return out.reshape(shape)

    def _fill(self, key: str, chunks: NDArray[np.int64], rows: Sequence[Bytes] | Bytes, verify: Verify) -> None:
        with explained(f"reading {key}", self.location):
            fault = next(self.sharded(key).fill(chunks, rows, verify), None)
        if fault is not None:
            raise self._unreadable(key, fault)

    def _whole(self, key: str) -> tuple[ArraySpec, dict[str, ArraySpec]]:
        """An array as it is read, and what it is made of."""
        if key not in self._pieces:
            spec = self._spec(key)
            self._pieces[key] = self.manifest.whole().get(key, spec), self.manifest.pieces(key)
        return self._pieces[key]

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
            remedy=self._remedy(fault.shard, unwritten),
        )

    def _remedy(self, shard: int, unwritten: bool) -> str:
        if (origin := Origin.of(self.location)) is not None:
            return f"delete that file, then it is fetched again from {origin.source}"
        return RESUME if unwritten and not self.done()[shard] else f"polyp-difom cache verify {self.location}"

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
            origin = Origin.of(self.location)
            arrive = None if origin is None else partial(origin.fetch, self, key)
            self._arrays[key] = ShardedArray(self.location, key, self._spec(key), self.manifest.samples_per_shard, arrive)
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
