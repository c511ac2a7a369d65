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

from polyp_difom.cache.errors import DataError
from polyp_difom.pipeline.data.frames import binarize, pixel_digest, read_image, read_mask_values
from polyp_difom.pipeline.data.layouts import detect_layout, find_pairs
from polyp_difom.pipeline.data.pairing import Pair
from polyp_difom.pipeline.data.sources import Source
from polyp_difom.pipeline.data.splitting import SPLITS, assign_splits
from polyp_difom.pipeline.data.twins import Looks, Twin, closest_twins, groups, look, stacked, thumbnail, twins_within

QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}


@dataclass(frozen=True)
class FileError:
    """One file that cannot be used, and why."""

    id: str
    path: str
    message: str


@dataclass(frozen=True)
class Comparison:
    """Another folder's frames that this set's frames resemble.

    Attributes:
        root: that folder.
        frames: how many frames it holds.
        twins: each frame of this set that has a twin there, with the closest.
    """

    root: str
    frames: int
    twins: list[Twin]


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
        twins: every pair of frames that are identical or whose thumbnails correlate above 0.95, mirrored or not.
        twin_groups: frames that those pairs link, largest group first.
        near_twins: each test frame that has a twin outside test, with the closest such frame.
        validation_twins: likewise each validation frame that has a twin in train.
        against: the same for the frames of other folders.
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
    twins: list[Twin]
    twin_groups: list[list[str]]
    near_twins: list[Twin]
    validation_twins: list[Twin]
    against: list[Comparison]


def audit(
    root: Path | str,
    layout: str | None = None,
    policy: str = "auto",
    progress: Callable[[Sequence[Pair]], Iterable[Pair]] = iter,
    against: Sequence[Source] = (),
) -> AuditReport:
    """Reads every frame and mask of a data set and reports what it finds; damaged files are collected, not raised.

    Args:
        root: the data set's folder.
        layout: as in `find_pairs`.
        policy: as in `assign_splits`; leaks are judged by this split.
        progress: wraps each iteration over pairs, for a progress bar.
        against: other folders, say those that a model was trained on, whose frames to look for in this one.

    Raises:
        DataError: frames and masks do not pair, the split does not fit them, or a picture of the other folders cannot be read.
    """
    layout = layout or detect_layout(root)
    pairs, reason = assign_splits(find_pairs(root, layout), policy)
    elsewhere = [find_pairs(source.root, source.layout) for source in against]
    seen = _Findings()
    for pair in progress(pairs):
        seen.inspect(pair)
    split_of = {pair.id: str(pair.split) for pair in pairs}
    looks = seen.looks()
    in_split = {split: looks.only([split_of[name] == split for name in looks.ids]) for split in SPLITS}
    twins = twins_within(looks)
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
        twins=twins,
        twin_groups=groups(twins),
        near_twins=closest_twins(in_split["test"], looks.only([split_of[name] != "test" for name in looks.ids])),
        validation_twins=closest_twins(in_split["val"], in_split["train"]),
        against=[
            Comparison(str(source.root), len(others), closest_twins(looks, look(progress(others))))
            for source, others in zip(against, elsewhere, strict=True)
        ],
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
        self.thumbnails[pair.id] = thumbnail(image)

    def _note_mask(self, pair: Pair, foreground: NDArray[np.bool_]) -> None:
        if foreground.any():
            self.lesion_shares.append(float(foreground.mean()))
        else:
            self.empty_masks.append(pair.id)

    def looks(self) -> Looks:
        """All readable frames, in their order."""
        digests = {name: digest for digest, names in self.by_pixels.items() for name in names}
        ids = list(self.thumbnails)
        return Looks(ids, [digests[name] for name in ids], stacked(list(self.thumbnails.values())))


def _range(values: list[int]) -> dict[str, float]:
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)} if values else {}


def _quantiles(values: list[float]) -> dict[str, float]:
    return {name: float(np.quantile(values, at)) for name, at in QUANTILES.items()} if values else {}
