"""How far a trained student has come to see what the teachers see, on validation frames that it never learned from.

A checkpoint holds no heads, so nothing that was trained stands between the maps: linear CKA asks whether the two sides
arrange the frames' cells alike, and a least-squares map, fitted on train frames, how much of the teacher's map can be
read off the student's. A student without teachers is asked the same, which tells what was taught from what any student of
these frames comes to see. Shapes: b batch, c channels, h w grid.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor

from polyp_difom.cache.errors import DataError, RunError, UsageError, first_line
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.evaluation.similarity import Fit, LinearCKA, LinearProbe
from polyp_difom.pipeline.files import sha256_of, write_json
from polyp_difom.pipeline.json_files import parsed, read_text
from polyp_difom.pipeline.models.network import NetworkModel, load_run
from polyp_difom.pipeline.progress import Advance, Progress
from polyp_difom.pipeline.reads import of_store, require_kept
from polyp_difom.pipeline.runs import RunFolder
from polyp_difom.pipeline.spectra import split_bands
from polyp_difom.pipeline.students.protocol import Tap

PROBE_FRAMES = 256
"""Train frames, evenly spread, that the linear map is fitted on, where a store has more."""
BATCH = 16
BANDS = ("whole", "low", "high")
Frames = NDArray[np.int64]
"""Rows of a store."""
Pair = tuple[str, str, Tap]
"""(teacher, scale, tap), alike in stride."""


@dataclass(frozen=True)
class Row:
    """One tap of a student against one map of a teacher, or one band of both; None where it is not defined.

    Attributes:
        cka: linear CKA without bias, see `LinearCKA`.
        explained: share of the teacher's variance that a linear map of the tap explains; below 0 it is worse than the mean.
        cosine: of the teacher's channel vectors with those that the linear map predicts.
    """

    teacher: str
    scale: str
    tap: str
    band: str
    cka: float | None
    explained: float | None
    cosine: float | None

    @property
    def place(self) -> tuple[str, str, str, str]:
        """What the figures are of."""
        return self.teacher, self.scale, self.tap, self.band


@dataclass(frozen=True)
class Agreement:
    """All rows of a run's best checkpoint.

    Attributes:
        sha256: of the checkpoint.
        signature, cache: of the store.
        frames, probe_frames: how many validation frames were compared, how many train frames the map was fitted on.
    """

    sha256: str
    signature: str
    cache: str
    frames: int
    probe_frames: int
    rows: tuple[Row, ...]


def agree(folder: Path, cache: str | None = None, device: str = "auto", progress: Progress | None = None) -> Agreement:
    """Agreement of a run's best checkpoint with every teacher of a store, also written to the run's `agreement.json`.

    Args:
        cache: a store of the run's frame side; the one that it was trained on by default.

    Raises:
        RunError: no run, or no checkpoint. CacheError: a store that is missing, damaged, or not the run's own where none is
        named. UsageError: the store's frames are of another side, or none of its maps has the stride of a tap.
    """
    progress, run = progress or Progress(), RunFolder.open(folder)
    model = load_run(folder, device, "float32")
    store = _store(model, cache, run, progress)
    split = np.array(store.samples.split)
    train, val = np.flatnonzero(split == "train"), np.flatnonzero(split == "val")
    train = train[np.linspace(0, len(train) - 1, min(PROBE_FRAMES, len(train))).astype(int)]
    with progress.task(f"comparing {run.path.name} with the teachers", len(train) + len(val)) as advance:
        rows = _compared(model, store, train, val, advance)
    found = Agreement(sha256_of(run.best), store.manifest.signature(), str(store.source), len(val), len(train), rows)
    write_json(run.agreement, asdict(found))
    return found


@torch.inference_mode()
def _compared(model: NetworkModel, store: FeatureStore, train: Frames, val: Frames, advance: Advance) -> tuple[Row, ...]:
    pairs = _pairs(model.student.taps, store)
    probes = defaultdict[Pair, LinearProbe](LinearProbe)
    for pair, x, y in _maps(model, store, pairs, train, advance):
        probes[pair].add(_cells(x), _cells(y))
    heads = {pair: probe.solve() for pair, probe in probes.items()}
    alike = defaultdict[tuple[Pair, str], tuple[LinearCKA, Fit]](lambda: (LinearCKA(), Fit()))
    for pair, x, y in _maps(model, store, pairs, val, advance):
        for band, own, target, predicted in zip(BANDS, *map(_bands, (x, y, heads[pair](x))), strict=True):
            cka, fit = alike[pair, band]
            cka.add(_cells(own), _cells(target))
            fit.add(predicted, target)
    return tuple(
        Row(teacher, scale, tap.name, band, cka.value(), fit.explained(), fit.cosine())
        for ((teacher, scale, tap), band), (cka, fit) in alike.items()
    )


def _pairs(taps: tuple[Tap, ...], store: FeatureStore) -> list[Pair]:
    pairs = [
        (entry.name, scale, tap) for entry in store.manifest.teachers for scale in store.manifest.scales
        for tap in taps if tap.stride == schema.scale_stride(scale)
    ]  # fmt: skip
    if not pairs:
        raise UsageError(
            "no stored map has the stride of a student's tap", where=store.location, got=", ".join(store.manifest.scales),
            wanted=f"one of the strides {sorted({tap.stride for tap in taps})}",
        )  # fmt: skip
    return pairs


def read_agreement(path: Path) -> Agreement | None:
    """What `agree` left in a run folder's `agreement.json`; None where it did not.

    Raises:
        RunError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        return TypeAdapter(Agreement).validate_python(parsed(read_text(path)))
    except (OSError, ValueError) as error:
        raise RunError(
            "the agreement with the teachers cannot be read", where=path, got=first_line(error),
            remedy=f"polyp-difom agree {path.parent}",
        ) from error  # fmt: skip


def mean(rows: tuple[Row, ...], places: set[tuple[str, str, str, str]]) -> dict[str, float]:
    """Means of the figures over the whole maps among these places, as far as they are defined."""
    chosen = [row for row in rows if row.band == "whole" and row.place in places]
    values = {what: [v for row in chosen if (v := getattr(row, what)) is not None] for what in ("cka", "explained", "cosine")}
    return {what: sum(found) / len(found) for what, found in values.items() if found}


def _store(model: NetworkModel, cache: str | None, run: RunFolder, progress: Progress) -> FeatureStore:
    """The store that is asked for, or the run's own, fit to be compared with."""
    header = model.info.header
    store = FeatureStore.open(cache or header.get("cache", ""))
    store.require_complete()
    if cache is None:
        require_kept(
            "the store has changed since the run was trained", store.location, header, of_store(store.manifest),
            f"polyp-difom agree {run.path} --cache {store.location}, to compare with what it holds now",
        )  # fmt: skip
    if store.manifest.frame_size != header["frame_size"]:
        raise UsageError(
            "the store's frames are of another side than the student's", where=store.location,
            got=f"{store.manifest.frame_size} pixels", wanted=f"{header['frame_size']} pixels",
        )  # fmt: skip
    if "val" not in store.samples.split:
        raise DataError("the store has no val frames", where=store.location)
    seen = run.seen() if cache else {}
    digests = zip(store.samples.pixel_sha256, store.samples.split, strict=True)
    if learned := sum(split == "val" and seen.get(digest) == "train" for digest, split in digests):
        progress.say(f"warning: {run.path.name} has learned from {learned} of the store's validation frames")
    return store


def _maps(
    model: NetworkModel, store: FeatureStore, pairs: list[Pair], rows: Frames, advance: Advance
) -> Iterator[tuple[Pair, Tensor, Tensor]]:
    """Every pair's maps of the student [b, c, h, w] and the teacher [b, k, h, w], float32, a batch of frames at a time."""
    steps = schema.steps_of(store)
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        frames = torch.from_numpy(store.read(schema.IMAGE, batch)).to(model.device).float() / 255
        _, taps = model.student.features(frames.contiguous(memory_format=torch.channels_last))
        chunks = np.stack([batch, np.zeros_like(batch)], 1)
        for key in dict.fromkeys(schema.embedding_key(teacher, scale) for teacher, scale, _ in pairs):
            step = torch.from_numpy(np.asarray(steps.get(key, 1.0), np.float32)).to(model.device)
            target = torch.from_numpy(store.read(key, chunks)).to(model.device).float() * step
            for pair in pairs:
                if schema.embedding_key(pair[0], pair[1]) == key:
                    yield pair, taps[pair[2].name].float(), target
        advance(len(batch))


def _bands(maps: Tensor) -> tuple[Tensor, ...]:
    """The maps and their low and high bands, in the order of `BANDS`."""
    return maps, *split_bands(maps)


def _cells(maps: Tensor) -> Tensor:
    """Maps [b, c, h, w] as samples [b h w, c]."""
    return maps.movedim(1, -1).flatten(0, 2)
