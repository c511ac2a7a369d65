"""What a sweep's validation figures say: recipes over their seeds, paired differences, what matters, what is worth its cost.

Only finished trials count, each set of settings once. Dice is the best over a trial's epochs on the validation frames.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np
from scipy import stats

from polyp_difom.pipeline.evaluation.paired import IntervalWord, word_of_interval
from polyp_difom.pipeline.objectives import weighted
from polyp_difom.pipeline.objectives.protocol import Needs
from polyp_difom.pipeline.recipe import DistillConfig
from polyp_difom.pipeline.report.charts import undominated
from polyp_difom.pipeline.report.values import CONTROL
from polyp_difom.pipeline.sweep.results import Row
from polyp_difom.pipeline.sweep.space import UNREAD, Factors, Span

FEWEST = 3
"""Independent differences below which no verdict is given."""
Word = IntervalWord | Literal["too few", "unknown"]


def counted(rows: Sequence[Row]) -> list[Row]:
    """Finished trials that were trained for themselves, each set of settings once."""
    found: dict[object, Row] = {}
    for row in rows:
        if row.state == "finished" and row.val_dice is not None and row.same_as is None:
            found.setdefault(_key(row.settings), row)
    return list(found.values())


def dice(row: Row) -> float:
    """Validation Dice of a counted trial."""
    assert row.val_dice is not None  # noqa: S101
    return row.val_dice


def varied(factors: Factors) -> list[str]:
    """Factors with several values, but the seed."""
    return [name for name, values in factors.items() if name != "seed" and (isinstance(values, Span) or len(values) > 1)]


def needs_of(settings: dict[str, Any]) -> Needs:
    """What a trial's objective reads."""
    return weighted.needs_of(settings.get("objective", DistillConfig.model_fields["objective"].default))


def is_control(row: Row) -> bool:
    """No teacher is read."""
    return not _taught(row.settings)


# Recipes


@dataclass(frozen=True)
class Group:
    """Trials that differ in their seed alone, best first.

    Attributes:
        label: the values that tell it from other recipes, in words.
    """

    label: str
    rows: tuple[Row, ...]

    @property
    def mean(self) -> float:
        """Of validation Dice over seeds."""
        return mean(map(dice, self.rows))

    @property
    def sd(self) -> float | None:
        """Standard deviation over seeds (n - 1); None for a single one."""
        return stdev(map(dice, self.rows)) if len(self.rows) > 1 else None

    @property
    def best(self) -> Row:
        """The trial with the highest Dice."""
        return self.rows[0]

    @property
    def is_control(self) -> bool:
        """No teacher is read."""
        return is_control(self.best)


def groups(rows: Sequence[Row], factors: Factors) -> list[Group]:
    """Recipes with their finished trials, the highest mean first."""
    members: dict[object, list[Row]] = defaultdict(list)
    for row in counted(rows):
        members[_key(row.settings, "seed")].append(row)
    names = varied(factors)
    found = [
        Group(
            ", ".join(level_text(name, alike[0].settings[name]) for name in names if name in alike[0].settings) or "the recipe",
            tuple(sorted(alike, key=dice, reverse=True)),
        )
        for alike in members.values()
    ]
    return sorted(found, key=lambda group: -group.mean)


def level_text(factor: str, value: Any) -> str:
    """A factor's value in words."""
    name = factor.replace("_", " ")
    if isinstance(value, bool):
        return name if value else f"no {name}"
    if isinstance(value, int | float):
        return f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
    return f"all {name}" if value is None else str(value)


# Paired differences


@dataclass(frozen=True)
class Comparison:
    """One level of a factor minus its reference level, over trials that agree in all else.

    Attributes:
        pairs: (trial of the level, trial of the reference).
    """

    factor: str
    level: Any
    reference: Any
    pairs: tuple[tuple[Row, Row], ...]

    @property
    def differences(self) -> list[float]:
        """In Dice, one for each trial of the reference: several beside the same one are averaged, not being independent."""
        beside: dict[int, list[float]] = defaultdict(list)
        for one, other in self.pairs:
            beside[other.number].append(dice(one) - dice(other))
        return [mean(values) for values in beside.values()]

    @property
    def mean(self) -> float | None:
        """Mean difference; None without a pair."""
        return mean(self.differences) if self.pairs else None

    @property
    def sd(self) -> float | None:
        """Standard deviation (n - 1) of the differences; None for fewer than two."""
        return stdev(self.differences) if len(self.differences) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean by Student's t, which holds where a bootstrap of a few values would be too narrow."""
        found = self.differences
        if len(found) < 2:
            return None
        half = float(stats.t.ppf(0.975, len(found) - 1)) * stdev(found) / len(found) ** 0.5
        return mean(found) - half, mean(found) + half

    @property
    def word(self) -> Word:
        """What the interval says; `too few` below `FEWEST` differences, `unknown` without any."""
        if not self.pairs:
            return "unknown"
        if self.interval is None or len(self.differences) < FEWEST:
            return "too few"
        return word_of_interval(self.interval)

    def among(self, rows: Sequence[Row]) -> Comparison:
        """The same for the pairs whose first trial is one of these."""
        numbers = {row.number for row in rows}
        return replace(self, pairs=tuple(pair for pair in self.pairs if pair[0].number in numbers))


def paired(rows: Sequence[Row], factors: Factors, factor: str, reference: Any = ...) -> list[Comparison]:
    """Every other level of a factor against its reference: `none` for the objective, else the first value, unless given.

    A control stands beside every taught trial of the same student, seed and so on, whatever its teachers; one whose objective
    reads stored spectra, which trains without affine augmentation, stands beside none that trained with it; one that gives
    the student latents, beside none without them.
    Empty for a range and for a factor with a single value.
    """
    values = factors[factor]
    if isinstance(values, Span) or len(values) < 2:
        return []
    if reference is ...:
        reference = CONTROL if factor == "objective" and CONTROL in values else values[0]
    others = [level for level in values if level != reference]
    return [Comparison(factor, level, reference, _pairs(rows, factor, level, reference)) for level in others]


def _pairs(rows: Sequence[Row], factor: str, level: Any, reference: Any) -> tuple[tuple[Row, Row], ...]:
    untaught = factor == "objective" and not (_taught({factor: level}) and _taught({factor: reference}))
    left_out = (factor, *UNREAD) if untaught else (factor,)
    sides: dict[Any, list[tuple[Row, object]]] = {level: [], reference: []}
    for row in counted(rows):
        if factor in row.settings and row.settings[factor] in sides:
            sides[row.settings[factor]].append((row, _key(_as_trained(row.settings), *left_out)))
    beside = {key: row for row, key in reversed(sides[reference])}
    return tuple((row, beside[key]) for row, key in sides[level] if key in beside)


def _taught(settings: dict[str, Any]) -> bool:
    needs = needs_of(settings)
    return needs.maps or needs.spectra


def _as_trained(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the affine augmentation and the latents that the training had, whatever was asked for."""
    affine, latents = (settings.get(name, DistillConfig.model_fields[name].default) for name in ("affine", "latents"))
    needs = needs_of(settings)
    return {**settings, "affine": affine and not needs.spectra, "latents": latents or needs.latents}


def _key(settings: dict[str, Any], *left_out: str) -> object:
    return tuple(sorted((name, repr(value)) for name, value in settings.items() if name not in left_out))


# Importance


@dataclass(frozen=True)
class Importance:
    """How far one factor by itself explains the differences in validation Dice.

    Attributes:
        share: eta squared of its levels (between-level part of the sum of squares); for a range, the squared rank correlation.
        by_chance: what a factor without any effect is expected to reach with as many trials and levels.
        levels: how many; None for a range.
        trials: those that read the factor.
    """

    factor: str
    share: float
    by_chance: float
    levels: int | None
    trials: int


def importance(rows: Sequence[Row], factors: Factors) -> list[Importance]:
    """Main effects of all factors, seed too, the largest first.

    A factor is left out where fewer than three trials read it, where it takes one value or none twice, or where all trials
    score the same. On unbalanced trials one factor's share may be another's effect.
    """
    found = []
    for factor, values in factors.items():
        readers = [row for row in counted(rows) if factor in row.settings]
        scores = np.array([dice(row) for row in readers])
        levels = [row.settings[factor] for row in readers]
        kinds = len(set(map(repr, levels)))
        if len(readers) < 3 or kinds < 2 or np.ptp(scores) == 0:
            continue
        if isinstance(values, Span):
            share = float(np.corrcoef(stats.rankdata(levels), stats.rankdata(scores))[0, 1] ** 2)
            found.append(Importance(factor, share, 1 / (len(readers) - 1), None, len(readers)))
        elif kinds < len(readers):
            by_chance = (kinds - 1) / (len(readers) - 1)
            found.append(Importance(factor, _eta_squared(scores, levels), by_chance, kinds, len(readers)))
    return sorted(found, key=lambda one: -one.share)


def _eta_squared(scores: np.ndarray, levels: Sequence[Any]) -> float:
    names = np.array([repr(level) for level in levels])
    middle = scores.mean()
    between = sum((names == name).sum() * (scores[names == name].mean() - middle) ** 2 for name in set(names))
    return float(between / ((scores - middle) ** 2).sum())


# Cost


@dataclass(frozen=True)
class Front:
    """Recipes by cost, and those that none beats in both Dice and cost.

    Attributes:
        cost: "latency_ms" of one frame on the sweep's device, or "parameters" where that was not measured of all.
        costs: of every recipe, in the order given.
        best: from cheap to dear.
    """

    cost: Literal["latency_ms", "parameters"]
    costs: tuple[float, ...]
    best: tuple[Group, ...]


def pareto(found: Sequence[Group]) -> Front | None:
    """The front of mean Dice against cost; None where no cost is known of all recipes."""
    names: tuple[Literal["latency_ms", "parameters"], ...] = ("latency_ms", "parameters")
    for name in names:
        costs = [getattr(group.best, name) for group in found]
        if found and all(costs):
            points = list(zip(costs, (group.mean for group in found), strict=True))
            best = tuple(found[points.index(point)] for point in undominated(points))
            return Front(name, tuple(costs), best)
    return None
