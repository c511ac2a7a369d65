"""Every byte class of a store, hurt in every way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema

PER_SHARD = 8
NEVER_WRITTEN = 2**64 - 1
"""In an index, offset and length of a chunk that is not there."""
READ = ("shard", "chunk", "checksum", "index")
"""Classes of bytes that every reading of an array passes, and"""
ON_READ = ("flip", "truncate", "empty", "zero", "delete")
"""damage to them that it must tell: all that leaves no whole record of some other state."""


@dataclass(frozen=True)
class Fault:
    """Bytes of one file that are to be hurt.

    Args:
        kind: what is done to them.
        place: byte class, "/", and the file; for spans of a shard file also the chunk.
        file: path within the store.
        hurt: does it, given the store's folder.
        limit: most samples that need to be computed anew.
    """

    kind: str
    place: str
    file: str
    hurt: Callable[[Path], None]
    limit: int


def files_of(folder: Path) -> dict[str, bytes]:
    """All that the store consists of."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: raw for name, raw in found.items() if not name.startswith((".lock", ".claims"))}


def catalogue(sound: Path, older: Path, rng: np.random.Generator) -> Iterator[Fault]:
    """Every fault of a store, of which there is an older state too; bits and lengths are drawn."""
    store, files, before = FeatureStore.open(sound), files_of(sound), files_of(older)
    shards = {store.sharded(key).file(n): (key, n) for key in store.manifest.arrays for n in range(len(store.shards))}
    for file, raw in files.items():
        what = "shard" if file in shards else byte_class(file)
        limit = PER_SHARD if file in shards or what in ("done", "crc32c", "ledger/crc32c") else 0
        peers = [name for name, other in files.items() if name != file and len(other) == len(raw)]
        same = [name for name in peers if byte_class(name) == what] or peers
        for kind, change in changes(raw, rng, [files[name] for name in same], before.get(file)):
            yield Fault(kind, f"{what} {file}", file, writing(file, change), limit)
        yield Fault("delete", f"{what} {file}", file, deleting(file), limit)
        if file in shards:
            yield from spans(store, *shards[file], raw, rng)


def byte_class(file: str) -> str:
    """Of a file that is no shard."""
    if file.endswith("zarr.json"):
        return "zarr.json" if file != "zarr.json" else "manifest"
    node = file.partition("/c/")[0]
    return node.split("/")[-1] if node.startswith("extensions/") else node


def changes(raw: bytes, rng: np.random.Generator, peers: list[bytes], older: bytes | None) -> Iterator[tuple[str, bytes]]:
    """(kind, new content of a file)."""
    yield "flip", flipped(raw, int(rng.integers(8 * len(raw))))
    yield "truncate", raw[: int(rng.integers(1, len(raw)))]
    yield "empty", b""
    yield "extend", raw + rng.bytes(int(rng.integers(1, 64)))
    yield "zero", bytes(len(raw))
    if peers:
        yield "swap", peers[int(rng.integers(len(peers)))]
    if older is not None:
        yield "older", older


def spans(store: FeatureStore, key: str, shard: int, raw: bytes, rng: np.random.Generator) -> Iterator[Fault]:
    """Faults within a shard file: a chunk's data, its checksum, the index; and two chunks in each other's place."""
    file, per_sample = store.sharded(key).file(shard), store.manifest.arrays[key].chunks_per_sample
    start = len(raw) - 16 * store.sharded(key).chunks_per_shard - 4
    index = np.frombuffer(raw[start:-4], "<u8").reshape(-1, 2)
    held = len(store.shards[shard]) * per_sample
    frames = key in (schema.IMAGE, schema.MASK)
    one, two = sorted(rng.choice(held, 2, replace=False).tolist())
    limit = PER_SHARD if frames else 1
    offset, length = index[one].tolist()
    for what, first, last, most in (
        ("chunk", offset, offset + length - 4, limit), ("checksum", offset + length - 4, offset + length, limit),
        ("index", start, len(raw), PER_SHARD),
    ):  # fmt: skip
        bit = int(rng.integers(8 * first, 8 * last))
        yield Fault("flip", f"{what} {file} {one}", file, writing(file, flipped(raw, bit)), most)
        yield Fault("zero", f"{what} {file} {one}", file, writing(file, raw[:first] + bytes(last - first) + raw[last:]), most)
    pair = PER_SHARD if frames else 2
    exchanged, gone, short = index.copy(), index.copy(), index.copy()
    exchanged[[one, two]] = exchanged[[two, one]]
    gone[one], short[one, 1] = NEVER_WRITTEN, length - 8
    yield Fault("swap", f"chunk {file} {one} {two}", file, writing(file, indexed(raw, start, exchanged)), pair)
    yield Fault("delete", f"chunk {file} {one}", file, writing(file, indexed(raw, start, gone)), limit)
    yield Fault("truncate", f"chunk {file} {one}", file, writing(file, indexed(raw, start, short)), limit)
    first, second = (int(index[n].sum()) for n in (one, two))
    sums = raw[first - 4 : first], raw[second - 4 : second]
    crossed = bytearray(raw)
    crossed[first - 4 : first], crossed[second - 4 : second] = sums[1], sums[0]
    if sums[0] != sums[1]:
        yield Fault("swap", f"checksum {file} {one} {two}", file, writing(file, bytes(crossed)), pair)
    cut = short.copy()
    cut[one, 1] = length - 4
    yield Fault("delete", f"checksum {file} {one}", file, writing(file, indexed(raw, start, cut)), limit)
    cut[one, 1] = length - 2
    yield Fault("truncate", f"checksum {file} {one}", file, writing(file, indexed(raw, start, cut)), limit)
    yield Fault("truncate", f"index {file}", file, writing(file, raw[:-6]), PER_SHARD)
    yield Fault("delete", f"index {file}", file, writing(file, raw[:start]), PER_SHARD)
    turned = np.concatenate([np.roll(index[:held], 1, axis=0), index[held:]])
    yield Fault("swap", f"index {file}", file, writing(file, indexed(raw, start, turned)), PER_SHARD)


def indexed(raw: bytes, start: int, index: np.ndarray) -> bytes:
    """A shard file with another index, whose checksum is right."""
    body = index.astype("<u8").tobytes()
    return raw[:start] + body + google_crc32c.value(body).to_bytes(4, "little")


def flipped(raw: bytes, bit: int) -> bytes:
    """With one bit changed."""
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def writing(file: str, raw: bytes) -> Callable[[Path], None]:
    """Puts `raw` into a file of a store."""

    def write(folder: Path) -> None:
        (folder / file).write_bytes(raw)

    return write


def deleting(file: str) -> Callable[[Path], None]:
    """Removes a file of a store."""
    return lambda folder: (folder / file).unlink()
