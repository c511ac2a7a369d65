"""How fast a store gives shuffled batches, against other ways to read the same bytes.

All ways take the same batches in turn, warm (from the page cache), and must give the same values. Our reader checks a chunk
when it first reads it, so its first pass over the samples and later ones are timed apart. Bars are ratios of later passes in
one run: ten times zarr-python's own path, twice tensorstore's, a third of a memory-mapped .npy file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from polyp_difom.cache.errors import CacheError, RunError, UsageError
from polyp_difom.cache.manifest import ArraySpec, BasisEntry, Manifest, SplitEntry
from polyp_difom.cache.samples import SampleTable
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.bench.latency import Latency, in_turn
from polyp_difom.pipeline.progress import Progress

BATCH = 16
OURS, FIRST = "polyp-difom", "polyp-difom, first pass"
ZARR, TENSORSTORE, NPY = "zarr-python", "tensorstore", "npy memmap"
BARS = {ZARR: 10.0, TENSORSTORE: 2.0, NPY: 1 / 3}
"""Least speed of the store's own reader, in later passes, over each other way."""
JUDGED_BYTES = 100_000
"""Least size of a sample that the bars are for: below it, calls cost more than bytes."""
KEY = "teachers/bench/s16/embedding"
DRAWN = {"248 KB": ((256, 22, 22), 512), "1 MB": ((256, 44, 44), 256)}
"""Drawn samples: shape of the float16 map, and how many."""
MOST_BYTES = 512 * 2**20
"""Of a given store, as many samples as this takes are read (and copied for the .npy file)."""
SECONDS = 8.0
"""Time for each way, at most."""

Read = Callable[[NDArray[np.int64]], NDArray]


@dataclass(frozen=True)
class Speed:
    """One way of reading one array.

    Attributes:
        array: which.
        sample_bytes: of one sample.
        way: name.
        samples_per_second: from the median batch.
        median_ms: of a batch of 16.
        ratio, first_ratio: speed of our reader over this one's, in later passes and in the first.
        bar: least `ratio` that is promised; None for our own, and for samples of less than `JUDGED_BYTES`.
    """

    array: str
    sample_bytes: int
    way: str
    samples_per_second: float
    median_ms: float
    ratio: float
    first_ratio: float
    bar: float | None

    @property
    def met(self) -> bool | None:
        """Whether the promise holds; None where there is none."""
        return None if self.bar is None else self.ratio >= self.bar


def bench_reader(path: str | None = None, *, repeats: int = 200, progress: Progress | None = None) -> list[Speed]:
    """Time every way on a store's uncompressed arrays of maps, or on drawn samples of 248 KB and 1 MB.

    Raises:
        CacheError, UsageError: a store that is not local or not complete.
        RunError: two ways give different values.
    """
    progress = progress or Progress()
    if find_spec("tensorstore") is None:
        progress.say("tensorstore is not installed: left out (pip install 'polyp-difom[tensorstore]')")
    with tempfile.TemporaryDirectory(prefix="polyp-difom-reader-") as folder:
        found = []
        for name, store, key in _subjects(path, Path(folder), progress):
            found += _bench(name, store, key, Path(folder), repeats, progress)
    return found


def _subjects(path: str | None, folder: Path, progress: Progress) -> Iterator[tuple[str, FeatureStore, str]]:
    if path is None:
        for name, (shape, count) in DRAWN.items():
            yield name, drawn_store(folder / f"{name.replace(' ', '')}.zarr", shape, count, progress), KEY
        return
    store = FeatureStore.open(path)
    store.require_complete()
    if store.location.path is None:
        raise UsageError("only a local store can be compared with other readers", where=path, wanted="a path")
    uncompressed = [key for key, spec in store.manifest.arrays.items() if not spec.compressed and "/embedding" in key]
    keys = [key for key in uncompressed if len(store.manifest.pieces(key)) == 1]  # others are no array that all readers know
    if not keys:
        raise CacheError("the store holds no uncompressed maps", where=path)
    yield from ((key, store, key) for key in keys)


def drawn_store(path: Path, shape: tuple[int, int, int], count: int, progress: Progress | None = None) -> FeatureStore:
    """A complete store of random float16 maps [count, 1, *shape], in shards of 64."""
    digests = [f"{number:064x}" for number in range(count)]
    side = np.full(count, 352, np.int32)
    samples = SampleTable(
        [f"drawn{number}" for number in range(count)],
        digests,
        digests,
        digests,
        side,
        side,
        ["train"] * count,
        ["drawn"] * count,
    )
    manifest = Manifest(
        dataset_digest=samples.digest(), datasets=(), split=SplitEntry(policy="none", seed=0, val_fraction=0.0), frame_size=352,
        views=("identity",), scales={"s16": shape[-1]}, teachers=(), basis=BasisEntry(channels=shape[0], frames=0, seed=0),
        spectra="full", precision="float32", samples_per_shard=64, software={},
        arrays={KEY: ArraySpec(shape=(1, *shape), dtype="float16", chunk_dims=1, compressed=False)},
    )  # fmt: skip
    store = FeatureStore.create(path, manifest, samples)
    rng = np.random.default_rng(0)
    with store.writing(), (progress or Progress()).task(f"drawing {path.stem}", len(store.shards)) as advance:
        for number, rows in enumerate(store.shards):
            values = rng.random((len(rows), 1, *shape), np.float32).astype(np.float16)
            store.write_shard(number, {KEY: values}, {"teacher_seconds": 0.0, "decode_seconds": 0.0, "attempts": 1.0})
            advance(1)
    return FeatureStore.open(path)


def _bench(name: str, store: FeatureStore, key: str, folder: Path, repeats: int, progress: Progress) -> list[Speed]:
    spec = store.manifest.arrays[key]
    sample_bytes = spec.chunks_per_sample * spec.chunk_bytes
    count = min(len(store), MOST_BYTES // sample_bytes)
    if count < BATCH:
        raise UsageError("too few samples to draw batches from", where=store.location, got=count, wanted=f"at least {BATCH}")
    rng = np.random.default_rng(0)
    batches = [rng.permutation(count)[:BATCH] for _ in range(64)]
    with ExitStack() as stack:
        copy = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder))) / "copy.npy"
        np.save(copy, store.read(key, np.arange(count)))
        ways = _ways(store, key, copy)
        first = {way: read(batches[0]) for way, read in ways.items()}
        for way, values in first.items():
            if not np.array_equal(values, first[OURS]):
                raise RunError(f"{way} gives other values than the store's own reader", where=store.location, got=key)
        for way in (OURS, NPY):  # every page mapped, and every chunk checked, once
            for start in range(0, count, BATCH):
                ways[way](np.arange(start, min(start + BATCH, count)))
        progress.say(f"{name}: {count} samples of {sample_bytes / 1000:,.0f} KB, batches of {BATCH}")
        calls = {FIRST: _first_passes(store, key, count), **{way: _turn(read, batches) for way, read in ways.items()}}
        taken = in_turn(calls, repeats=repeats, seconds=SECONDS, progress=progress)
    return [_speed(name, sample_bytes, way, taken) for way in calls]


def _turn(read: Read, batches: list[NDArray[np.int64]]) -> Callable[[], object]:
    coming = cycle(batches)
    return lambda: read(next(coming))


def _first_passes(store: FeatureStore, key: str, count: int) -> Callable[[], object]:
    """Reads the next batch that was not read before; where there is none left, from the store opened anew."""
    rng = np.random.default_rng(1)

    def passes() -> Iterator[NDArray]:
        while True:
            fresh, order = FeatureStore.open(store.location.text), rng.permutation(count)
            for start in range(0, count - BATCH + 1, BATCH):
                yield fresh.read(key, order[start : start + BATCH])

    coming = passes()
    return lambda: next(coming)


def _speed(name: str, sample_bytes: int, way: str, taken: dict[str, Latency]) -> Speed:
    median, (ratio, first) = taken[way].median_ms, (taken[ours].speedup_over(taken[way]) for ours in (OURS, FIRST))
    bar = BARS.get(way) if sample_bytes >= JUDGED_BYTES else None
    return Speed(name, sample_bytes, way, BATCH / median * 1e3, median, ratio, first, bar)


def _ways(store: FeatureStore, key: str, copy: Path) -> dict[str, Read]:
    """Every way to read rows [k] of an array as [k, *shape]; tensorstore only where it is installed."""
    array = zarr.open_group(store.location.text, mode="r")[key]
    assert isinstance(array, zarr.Array)  # noqa: S101
    mapped = np.load(copy, mmap_mode="r")
    ways: dict[str, Read] = {
        OURS: lambda rows: store.read(key, rows),
        ZARR: lambda rows: np.asarray(array.get_orthogonal_selection((rows,))),
    }
    if find_spec("tensorstore") is not None:
        import tensorstore

        kvstore = {"driver": "file", "path": store.location.file(key)}
        opened = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True, read=True).result()
        ways[TENSORSTORE] = lambda rows: opened.oindex[rows].read().result()
    ways[NPY] = lambda rows: np.asarray(mapped[rows])
    return ways
