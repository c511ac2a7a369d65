"""What a data set really holds: damaged files, odd masks, twins, and test frames that leak into training.

Shapes: n frames.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polyp_difom.cache.errors import DataError
from polyp_difom.pipeline.data.frames import binarize, pixel_digest, read_image, read_mask_values
from polyp_difom.pipeline.data.layouts import detect_layout, find_pairs
from polyp_difom.pipeline.data.pairing import Pair
from polyp_difom.pipeline.data.splitting import SPLITS, assign_splits

THUMBNAIL = 32  # side, pixels
TWIN_CORRELATION = 0.95
QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}


@dataclass(frozen=True)
class FileError:
    """One file that cannot be used, and why."""

    id: str
    path: str
    message: str


@dataclass(frozen=True)
class NearTwin:
    """A test frame and the frame outside test that it resembles most."""

    test: str
    other: str
    correlation: float


@dataclass(frozen=True)
class AuditReport:
    """Findings on one data set; `dataclasses.asdict` gives plain JSON types.

    Attributes:
        root: the folder.
        layout: name of the layout it was read as.
        split: which split was taken and why, one sentence.
        frames: pairs found, damaged ones included.
        per_split: frames by split.
        height: min, median and max of the readable images, pixels; empty where none is readable.
        width: likewise.
        lesion_share: quantiles of the lesion's share of the frame, over frames with a lesion.
        empty_masks: ids of frames without a lesion.
        non_binary_masks: number of mask files with values other than 0 and 255.
        errors: every file that cannot be used.
        identical: groups of ids whose decoded pixels are equal.
        leaks: those of them that lie in more than one split.
        near_twins: each test frame whose thumbnail correlates above 0.95 with one outside test, with the closest such frame.
    """

    root: str
    layout: str
    split: str
    frames: int
    per_split: dict[str, int]
    height: dict[str, float]
    width: dict[str, float]
    lesion_share: dict[str, float]
    empty_masks: list[str]
    non_binary_masks: int
    errors: list[FileError]
    identical: list[list[str]]
    leaks: list[list[str]]
    near_twins: list[NearTwin]


def audit(
    root: Path | str,
    layout: str | None = None,
    policy: str = "auto",
    progress: Callable[[Sequence[Pair]], Iterable[Pair]] = iter,
) -> AuditReport:
    """Reads every frame and mask of a data set and reports what it finds; damaged files are collected, not raised.

    Args:
        root: the data set's folder.
        layout: as in `find_pairs`.
        policy: as in `assign_splits`; leaks are judged by this split.
        progress: wraps the iteration over the pairs, for a progress bar.

    Raises:
        DataError: frames and masks do not pair, or the split does not fit them.
    """
    layout = layout or detect_layout(root)
    pairs, reason = assign_splits(find_pairs(root, layout), policy)
    seen = _Findings()
    for pair in progress(pairs):
        seen.inspect(pair)
    split_of = {pair.id: str(pair.split) for pair in pairs}
    identical = [ids for ids in seen.by_pixels.values() if len(ids) > 1]
    counts = Counter(split_of.values())
    return AuditReport(
        root=str(root),
        layout=layout,
        split=reason,
        frames=len(pairs),
        per_split={split: counts[split] for split in SPLITS},
        height=_range([height for height, _ in seen.sizes]),
        width=_range([width for _, width in seen.sizes]),
        lesion_share=_quantiles(seen.lesion_shares),
        empty_masks=seen.empty_masks,
        non_binary_masks=seen.non_binary_masks,
        errors=seen.errors,
        identical=identical,
        leaks=[ids for ids in identical if len({split_of[name] for name in ids}) > 1],
        near_twins=_near_twins(seen.thumbnails, split_of),
    )


@dataclass
class _Findings:
    """What one pass over the files gathers."""

    sizes: list[tuple[int, int]] = field(default_factory=list)
    lesion_shares: list[float] = field(default_factory=list)
    empty_masks: list[str] = field(default_factory=list)
    non_binary_masks: int = 0
    errors: list[FileError] = field(default_factory=list)
    by_pixels: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    thumbnails: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def inspect(self, pair: Pair) -> None:
        """Reads one pair; a file that cannot be used becomes an entry in `errors`."""
        hw = None
        try:
            image = read_image(pair.image)
            hw = (image.shape[0], image.shape[1])
            self._note_image(pair, image)
        except DataError as error:
            self.errors.append(FileError(pair.id, str(pair.image), str(error)))
        try:
            values = read_mask_values(pair.mask)
            self.non_binary_masks += bool(((values != 0) & (values != 255)).any())
            self._note_mask(pair, binarize(values, pair.mask, hw or values.shape))
        except DataError as error:
            self.errors.append(FileError(pair.id, str(pair.mask), str(error)))

    def _note_image(self, pair: Pair, image: NDArray[np.uint8]) -> None:
        self.sizes.append((image.shape[0], image.shape[1]))
        self.by_pixels[pixel_digest(image)].append(pair.id)
        grey = Image.fromarray(image).convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
        self.thumbnails[pair.id] = np.asarray(grey, dtype=np.float32).ravel()

    def _note_mask(self, pair: Pair, foreground: NDArray[np.bool_]) -> None:
        if foreground.any():
            self.lesion_shares.append(float(foreground.mean()))
        else:
            self.empty_masks.append(pair.id)


def _range(values: list[int]) -> dict[str, float]:
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)} if values else {}


def _quantiles(values: list[float]) -> dict[str, float]:
    return {name: float(np.quantile(values, at)) for name, at in QUANTILES.items()} if values else {}


def _near_twins(thumbnails: dict[str, NDArray[np.float32]], split_of: dict[str, str]) -> list[NearTwin]:
    """For each test frame its closest frame outside test, where their Pearson correlation is above 0.95."""
    test = [name for name in thumbnails if split_of[name] == "test"]
    others = [name for name in thumbnails if split_of[name] != "test"]
    if not test or not others:
        return []
    correlation = _standardized(thumbnails, test) @ _standardized(thumbnails, others).T  # [n test, n others]
    closest = correlation.argmax(axis=1)
    return [
        NearTwin(name, others[column], round(float(row[column]), 4))
        for name, row, column in zip(test, correlation, closest, strict=True)
        if row[column] > TWIN_CORRELATION
    ]


def _standardized(thumbnails: dict[str, NDArray[np.float32]], names: list[str]) -> NDArray[np.float32]:
    """Thumbnails of zero mean and unit length, float32 [n, 1024]; an even one stays zero and resembles nothing."""
    rows = np.stack([thumbnails[name] for name in names])
    rows = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
