"""Stage one before the first teacher runs: which frames, which arrays, how many bytes."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from polyp_difom.cache.errors import CacheError, DataError, UsageError
from polyp_difom.cache.manifest import BasisEntry, BasisKind, DatasetEntry, Manifest, Spectra, SplitEntry, predicted_bytes
from polyp_difom.cache.samples import SampleTable
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.data.frames import pixel_digest, read_frame, read_image, views
from polyp_difom.pipeline.data.pairing import Pair
from polyp_difom.pipeline.data.predicted import labelling_run
from polyp_difom.pipeline.data.sources import Gathered, Source, gather
from polyp_difom.pipeline.data.splitting import policy_name
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.runs import RunFolder
from polyp_difom.pipeline.teachers.guard import known_to, refuse_tested, require_frame_size, warn_of_validation
from polyp_difom.pipeline.teachers.protocol import Teacher

READERS = 4
"""Decoding threads; Pillow releases the interpreter while it decodes."""


class ExtractConfig(BaseModel):
    """Everything that stage one can be told; the store's signature covers all but batch size, device and parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: tuple[Source, ...] = Field(min_length=1)
    teachers: tuple[str, ...] = Field(min_length=1)
    cache: str
    weights: dict[str, str] = {}
    input_sizes: dict[str, int] = {}
    size: int = Field(352, gt=0)
    views: int = 4
    limit: int | None = None
    scales: tuple[str, ...] = Field(("s8", "s16", "s32"), min_length=1)
    channels: int = Field(64, gt=0)
    spectra: Spectra = "full"
    dtype: schema.MapType = "float16"
    basis: BasisKind = "phi-s"
    basis_frames: int = Field(256, gt=0)
    split_by: str = "auto"
    val_fraction: float = Field(0.1, gt=0, lt=1)
    seed: int = 0
    batch_size: int = Field(8, gt=0)
    device: str = "auto"
    precision: str = "auto"
    part_id: int | None = Field(None, ge=0)
    num_parts: int | None = Field(None, gt=0)


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        labellers_saw: id, pixel_sha256 and split of frames that networks have seen whose masks are among these.
    """

    pairs: list[Pair]
    samples: SampleTable
    manifest: Manifest
    labellers_saw: list[dict[str, str]]


def check_options(config: ExtractConfig) -> None:
    """Refuse what no store can be made of, before anything heavy is loaded."""
    if config.size % 32:
        nearest = max(32, round(config.size / 32) * 32)
        raise UsageError("the frame size must be a multiple of 32", where="--size", got=config.size, wanted=nearest)
    if len({schema.teacher_group(name) for name in config.teachers}) != len(config.teachers):
        raise UsageError("a teacher is named twice", where="--teachers", got=", ".join(config.teachers))
    for option, what, named in (("--weights", "weights", config.weights), ("--input-size", "input size", config.input_sizes)):
        if strangers := set(named) - set(config.teachers):
            raise UsageError(
                f"{what} for a teacher that is not asked for", where=option, got=", ".join(sorted(strangers)),
                wanted=f"one of: {', '.join(config.teachers)}",
            )  # fmt: skip
    views(config.views)
    schema.scale_cells(config.size, config.scales)


def gather_frames(config: ExtractConfig) -> Gathered:
    """The train and validation frames of all sources; test frames never enter a store."""
    found = gather(
        config.sources, {"train", "val"}, limit=config.limit, split_by=config.split_by,
        val_fraction=config.val_fraction, seed=config.seed,
    )  # fmt: skip
    if found.predicted and all(pair.predicted for pair in found.pairs):
        raise DataError(
            "no frames to validate on",
            got=found.policy,
            wanted="frames whose masks people drew",
            remedy="add a second --data DIR",
        )
    return found


def make_plan(config: ExtractConfig, found: Gathered, teachers: list[Teacher], precision: str, progress: Progress) -> Plan:
    """Decode every frame once (a bad file must stop the run before anything is written), then fix the manifest."""
    require_frame_size(teachers, config.size)
    samples = _read_samples(found.pairs, config.size, progress)
    labellers = _rows_of_labellers(found, progress)
    knowing = known_to(teachers)
    knowing |= {who: {row["pixel_sha256"]: row["split"] for row in rows} for who, rows in labellers.items()}
    _refuse_leaks(samples, [pair for pair in found.others if pair.split == "test"], knowing, progress)
    warn_of_validation(knowing, samples, progress)
    counts = Counter(samples.dataset)
    manifest = Manifest(
        dataset_digest=samples.digest(),
        datasets=tuple(
            DatasetEntry(name=name, layout=found.layouts[name], frames=frames) for name, frames in sorted(counts.items())
        ),
        split=SplitEntry(policy=policy_name(config.split_by), seed=config.seed, val_fraction=config.val_fraction),
        frame_size=config.size,
        views=views(config.views),
        scales=schema.scale_cells(config.size, config.scales),
        teachers=tuple(schema.teacher_entry(teacher, config) for teacher in teachers),
        basis=BasisEntry(
            channels=config.channels,
            frames=min(config.basis_frames, samples.split.count("train")),
            seed=config.seed,
            kind=config.basis,
        ),
        spectra=config.spectra,
        precision=precision,
        samples_per_shard=schema.samples_per_shard(config, teachers),
        arrays=schema.arrays(config, teachers),
        software={name: version(name) for name in ("polyp-difom", "torch", "zarr", "numpy", "pillow")},
    )
    return Plan(found.pairs, samples, manifest, [row for rows in labellers.values() for row in rows])


def _rows_of_labellers(found: Gathered, progress: Progress) -> dict[str, list[dict[str, str]]]:
    """What the networks have seen that predicted masks of these frames: rows of their runs' samples.csv, by who it is."""
    rows: dict[str, list[dict[str, str]]] = {}
    for name, root in found.predicted.items():
        held = labelling_run(root)
        if held is None or RunFolder(held[0]).config().get("signature") != held[1]:
            progress.say(f"warning: nothing is known of what the network learned from that predicted the masks of {name}")
        else:
            rows[f"the network that predicted the masks of {name!r}"] = RunFolder(held[0]).samples()
    return rows


def _refuse_leaks(samples: SampleTable, test: list[Pair], knowing: Mapping[str, Mapping[str, str]], progress: Progress) -> None:
    """Raises DataError where one picture, pixel for pixel, lies in two splits, or a teacher or labeller knows a test frame."""
    home: dict[str, tuple[str, str]] = {}
    for name, split, digest in zip(samples.ids, samples.split, samples.pixel_sha256, strict=True):
        _refuse_leak(home.setdefault(digest, (name, split)), (name, split))
    with ThreadPoolExecutor(READERS) as pool, progress.task("checking test frames for leaks", len(test)) as advance:
        for pair, digest in zip(test, pool.map(lambda pair: pixel_digest(read_image(pair.image)), test), strict=True):
            _refuse_leak(home.get(digest, (pair.id, "test")), (pair.id, "test"))
            refuse_tested(knowing, pair.id, digest)
            advance(1)


def _refuse_leak(first: tuple[str, str], second: tuple[str, str]) -> None:
    if first[1] != second[1]:
        raise DataError(
            "the same picture lies in two splits", where=f"{first[0]} and {second[0]}", got=f"{first[1]} and {second[1]}",
            wanted="one split", remedy="leave one of them out, or put both into one split with --split-by FILE.csv",
        )  # fmt: skip


def free_space(place: str | Path) -> tuple[Path, int]:
    """The nearest folder that exists on the way to a local place, and the bytes that are free there."""
    place = Path(place).absolute()
    parent = next(folder for folder in (place, *place.parents) if folder.exists())
    return parent, shutil.disk_usage(parent).free


def check_space(manifest: Manifest, n: int, cache: str, progress: Progress, resumes: bool | None = None) -> None:
    """Say how many bytes the manifest's arrays will take for `n` samples, and refuse to start what does not fit.

    Args:
        resumes: some of it may be there already, so nothing is refused; None: where the store exists.
    """
    needed = predicted_bytes(manifest, n)
    text = f"{n} frames x {len(manifest.views)} views: about {needed / 2**20:,.1f} MiB of frames and maps"
    if "://" in cache or (Path(cache).exists() if resumes is None else resumes):
        progress.say(text)
        return
    parent, free = free_space(cache)
    progress.say(f"{text}, {free / 2**20:,.0f} MiB free")
    if needed > free:
        raise CacheError(
            "the store will not fit on the disk", where=parent, got=f"{free / 2**20:,.0f} MiB free",
            wanted=f"{needed / 2**20:,.0f} MiB",
            remedy="use another --cache, fewer --views or --channels, --spectra none, or --dtype int8",
        )  # fmt: skip


def _read_samples(pairs: list[Pair], size: int, progress: Progress) -> SampleTable:
    with ThreadPoolExecutor(READERS) as pool, progress.task("checking frames", len(pairs)) as advance:
        rows = []
        for row in _in_order(pool, pairs, size):
            rows.append(row)
            advance(1)
    return SampleTable(
        ids=[pair.id for pair in pairs],
        sha256=[facts[0] for facts in rows],
        mask_sha256=[facts[1] for facts in rows],
        pixel_sha256=[facts[4] for facts in rows],
        height=np.array([facts[2] for facts in rows], np.int32),
        width=np.array([facts[3] for facts in rows], np.int32),
        split=[str(pair.split) for pair in pairs],
        dataset=[pair.dataset for pair in pairs],
    )


def _in_order(pool: ThreadPoolExecutor, pairs: list[Pair], size: int) -> Iterator[tuple[str, str, int, int, str]]:
    def facts(pair: Pair) -> tuple[str, str, int, int, str]:
        frame = read_frame(pair, size)
        return frame.sha256, frame.mask_sha256, frame.height, frame.width, frame.pixel_sha256

    try:
        yield from pool.map(facts, pairs)
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
