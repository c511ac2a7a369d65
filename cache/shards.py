"""Reads chunks straight from Zarr v3 shard files: memory-mapped where they are local, by byte ranges where they are remote.

A shard is its encoded chunks and then an index: (offset, length) as little-endian uint64 for each chunk in C order, 2**64 - 1
where a chunk was never written, and a crc32c of the index (Zarr v3 specification, codec `sharding_indexed`). Zarr's own read
path is one to two orders of magnitude slower for shuffled batches, and returns fill values for what was never written.

A process that maps a shard checks each chunk when it first reads it and trusts it from then on; bytes that are fetched from
elsewhere are other bytes each time, and are checked each time.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import google_crc32c
import numcodecs
import numpy as np
from numpy.typing import NDArray

from polyp_difom.cache.location import Location
from polyp_difom.cache.manifest import ArraySpec

Bytes: TypeAlias = NDArray[np.uint8]
Span: TypeAlias = tuple[int, int, int]
"""Number of a shard, first byte, and the byte after the last."""
Verify: TypeAlias = bool | Literal["always"]
"""Which chunks a read holds against their crc32c: those never read before (True), all, from files opened anew, or none."""

NEVER = 2**64 - 1
OPEN_SHARDS = 256
"""Shards mapped at once: each costs a file descriptor, of which a process often has 1,024."""
UNWRITTEN = "never written"
GAP_BYTES = 256 * 2**10
RUN_BYTES = 16 * 2**20
BATCH_BYTES = 128 * 2**20
"""Of a remote shard: bytes that are read for nothing rather than ask again, most of one request, most asked for at once."""


@dataclass(frozen=True)
class ChunkFault:
    """A chunk that cannot be read.

    Args:
        shard: number of the shard.
        chunk: number of the chunk, counted over the whole array.
        reason: what is wrong with it.
        whole_shard: no chunk of the shard can be read.
    """

    shard: int
    chunk: int
    reason: str
    whole_shard: bool = False


class _ShardProblem(Exception):
    """Carries the reason why a whole shard cannot be read."""


@dataclass(frozen=True)
class _OpenShard:
    """A shard's checked index [chunks_per_shard, 2] of (offset, length); where it is local also its mapped file, and a bit for
    each chunk that was sound when it was read.
    """

    index: NDArray[np.uint64]
    mapped: Bytes | None
    sound: bytearray

    def is_sound(self, chunk: int) -> bool:
        return bool(self.sound[chunk >> 3] & 1 << (chunk & 7))

    def mark_sound(self, chunk: int) -> None:
        self.sound[chunk >> 3] |= 1 << (chunk & 7)


class ShardedArray:
    """The chunks of one array, numbered sample by sample, and within a sample in C order.

    Opened lazily; belongs to the process that made it.

    Args:
        arrive: called with the numbers of the shards that are about to be read; brings those that are elsewhere.
    """

    def __init__(
        self,
        location: Location,
        key: str,
        spec: ArraySpec,
        samples_per_shard: int,
        arrive: Callable[[Sequence[int]], None] | None = None,
    ):
        self._arrive = arrive
        self._location = location
        self._key = key
        self._spec = spec
        self.chunks_per_shard = samples_per_shard * spec.chunks_per_sample
        self._index_bytes = 16 * self.chunks_per_shard + 4
        self._blosc = numcodecs.Blosc()
        self._open = lru_cache(maxsize=None if location.path is None else OPEN_SHARDS)(self._open_anew)
        self._sound: dict[int, tuple[int, bytearray]] = {}
        """Of each local shard, which file it was when it was last mapped, and its bits; they outlive the map."""

    def file(self, shard: int) -> str:
        """Key of the file that holds a shard."""
        return shard_key(self._key, shard, 1 + len(self._spec.shape))

    def read(self, chunks: NDArray[np.int64], verify: Verify) -> tuple[NDArray[Any], Iterator[ChunkFault]]:
        """Room for the chunks, [k, *chunk_shape], and an iterator that fills it and yields what could not be read.

        Args:
            chunks: numbers [k].
            verify: the crc32c of which chunks to compare; that of an index always is when its shard is opened.
        """
        out, rows = room(len(chunks), self._spec)
        return out, self.fill(chunks, rows, verify)

    def fill(self, chunks: NDArray[np.int64], rows: Sequence[Bytes] | Bytes, verify: Verify) -> Iterator[ChunkFault]:
        """As `read`, into `rows`: `chunk_bytes` bytes for each of the chunks."""
        shards, local = np.divmod(chunks, self.chunks_per_shard)
        spans: list[Span] = []
        targets: list[int] = []
        numbers = np.unique(shards).tolist()
        if self._arrive is not None:
            self._arrive(numbers)
        for shard in numbers:
            here = np.flatnonzero(shards == shard)
            try:
                opened = self._open_anew(shard) if verify == "always" else self._open(shard)
            except _ShardProblem as problem:
                yield ChunkFault(shard, int(chunks[here[0]]), str(problem), whole_shard=True)
                continue
            wanted = local[here]
            places = zip(here.tolist(), wanted.tolist(), opened.index[wanted].tolist(), strict=True)
            for row, chunk, (offset, length) in places:
                reason = None
                if offset == NEVER:
                    reason = UNWRITTEN
                elif opened.mapped is None:
                    spans.append((shard, offset, offset + length))
                    targets.append(row)
                else:
                    check = verify == "always" or (verify and not opened.is_sound(chunk))
                    reason = self._decode(opened.mapped[offset : offset + length], length, rows[row], check)
                    if check and reason is None:
                        opened.mark_sound(chunk)
                    elif reason is not None:
                        self._distrust(shard)
                if reason is not None:
                    yield ChunkFault(shard, int(chunks[row]), reason)
        for number, raw in self._fetch(spans):
            row, (shard, start, stop) = targets[number], spans[number]
            if (reason := self._decode(raw, stop - start, rows[row], bool(verify))) is not None:
                yield ChunkFault(shard, int(chunks[row]), reason)

    def _distrust(self, shard: int) -> None:
        """Forgets what was sound in a shard that is damaged now, also in maps that were opened before."""
        self._sound.pop(shard, None)
        self._open.cache_clear()

    def _decode(self, raw: Bytes, wanted: int, row: NDArray[np.uint8], check: bool) -> str | None:
        """Writes the payload of one chunk of `wanted` bytes into `row`; the reason why not, if it cannot."""
        if len(raw) != wanted or (not self._spec.compressed and wanted != row.nbytes + 4):
            return f"{len(raw)} bytes instead of {wanted if self._spec.compressed else row.nbytes + 4}"
        payload = raw[:-4]
        if check and google_crc32c.value(payload) != int.from_bytes(raw[-4:].tobytes(), "little"):
            return "stored and computed crc32c differ"
        if not self._spec.compressed:
            row[:] = payload
            return None
        try:
            self._blosc.decode(payload, out=row)
        except (RuntimeError, ValueError) as error:
            return f"blosc: {error}"
        return None

    def _open_anew(self, shard: int) -> _OpenShard:
        mapped, sound = None, bytearray()
        try:
            if self._location.path is None:
                filesystem, root = self._location.filesystem()
                raw = filesystem.cat_file(f"{root}/{self.file(shard)}", start=-self._index_bytes)
            else:
                mapped, sound = self._map(shard)
                raw = mapped[-self._index_bytes :].tobytes()
        except FileNotFoundError as error:
            raise _ShardProblem(f"{UNWRITTEN} (no shard file)") from error
        if len(raw) != self._index_bytes:
            raise _ShardProblem("the shard file is cut short")
        if google_crc32c.value(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
            raise _ShardProblem("the shard's index is damaged, or its file cut short")
        return _OpenShard(np.frombuffer(raw[:-4], "<u8").reshape(-1, 2), mapped, sound)

    def _map(self, shard: int) -> tuple[Bytes, bytearray]:
        """A local shard's file, and the bits of its sound chunks: none where it is another file than it was."""
        with open(f"{self._location.text}/{self.file(shard)}", "rb") as stream:
            status = os.fstat(stream.fileno())
            if status.st_size < self._index_bytes:
                raise _ShardProblem("the shard file is cut short")
            mapped = np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        identity = hash((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
        known, sound = self._sound.get(shard, (None, bytearray()))
        if known != identity:
            sound = bytearray(-(-self.chunks_per_shard // 8))
            self._sound[shard] = identity, sound
        return mapped, sound

    def _fetch(self, spans: Sequence[Span]) -> Iterator[tuple[int, Bytes]]:
        """(number, bytes) of each span of remote shards, in any order; shorter than asked for where the file ends too early."""
        if not spans:
            return
        filesystem, root = self._location.filesystem()
        for batch in batched_runs(spans):
            places = [(f"{root}/{self.file(spans[run[0]][0])}", spans[run[0]][1], spans[run[-1]][2]) for run in batch]
            fetched = filesystem.cat_ranges(*map(list, zip(*places, strict=True)), on_error="raise")
            for run, (_, first, _), raw in zip(batch, places, fetched, strict=True):
                data = np.frombuffer(raw, np.uint8)
                yield from ((number, data[spans[number][1] - first : spans[number][2] - first]) for number in run)


def room(count: int, spec: ArraySpec) -> tuple[NDArray[Any], Bytes]:
    """Room for so many chunks of an array, [count, *chunk_shape], and the same as bytes [count, chunk_bytes]."""
    out = np.empty((count, *spec.chunk_shape), spec.dtype)
    return out, out.view(np.uint8).reshape(count, spec.chunk_bytes)


def batched_runs(spans: Sequence[Span]) -> Iterator[list[list[int]]]:
    """Batches of requests; a request is the numbers of spans that lie close together in one shard, by their place in it."""
    batch: list[list[int]] = []
    waiting = 0
    for number in sorted(range(len(spans)), key=lambda number: spans[number]):
        shard, start, stop = spans[number]
        if batch:
            opened, first, _ = spans[batch[-1][0]]
            end = spans[batch[-1][-1]][2]
            if shard == opened and start - end <= GAP_BYTES and stop - first <= RUN_BYTES:
                batch[-1].append(number)
                waiting += max(0, stop - end)
                continue
        if batch and waiting >= BATCH_BYTES:
            yield batch
            batch, waiting = [], 0
        batch.append([number])
        waiting += stop - start
    if batch:
        yield batch


def shard_key(key: str, shard: int, dims: int) -> str:
    """Key of a shard's file under Zarr's default chunk key encoding; only the first of `dims` dimensions is cut into shards."""
    return "/".join([key, "c", str(shard), *["0"] * (dims - 1)])


def chunk_numbers(
    key: str, spec: ArraySpec, n: int, indices: NDArray[np.integer] | None
) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Chunks that `indices` ask for, and the shape that the result takes.

    Args:
        key: of the array, for messages.
        spec: of the array.
        n: samples in the array.
        indices: None for all, sample numbers [k], or chunk coordinates [k, 1 + chunk_dims].

    Raises:
        IndexError: another shape, or an index out of range.
    """
    wanted = np.arange(n) if indices is None else np.asarray(indices, dtype=np.int64)
    grid = (n, *spec.shape[: spec.chunk_dims])
    if wanted.ndim == 1:
        limits, per_index, shape = grid[:1], spec.chunks_per_sample, spec.shape
    elif wanted.ndim == 2 and wanted.shape[1] == len(grid):
        limits, per_index, shape = grid, 1, spec.chunk_shape
    else:
        raise IndexError(f"indices of {key!r} must be [k] samples or [k, {len(grid)}] chunk coordinates, got {wanted.shape}")
    columns = wanted.reshape(len(wanted), -1) if len(wanted) else wanted.reshape(0, len(limits))
    if ((columns < 0) | (columns >= limits)).any():
        raise IndexError(f"indices of {key!r} must lie in 0 .. {tuple(limit - 1 for limit in limits)}")
    first = np.asarray(np.ravel_multi_index(tuple(columns.T), limits), dtype=np.int64) * per_index
    return (first[:, None] + np.arange(per_index)).reshape(-1), (len(wanted), *shape)
