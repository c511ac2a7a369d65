"""Damaged shards made whole: teachers' arrays from the store's own frames, everything else by `extract`."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polyp_difom.cache import extension, spare, sums
from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.inspection import LEDGERS, Damage, shard_damages
from polyp_difom.cache.location import Location
from polyp_difom.cache.mending import drop_row, record_anew, rewrite, salvage, settle_mark
from polyp_difom.cache.skeleton import COPY
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.device import keep_freed_memory, pick_device, pick_precision
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.recompute import ALIKE, LiveTeacher, teacher_arrays, weights_of
from polyp_difom.pipeline.schema import IMAGE, MASK
from polyp_difom.pipeline.teachers.protocol import OWN_WEIGHTS


@dataclass(frozen=True)
class Mended:
    """One array's shard that was made whole.

    Attributes:
        key, shard: which.
        chunks: how many (sample, view) chunks were computed again.
        intact, same: chunks that were sound, and how many of them the live teacher gave again bit for bit.
    """

    key: str
    shard: int
    chunks: int
    intact: int
    same: int


@dataclass(frozen=True)
class Repair:
    """What was mended, and the shards whose frames are lost: marked as pending, for `command` to make again.

    Attributes:
        records: rows of the ledger, done marks, and the copy of the metadata, that were put in order.
    """

    mended: list[Mended]
    records: list[str]
    pending: list[int]
    command: str | None


def repair(
    path: str,
    damages: Sequence[Damage],
    *,
    weights: Mapping[str, str] | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Repair:
    """Mend what `FeatureStore.verify` found.

    Where a shard's frames are sound, its teachers run again on them and only damaged chunks are replaced. Where frames or
    masks are damaged, the shard is marked as pending. Damaged metadata is to be put back first, by `restore_metadata`.

    Args:
        path: of the store.
        weights: by teacher, where `extract` was told some.

    Raises:
        CacheError: metadata or constants are damaged, another writer is at work, the teacher is not the one that made the
            store, or what it says now is not what the shard's sound chunks hold.
        MissingDependencyError, UsageError: a teacher that cannot be loaded.
    """
    for damage in damages:
        if damage.shard is None and damage.key != COPY:
            raise CacheError(
                f"{damage.key} cannot be mended", where=path, got=f"{damage.reason}, and no sound copy is kept",
                remedy="run extract into another --cache",
            )  # fmt: skip
    progress = progress or Progress()
    keep_freed_memory()
    store = FeatureStore.open(path, writable=True)
    given = weights_of(store, weights or {})
    lost = sorted({damage.shard for damage in damages if damage.key in (IMAGE, MASK) and damage.shard is not None})
    work = _of_teachers(store, [damage for damage in damages if damage.shard not in lost])
    place = pick_device(device)
    pick_precision(place, store.manifest.precision)
    mended = []
    with store.writing(), progress.task("mending", sum(map(len, work.values()))) as advance:
        for shard in lost:
            store.mark_pending(shard)
        for entry in store.manifest.teachers:
            if entry.name not in work:
                continue
            live = LiveTeacher(store, entry, given.get(entry.name), place, progress)
            for shard in sorted({number for number, _ in work[entry.name]}):
                fresh = live.arrays(np.array(store.shards[shard]))
                for key in sorted(key for number, key in work[entry.name] if number == shard):
                    mended.append(_mend(store, key, shard, fresh[key]))
                    advance(1)
        records, undone = _mend_records(store, [damage for damage in damages if damage.shard not in lost])
    _require_mended(path, mended)
    pending = sorted({*lost, *undone})
    return Repair(mended, records, pending, extract_command(store) if pending else None)


def _of_teachers(store: FeatureStore, damages: Sequence[Damage]) -> dict[str, set[tuple[int, str]]]:
    """Damaged (shard, key) of each teacher's own arrays, by the teacher's name."""
    owners = {key: entry.name for entry in store.manifest.teachers for key in teacher_arrays(store, entry)}
    work: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for damage in damages:
        if damage.shard is not None and damage.key in owners:
            work[owners[damage.key]].add((damage.shard, damage.key))
    return work


def restore_metadata(path: str) -> list[str]:
    """Puts the store's small files back as they were written, byte for byte, also where it cannot be opened without them.

    Returns:
        The files that were put back; the copy itself is not looked at where it is damaged, see `FeatureStore.verify`.

    Raises:
        CacheError: a writer is at work on the store, or the disk refuses.
    """
    location = Location.parse(path)
    try:
        spare.load(location)
    except CacheError:
        return []
    return spare.restore(location)


def _mend_records(store: FeatureStore, damages: Sequence[Damage]) -> tuple[list[str], list[int]]:
    """What was put in order besides chunks, and the shards that are not done after all."""
    said, undone = [], []
    for damage in damages:
        if damage.key == COPY:
            store.location.delete(COPY)
            spare.add(store.location, store.manifest, extension.sealed_ids(store.root))
            said.append(f"{COPY}: written anew")
        elif damage.key in LEDGERS and damage.shard is not None:
            drop_row(store, damage.key, damage.shard)
            said.append(f"{damage.key}, shard {damage.shard}: removed, what the shard cost is not known")
        elif damage.key.endswith(sums.KEY) and damage.shard is not None:
            record_anew(store, damage.key, damage.shard)
            said.append(f"{damage.key}, shard {damage.shard}: written anew from the shard, whose checksums hold")
        elif damage.key == "done" and damage.shard is not None:
            if settle_mark(store, damage.shard):
                said.append(f"done, shard {damage.shard}: written anew, all of the shard is there")
            else:
                undone.append(damage.shard)
    return said, undone


def _mend(store: FeatureStore, key: str, shard: int, fresh: NDArray) -> Mended:
    values, lost = salvage(store, key, shard)
    fresh = fresh.reshape(values.shape)
    kept = np.flatnonzero(~lost)
    a, b = (part[kept].reshape(len(kept), fresh[0].size).astype(np.float64) for part in (values, fresh))
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    cosine = float(np.vdot(a, b) / norms) if norms else 1.0
    if cosine < ALIKE:
        raise CacheError(
            f"the live teacher does not say what {key} holds", where=store.location.file(store.sharded(key).file(shard)),
            got=f"cosine {cosine:.4f} with the shard's {len(kept)} sound chunks; nothing of it was changed",
            wanted=f"at least {ALIKE}", remedy="run extract into another --cache",
        )  # fmt: skip
    values[lost] = fresh[lost]
    rewrite(store, key, shard, values)
    return Mended(key, shard, int(lost.sum()), len(kept), int((a == b).all(1).sum()))


def _require_mended(path: str, mended: Sequence[Mended]) -> None:
    store = FeatureStore.open(path)
    for item in mended:
        for damage in shard_damages(store, item.key, item.shard):
            raise CacheError(
                f"{damage.key} is damaged again", where=path, got=f"sample {damage.sample}: {damage.reason}",
                remedy="check the disk and the memory of this machine",
            )  # fmt: skip


def extract_command(store: FeatureStore) -> str:
    """The command that made the store, as far as its manifest tells: folders and weights are left to fill in."""
    manifest = store.manifest
    sources = [part for entry in manifest.datasets for part in ("--data", f"{entry.layout}=FOLDER-OF-{entry.name.upper()}")]
    weights = [
        part
        for entry in manifest.teachers
        if entry.contamination == OWN_WEIGHTS or entry.name.startswith("run:")
        for part in ("--weights", f"{entry.name}=PATH")
    ]
    sides = [part for entry in manifest.teachers for part in ("--input-size", f"{entry.name}={entry.input_size}")]
    policy = "FILE.csv" if manifest.split.policy.startswith("csv:") else manifest.split.policy
    options: dict[str, object] = {
        "--teachers": ",".join(entry.name for entry in manifest.teachers), "--cache": store.location,
        "--size": manifest.frame_size, "--views": len(manifest.views), "--limit": len(store),
        "--scales": ",".join(manifest.scales), "--channels": manifest.basis.channels, "--spectra": manifest.spectra,
        "--dtype": schema.map_type(manifest), "--basis": manifest.basis.kind,
        "--basis-frames": manifest.basis.frames, "--split-by": policy, "--val-fraction": manifest.split.val_fraction,
        "--split-seed": manifest.split.seed, "--precision": manifest.precision,
    }  # fmt: skip
    shaping = [str(part) for row in options.items() for part in row]
    return shlex.join(["polyp-difom", "extract", *sources, *weights, *sides, *shaping])
