"""`make load`: what opening and reading a store of 100,000 samples costs, 1,000 opens, and figures and a page of 10,000 frames."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
import zarr
from PIL import Image

from polyp_difom.cache import sums
from polyp_difom.cache.manifest import ArraySpec, BasisEntry, DatasetEntry, Manifest, SplitEntry
from polyp_difom.cache.samples import SampleTable
from polyp_difom.cache.store import FeatureStore

MAPS, IMAGE = "teachers/toy/s32/embedding", "frames/image"
PER_SHARD = 500


@dataclass(frozen=True)
class Load:
    """What was measured.

    Attributes:
        open_seconds: the least of three opens, of processor time, as all seconds here.
        first_rate, last_rate: samples a second in the first and in the last tenth of a shuffled pass, in batches of 64.
        grown: bytes of resident memory that the second half of the pass added, mapped file pages left out.
    """

    open_seconds: float
    first_rate: float
    last_rate: float
    grown: int


def make_store(path: Path, n: int) -> FeatureStore:
    """A complete store of `n` samples: maps [2, 4, 2, 2], frames of 8 pixels."""
    digests = [[f"{i:064x}" for i in range(start, start + n)] for start in (0, n, 2 * n)]
    samples = SampleTable(
        ids=[f"set/{i:06}" for i in range(n)], sha256=digests[0], mask_sha256=digests[1], pixel_sha256=digests[2],
        height=np.full(n, 8, np.int32), width=np.full(n, 8, np.int32), split=["train"] * n, dataset=["set"] * n,
    )  # fmt: skip
    arrays = {
        IMAGE: ArraySpec(shape=(3, 8, 8), dtype="uint8", chunk_dims=0, compressed=False),
        MAPS: ArraySpec(shape=(2, 4, 2, 2), dtype="float16", chunk_dims=1, compressed=False),
    }
    manifest = Manifest(
        dataset_digest=samples.digest(), datasets=(DatasetEntry(name="set", layout="pairs", frames=n),),
        split=SplitEntry(policy="auto", seed=0, val_fraction=0.1), frame_size=8, views=("identity", "hflip"), scales={"s32": 2},
        teachers=(), basis=BasisEntry(channels=4, frames=1, seed=0), spectra="low", precision="float32",
        samples_per_shard=PER_SHARD, arrays=arrays, software={},
    )  # fmt: skip
    store = FeatureStore.create(path, manifest, samples)
    rng = np.random.default_rng(0)
    with store.writing():
        for number, rows in enumerate(store.shards):
            image = rng.integers(0, 256, (len(rows), 3, 8, 8), dtype=np.uint8)
            maps = rng.standard_normal((len(rows), 2, 4, 2, 2)).astype(np.float16)
            for key, values in ((IMAGE, image), (MAPS, maps)):
                _write_shard(path / store.sharded(key).file(number), values.reshape(-1, *arrays[key].chunk_shape), store, key)
            sums.write(store.root, number, {IMAGE: image, MAPS: maps}, manifest)
        for name in ("done", "ledger/values"):
            array = store.root[name]
            assert isinstance(array, zarr.Array)
            array[...] = 1
    return store


def _write_shard(file: Path, chunks: np.ndarray, store: FeatureStore, key: str) -> None:
    """A shard file as zarr-python writes it, which takes a millisecond a sample."""
    parts = [raw + google_crc32c.value(raw).to_bytes(4, "little") for raw in (chunk.tobytes() for chunk in chunks)]
    index = np.full((store.sharded(key).chunks_per_shard, 2), 2**64 - 1, "<u8")
    index[: len(parts), 0] = np.cumsum([0, *map(len, parts[:-1])])
    index[: len(parts), 1] = [len(part) for part in parts]
    table = index.tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(parts) + table + google_crc32c.value(table).to_bytes(4, "little"))


def measure(path: Path) -> Load:
    """Opens the store, and reads all of it in a shuffled order."""
    seconds = [_timed_open(path) for _ in range(3)]
    store = FeatureStore.open(path)
    batches = np.array_split(np.random.default_rng(0).permutation(len(store)), max(20, len(store) // 64))
    times, sizes = [], []
    for batch in batches:
        began = time.process_time()
        store.read(MAPS, batch)
        store.read(IMAGE, batch)
        times.append(time.process_time() - began)
        sizes.append(private_bytes())
    tenth, half = len(batches) // 10, len(batches) // 2
    rates = [sum(map(len, batches[part])) / sum(times[part]) for part in (slice(tenth), slice(-tenth, None))]
    return Load(min(seconds), rates[0], rates[1], sizes[-1] - sizes[half])


def leaked_descriptors(path: Path, opens: int) -> int:
    """File descriptors that opening and reading many times leaves behind."""
    row = np.array([0])
    FeatureStore.open(path).read(MAPS, row)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(opens):
        FeatureStore.open(path).read(MAPS, row)
    gc.collect()
    return len(os.listdir("/proc/self/fd")) - before


def private_bytes() -> int:
    """Resident memory of this process that is not a file's pages."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _timed_open(path: Path) -> float:
    began = time.process_time()
    FeatureStore.open(path)
    return time.process_time() - began


def make_frames(folder: Path, n: int) -> list[str]:
    """`n` frames of 64 pixels, their masks and a map for each; the words of an evaluation of the maps, all figures into `folder`."""
    rng = np.random.default_rng(0)
    for name in ("set/images", "set/masks", "maps"):
        (folder / name).mkdir(parents=True)
    for number in range(n):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"set/images/{number:05}.png")
        Image.fromarray(255 * rng.integers(0, 2, (64, 64), dtype=np.uint8)).save(folder / f"set/masks/{number:05}.png")
        Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(folder / f"maps/{number:05}.png")
    given = ["--data", f"folder={folder}/set", "--split", "all", "--measures", "overlap"]
    return ["evaluate", f"{folder}/maps", *given, "-o", f"{folder}/figures", "-q"]


def peak_of(words: list[str]) -> int:
    """Most bytes that a command held in memory."""
    child = subprocess.Popen([sys.executable, "-m", "polyp_difom.cli", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, words
    return 1024 * usage.ru_maxrss


def peaks(folder: Path, n: int) -> tuple[int, int]:
    """Most bytes that `evaluate` and `report` held for `n` frames."""
    evaluating = make_frames(folder, n)
    return peak_of(evaluating), peak_of(["report", f"{folder}/figures", "-o", f"{folder}/report.html"])


def main() -> None:
    """Prints the figures."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_store(folder / "large.zarr", 100_000)
        found = measure(folder / "large.zarr")
        print(f"100,000 samples: opened in {found.open_seconds:.2f} s; {found.first_rate:,.0f} samples a second in the first tenth "
              f"of a shuffled pass, {found.last_rate:,.0f} in the last; memory grew by {found.grown / 2**20:.1f} MiB")  # fmt: skip
        make_store(folder / "small.zarr", 10)
        print(f"1,000 opens: {leaked_descriptors(folder / 'small.zarr', 1000)} file descriptors left behind")
        for n in (1_000, 10_000):
            evaluated, reported = peaks(folder / str(n), n)
            print(f"{n:,} frames: evaluate held {evaluated / 2**20:.0f} MiB at most, report {reported / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
