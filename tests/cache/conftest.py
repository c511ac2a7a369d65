"""The toy store that the tests of the cache share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from polyp_difom.cache.manifest import ArraySpec, BasisEntry, DatasetEntry, Manifest, SplitEntry, TeacherEntry
from polyp_difom.cache.samples import SampleTable
from polyp_difom.cache.store import FeatureStore

N = 10
PER_SHARD = 4
VIEWS = 4
MAPS = "teachers/toy/s8/embedding"
IMAGE = "frames/image"
MASK = "frames/mask"
LEDGER = {"teacher_seconds": 2.0, "decode_seconds": 0.5, "attempts": 1.0}


class Toy:
    """A store of ten tiny samples in three shards, and ways to look at and break its files."""

    @staticmethod
    def make_samples(n: int = N) -> SampleTable:
        return SampleTable(
            ids=[f"frame_é{i}" for i in range(n)],
            sha256=[f"{i:064x}" for i in range(n)],
            mask_sha256=[f"{i + n:064x}" for i in range(n)],
            pixel_sha256=[f"{i + 2 * n:064x}" for i in range(n)],
            height=np.arange(n, dtype=np.int32) + 288,
            width=np.arange(n, dtype=np.int32) + 384,
            split=["val" if i % 5 == 4 else "train" for i in range(n)],
            dataset=["kvasir" if i < 7 else "clinicdb" for i in range(n)],
        )

    @staticmethod
    def make_manifest(samples: SampleTable, **changes: object) -> Manifest:
        arrays = {
            IMAGE: ArraySpec(shape=(3, 16, 16), dtype="uint8", chunk_dims=0, compressed=True),
            MASK: ArraySpec(shape=(16, 16), dtype="uint8", chunk_dims=0, compressed=True),
            MAPS: ArraySpec(shape=(VIEWS, 5, 3, 3), dtype="float16", chunk_dims=1, compressed=False),
        }
        teacher = TeacherEntry(
            name="toy",
            weights_digest="ab",
            input_size=64,
            preprocessing="min-max",
            stride=4,
            native_channels=8,
            channels=5,
            licence="Apache-2.0",
            contamination="unknown",
        )
        values = {
            "dataset_digest": samples.digest(),
            "datasets": (DatasetEntry(name="kvasir", layout="kvasir", frames=len(samples)),),
            "split": SplitEntry(policy="pranet", seed=0, val_fraction=0.1),
            "frame_size": 16,
            "views": ("identity", "hflip", "vflip", "rot180"),
            "scales": {"s8": 3},
            "teachers": (teacher,),
            "basis": BasisEntry(channels=5, frames=4, seed=0),
            "spectra": "full",
            "precision": "float32",
            "samples_per_shard": PER_SHARD,
            "arrays": arrays,
            "software": {"zarr": zarr.__version__},
        }
        return Manifest.model_validate(values | changes)

    @staticmethod
    def payload(rows: range) -> dict[str, np.ndarray]:
        """Deterministic arrays of the samples in `rows`; the masks of even samples are empty."""
        out: dict[str, list[np.ndarray]] = {IMAGE: [], MASK: [], MAPS: []}
        for sample in rows:
            rng = np.random.default_rng(sample)
            out[IMAGE].append(rng.integers(0, 256, (3, 16, 16), dtype=np.uint8))
            out[MASK].append(np.full((16, 16), 255 * (sample % 2), np.uint8))
            out[MAPS].append(rng.standard_normal((VIEWS, 5, 3, 3)).astype(np.float16))
        return {key: np.stack(values) for key, values in out.items()}

    @staticmethod
    def fill(store: FeatureStore, shards: list[int] | None = None) -> FeatureStore:
        with store.writing():
            for number in store.pending() if shards is None else shards:
                store.write_shard(number, Toy.payload(store.shards[number]), LEDGER)
        return store

    @staticmethod
    def create(path: Path | str, **changes: object) -> FeatureStore:
        samples = Toy.make_samples()
        return FeatureStore.create(path, Toy.make_manifest(samples, **changes), samples)

    @staticmethod
    def shard_file(store: FeatureStore, key: str, shard: int) -> Path:
        return Path(store.location.file(store.sharded(key).file(shard)))

    @staticmethod
    def files(folder: Path) -> dict[str, bytes]:
        return {
            str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file() and f.name != ".lock"
        }

    @staticmethod
    def chunk_position(path: Path, n_chunks: int, chunk: int) -> int:
        """Offset of a chunk, from the shard's own index."""
        index = np.frombuffer(path.read_bytes()[-(16 * n_chunks + 4) : -4], "<u8").reshape(-1, 2)
        return int(index[chunk, 0])

    @staticmethod
    def flip(path: Path, position: int) -> None:
        raw = bytearray(path.read_bytes())
        raw[position] ^= 1
        path.write_bytes(raw)


@pytest.fixture
def toy() -> type[Toy]:
    return Toy


@pytest.fixture
def store(toy: type[Toy], tmp_path: Path) -> FeatureStore:
    return toy.fill(toy.create(tmp_path / "toy.zarr"))
