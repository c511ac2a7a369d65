"""From rows to figures: summaries with intervals, paired differences between runs, and the per-image table on disk.

Every interval is a 95 % percentile bootstrap over the test images: it covers the choice of images, not the luck of training.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from polyp_difom.cache.errors import DataError
from polyp_difom.pipeline.files import write_csv
from polyp_difom.pipeline.scoring import PROTOCOLS, Case, ImageScore, Protocol, get_protocol, score_cases, score_image

__all__ = [
    "PROTOCOLS",
    "Case",
    "ImageScore",
    "PairedDifference",
    "Protocol",
    "SizeBand",
    "Summary",
    "get_protocol",
    "paired_difference",
    "read_scores_csv",
    "score_cases",
    "score_image",
    "summarise",
    "write_scores_csv",
]

# (name, from, to): share of the frame that the lesion covers, from <= share < to
SIZE_BANDS = (("small", 0.0, 0.05), ("medium", 0.05, 0.15), ("large", 0.15, float("inf")))
_RESAMPLES = 2000
_SEED = 0


@dataclass(frozen=True)
class SizeBand:
    """Mean Dice of the rows whose lesion is of one size (small < 5 %, medium 5-15 %, large from 15 % of the frame)."""

    name: str
    images: int
    mdice: float | None


@dataclass(frozen=True)
class Summary:
    """One run on one dataset under one protocol; `dice_interval` is the 95 % bootstrap interval of `mdice`."""

    protocol: str
    dataset: str
    images: int
    mdice: float
    miou: float
    precision: float
    recall: float
    mae: float
    dice_interval: tuple[float, float]
    dice_by_size: tuple[SizeBand, ...]


@dataclass(frozen=True)
class PairedDifference:
    """Dice of one run minus Dice of another on the same images.

    Attributes:
        mean: mean difference; positive means that the first run is better.
        interval: 95 % bootstrap interval of `mean`.
        improved: share of images on which the first run is strictly better.
    """

    images: int
    mean: float
    interval: tuple[float, float]
    improved: float

    @property
    def helped(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.interval[0] > 0

    @property
    def harmed(self) -> bool:
        """Whether the whole interval lies below zero."""
        return self.interval[1] < 0


def summarise(scores: Sequence[ImageScore], protocol: str, dataset: str) -> Summary:
    """Means over rows, with the bootstrap interval of mean Dice (2,000 resamples, fixed seed).

    Raises:
        UsageError: there is no such protocol.
        DataError: no rows, a row twice, or a row of another protocol or dataset.
    """
    get_protocol(protocol)
    _by_id(scores)
    for score in scores:
        if (score.protocol, score.dataset) != (protocol, dataset):
            raise DataError(
                "scores of different kinds cannot be averaged",
                where=score.id,
                got=f"{score.protocol} on {score.dataset}",
                wanted=f"{protocol} on {dataset}",
                remedy="summarise each dataset and protocol by itself",
            )
    dice = np.array([score.dice for score in scores])
    return Summary(
        protocol=protocol,
        dataset=dataset,
        images=sum(score.frames for score in scores),
        mdice=float(dice.mean()),
        miou=_mean(scores, "iou"),
        precision=_mean(scores, "precision"),
        recall=_mean(scores, "recall"),
        mae=_mean(scores, "mae"),
        dice_interval=_bootstrap(dice),
        dice_by_size=tuple(_band(scores, *band) for band in SIZE_BANDS),
    )


def paired_difference(a: Sequence[ImageScore], b: Sequence[ImageScore]) -> PairedDifference:
    """Dice of `a` minus Dice of `b`, image by image, whatever the order of the rows.

    Raises:
        DataError: the two do not hold exactly the same images under the same protocol, or a row stands twice in one of them.
    """
    first, second = _by_id(a), _by_id(b)
    if first.keys() != second.keys():
        lonely = sorted("/".join(key[1:]) for key in first.keys() ^ second.keys())
        raise DataError(
            "two runs can only be compared on the same images",
            where=", ".join(lonely[:3]) + (", ..." if len(lonely) > 3 else ""),
            got=f"{len(lonely)} images that only one of the runs has scored under this protocol",
            wanted="the same images and one protocol for both",
            remedy="evaluate both runs on the same data with the same protocol",
        )
    difference = np.array([first[key].dice - second[key].dice for key in sorted(first)])
    return PairedDifference(
        images=sum(score.frames for score in a),
        mean=float(difference.mean()),
        interval=_bootstrap(difference),
        improved=float((difference > 0).mean()),
    )


def write_scores_csv(path: Path, scores: Sequence[ImageScore]) -> None:
    """Write one row per score; floats keep every digit and the file appears whole or not at all."""
    write_csv(path, [field.name for field in fields(ImageScore)], [asdict(score) for score in scores])


def read_scores_csv(path: Path) -> list[ImageScore]:
    """Read what `write_scores_csv` wrote, bit for bit.

    Raises:
        DataError: no such file, other columns, or a cell that cannot be read.
    """
    columns = {"str": str, "int": int, "float": float}
    readers = {field.name: columns[str(field.type)] for field in fields(ImageScore)}
    remedy = "evaluate the run again"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            if reader.fieldnames != list(readers):
                raise DataError(
                    "not a table of scores", where=path, got=reader.fieldnames, wanted=", ".join(readers), remedy=remedy
                )
            return [ImageScore(**{name: read(row[name]) for name, read in readers.items()}) for row in reader]
    except FileNotFoundError as error:
        raise DataError("no table of scores", where=path, wanted="a file", remedy=remedy) from error
    except (csv.Error, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            "damaged table of scores", where=path, got=error, wanted="one number per cell", remedy=remedy
        ) from error


def _by_id(scores: Sequence[ImageScore]) -> dict[tuple[str, str, str], ImageScore]:
    if not scores:
        raise DataError("no images were scored", wanted="at least one score", remedy="check that the dataset is not empty")
    rows = {(score.protocol, score.dataset, score.id): score for score in scores}
    if len(rows) < len(scores):
        seen: set[str] = set()
        twice = next(score.id for score in scores if score.id in seen or seen.add(score.id))  # type: ignore[func-returns-value]
        raise DataError("an image was scored twice", where=twice, wanted="one score per image", remedy="evaluate the run again")
    return rows


def _mean(scores: Sequence[ImageScore], name: str) -> float:
    return float(np.mean([getattr(score, name) for score in scores]))


def _band(scores: Sequence[ImageScore], name: str, start: float, stop: float) -> SizeBand:
    dice = [score.dice for score in scores if start <= score.lesion_share < stop]
    return SizeBand(name, len(dice), float(np.mean(dice)) if dice else None)


def _bootstrap(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values` [n], from means over `_RESAMPLES` draws with replacement."""
    draws = np.random.default_rng(_SEED).integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
