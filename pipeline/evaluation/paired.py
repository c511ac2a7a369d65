"""Dice of one target minus another's on the same images, with an interval, and in a word.

Every interval is a 95 % percentile bootstrap over the test images: it covers the choice of images, not the luck of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from polyp_difom.cache.errors import DataError
from polyp_difom.pipeline.evaluation.scoring import ImageScore

IntervalWord = Literal["helped", "harmed", "did not help", "no difference"]
"""What an interval of a difference says: above zero, below it, at or below it, or that it holds zero."""
Rows = Sequence[ImageScore]
_RESAMPLES = 2000
_SEED = 0


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
    def word(self) -> IntervalWord:
        """What the interval says."""
        return word_of_interval(self.interval)


def word_of_interval(interval: tuple[float, float]) -> IntervalWord:
    """`helped` or `harmed` beside zero, `did not help` where it ends at zero, `no difference` (shown) where it holds zero."""
    low, high = interval
    if low > 0:
        return "helped"
    return "harmed" if high < 0 else "did not help" if high == 0 else "no difference"


def paired_difference(a: Rows, b: Rows) -> PairedDifference:
    """Dice of `a` minus Dice of `b`, image by image, whatever the order of the rows.

    Raises:
        DataError: the two do not hold exactly the same images under the same protocol, or a row stands twice in one of them.
    """
    return averaged_difference([[(a, b)]])


def averaged_difference(sets: Sequence[Sequence[tuple[Rows, Rows]]]) -> PairedDifference:
    """Differences of several pairs of runs, averaged image by image; of several data sets, the plain mean over the sets.

    Images are drawn anew within each set, so that a small set weighs as much as a large one in the interval too.

    Args:
        sets: for each data set, a pair of rows for each pair of runs (a pair of runs a seed).

    Raises:
        DataError: as `paired_difference`; or pairs that were not scored on the same images.
    """
    differences = [_averaged(pairs) for pairs in sets]
    return PairedDifference(
        images=sum(score.frames for pairs in sets for score in pairs[0][0]),
        mean=float(np.mean([values.mean() for values in differences])),
        interval=bootstrap(*differences),
        improved=float((np.concatenate(differences) > 0).mean()),
    )


def _averaged(pairs: Sequence[tuple[Rows, Rows]]) -> np.ndarray:
    """Difference of each image [n], mean over pairs."""
    by_id(pairs[0][0])
    names = [(score.protocol, score.dataset, score.id) for score in pairs[0][0]]
    found = []
    for a, b in pairs:
        first, second = by_id(a), by_id(b)
        if lonely := sorted("/".join(key[1:]) for key in (first.keys() ^ second.keys()) | (first.keys() ^ set(names))):
            raise DataError(
                "two runs can only be compared on the same images",
                where=", ".join(lonely[:3]) + (", ..." if len(lonely) > 3 else ""),
                got=f"{len(lonely)} images that only one of the runs has scored under this protocol",
                wanted="the same images and one protocol for both",
                remedy="evaluate both runs on the same data with the same protocol",
            )
        found.append([first[key].dice - second[key].dice for key in sorted(first)])
    return np.mean(found, axis=0)


def by_id(scores: Rows) -> dict[tuple[str, str, str], ImageScore]:
    """Rows by protocol, data set and image.

    Raises:
        DataError: no rows, or one that stands twice.
    """
    if not scores:
        raise DataError("no images were scored", wanted="at least one score", remedy="check that the dataset is not empty")
    rows = {(score.protocol, score.dataset, score.id): score for score in scores}
    if len(rows) < len(scores):
        seen: set[str] = set()
        twice = next(score.id for score in scores if score.id in seen or seen.add(score.id))  # type: ignore[func-returns-value]
        raise DataError("an image was scored twice", where=twice, wanted="one score per image", remedy="evaluate the run again")
    return rows


def bootstrap(*sets: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the mean over sets of the means of `sets` [n], from `_RESAMPLES` draws within each set."""
    rng = np.random.default_rng(_SEED)
    means = np.empty(_RESAMPLES)
    for number in range(_RESAMPLES):  # one at a time: memory stays that of the values
        means[number] = np.mean([values[rng.integers(len(values), size=len(values))].mean() for values in sets])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
