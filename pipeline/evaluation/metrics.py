"""From rows to figures: a set's summary with intervals, and both on disk.

Every interval is a 95 % percentile bootstrap over the test images: it covers the choice of images, not the luck of training.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from polyp_difom.cache.errors import DataError, UsageError
from polyp_difom.pipeline.evaluation.calibration import Calibration, calibration
from polyp_difom.pipeline.evaluation.paired import bootstrap, by_id
from polyp_difom.pipeline.evaluation.scoring import Case, ImageScore, Measures, Scored, get_protocol, scored
from polyp_difom.pipeline.files import write_csv, write_text
from polyp_difom.pipeline.json_files import read_json

# (name, from, to): share of the frame that the lesion covers, from <= share < to
SIZE_BANDS = (("small", 0.0, 0.05), ("medium", 0.05, 0.15), ("large", 0.15, float("inf")))
_LARGEST = 1e6
"""Of any score: distances are in pixels."""


@dataclass(frozen=True)
class SizeBand:
    """Mean Dice of the rows whose lesion is of one size (small < 5 %, medium 5-15 %, large from 15 % of the frame)."""

    name: str
    images: int
    mdice: float | None


@dataclass(frozen=True)
class Summary:
    """One run on one dataset under one protocol: means over rows, None where not computed.

    Attributes:
        dice_interval: 95 % bootstrap interval of `mdice`.
        hd95: pixels of the masks' own sizes.
        e_mean, e_max: E-measure, mean over thresholds and highest value of the set's mean curve (as PraNet's code reports it).
        calibration: of the probabilities in a band around the lesions' borders.
    """

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
    hd95: float | None = None
    s_measure: float | None = None
    weighted_f: float | None = None
    e_mean: float | None = None
    e_max: float | None = None
    calibration: Calibration | None = None


@dataclass(frozen=True, eq=False)
class SetScores:
    """One scored data set, without its maps: a row, 256 numbers and 45 numbers a frame."""

    protocol: str
    dataset: str
    scored: tuple[Scored, ...]

    @property
    def rows(self) -> list[ImageScore]:
        """One a frame (or run of frames, under `pooled-6`), in the order of the cases."""
        return [found.row for found in self.scored]

    def summary(self, exclude: Collection[str] = ()) -> Summary:
        """The set's figures, computed without the frames whose ids are in `exclude` (ids of other sets' frames do not matter).

        Raises:
            UsageError: frames to leave out of `pooled-6`, whose rows hold six each: leave them out of the cases instead.
            DataError: no frames are left.
        """
        if exclude and get_protocol(self.protocol).group > 1:
            raise UsageError(
                f"{self.protocol} cannot leave frames out afterwards", where=self.dataset, got=f"{len(exclude)} frames",
                remedy="leave them out before scoring, or use --protocol per-image",
            )  # fmt: skip
        kept = [found for found in self.scored if found.row.id not in exclude]
        if not kept and self.scored:
            raise DataError(
                "no frames are left", where=self.dataset, got=f"all {len(self.scored)} excluded", wanted="at least one frame"
            )
        curves = [found.e_curve for found in kept if found.e_curve is not None]
        bins = [found.bins for found in kept if found.bins is not None]
        return replace(
            summarise([found.row for found in kept], self.protocol, self.dataset),
            e_max=float(np.mean(curves, axis=0).max()) if curves else None,
            calibration=calibration(bins) if bins else None,
        )


def score_set(protocol: str, dataset: str, cases: Iterable[Case], measures: Measures = "all") -> SetScores:
    """Score one data set, holding no more than one row's maps at a time.

    Args:
        protocol: name of a protocol.
        dataset: the name that every case carries.
        measures: "all", or "overlap" for Dice, IoU, precision, recall and MAE only.

    Raises:
        UsageError: no such protocol or measures. DataError: a case that cannot be scored.
    """
    return SetScores(protocol, dataset, tuple(scored(protocol, cases, measures)))


def summarise(scores: Sequence[ImageScore], protocol: str, dataset: str) -> Summary:
    """Means over rows, with the bootstrap interval of mean Dice (2,000 resamples, fixed seed).

    Max E-measure and calibration need more than rows: `SetScores.summary` has them.

    Raises:
        UsageError: there is no such protocol.
        DataError: no rows, a row twice, or a row of another protocol or dataset.
    """
    get_protocol(protocol)
    by_id(scores)
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
        miou=float(np.mean([score.iou for score in scores])),
        precision=float(np.mean([score.precision for score in scores])),
        recall=float(np.mean([score.recall for score in scores])),
        mae=float(np.mean([score.mae for score in scores])),
        dice_interval=bootstrap(dice),
        dice_by_size=tuple(_band(scores, *band) for band in SIZE_BANDS),
        hd95=_mean([score.hd95 for score in scores]),
        s_measure=_mean([score.s_measure for score in scores]),
        weighted_f=_mean([score.weighted_f for score in scores]),
        e_mean=_mean([score.e_mean for score in scores]),
    )


def write_scores_csv(path: Path, scores: Sequence[ImageScore]) -> None:
    """Write one row per score; floats keep every digit, None is an empty cell, and the file appears whole or not at all."""
    write_csv(path, [field.name for field in fields(ImageScore)], [asdict(score) for score in scores])


def read_scores_csv(path: Path) -> list[ImageScore]:
    """Read what `write_scores_csv` wrote, bit for bit.

    Raises:
        DataError: no such file, other columns, or a cell that cannot be read.
    """
    columns: dict[str, Callable[[str], Any]] = {
        "str": str, "int": int, "float": _number, "float | None": lambda cell: _number(cell) if cell else None,
    }  # fmt: skip
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


def _number(cell: str) -> float:
    value = float(cell)
    if not 0 <= value < _LARGEST:
        raise ValueError(f"{cell[:40]!r} is no score")
    return value


def write_summary(path: Path, summary: Summary) -> None:
    """Write a summary as JSON; floats keep every digit and the file appears whole or not at all."""
    write_text(path, json.dumps(asdict(summary), indent=2, allow_nan=False) + "\n")


def read_summary(path: Path) -> Summary:
    """Read what `write_summary` wrote, bit for bit.

    Raises:
        DataError: no such file, or not a summary.
    """
    try:
        return TypeAdapter(Summary).validate_python(read_json(path))
    except FileNotFoundError as error:
        raise DataError("no summary", where=path, wanted="a file", remedy="evaluate the run again") from error
    except (OSError, ValueError, ValidationError) as error:
        raise DataError("not a summary", where=path, got=str(error)[:300], remedy="evaluate the run again") from error


def _mean(values: list[float | None]) -> float | None:
    """None where any is missing."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _band(scores: Sequence[ImageScore], name: str, start: float, stop: float) -> SizeBand:
    dice = [score.dice for score in scores if start <= score.lesion_share < stop]
    return SizeBand(name, len(dice), float(np.mean(dice)) if dice else None)
