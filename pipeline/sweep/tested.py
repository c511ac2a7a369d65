"""What the test figures in a sweep's run folders say: recipes over their seeds, and paired differences image by image."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np

from polyp_difom.pipeline.evaluation.done import Done, read_done
from polyp_difom.pipeline.evaluation.paired import PairedDifference, averaged_difference
from polyp_difom.pipeline.evaluation.record import EvaluationRecord
from polyp_difom.pipeline.evaluation.scoring import ImageScore
from polyp_difom.pipeline.files import sha256_of
from polyp_difom.pipeline.objectives.weighted import is_shuffled
from polyp_difom.pipeline.report.values import CONTROL
from polyp_difom.pipeline.sweep.analysis import Group, counted, groups, paired
from polyp_difom.pipeline.sweep.folder import SweepFolder
from polyp_difom.pipeline.sweep.results import Row
from polyp_difom.pipeline.sweep.space import Factors, Span

NO_TEST = ("train", "val")
"""Splits whose figures are no test of anything."""
MEAN_OF_SETS = "mean of the sets"
Scores = Mapping[str, list[ImageScore]]
"""Rows by "<data set> (<split>)"."""


@dataclass(frozen=True)
class OverSeeds:
    """Mean Dice of a recipe's trials: their mean, and their standard deviation (n - 1), None for a single one."""

    seeds: int
    mean: float
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> OverSeeds:
        """Of one value a seed."""
        return cls(len(values), mean(values), stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Recipe:
    """Test figures of one recipe by set, and of the plain mean over the sets; None where not all sets were scored."""

    label: str
    control: bool
    sets: dict[str, OverSeeds]
    over_sets: OverSeeds | None

    @property
    def seeds(self) -> int:
        """Trials that were tested."""
        return max(one.seeds for one in self.sets.values())


@dataclass(frozen=True)
class Gain:
    """A recipe minus the same one under another objective: each image's difference, averaged over the seeds that both have.

    Attributes:
        against: `none`, or the shuffled form of the recipe's objective.
        by_seed: difference of each pair of trials, on the mean over the sets (or on one set, see `on`).
        on: what `by_seed` and `whole` are of: `MEAN_OF_SETS`, or the name of a set.
        whole: over all sets that all tested trials have; where these are fewer than two, on the set of `by_seed`.
    """

    label: str
    objective: str
    against: str
    by_seed: dict[int, float]
    sets: dict[str, PairedDifference]
    over_sets: PairedDifference | None
    on: str
    whole: PairedDifference

    @property
    def word(self) -> str:
        """What the interval over images says; `mixed` where it is clear of zero but the seeds are not of one sign."""
        word = self.whole.word
        agree = len({value > 0 for value in self.by_seed.values()}) == 1
        return word if agree or word == "no difference" else "mixed"


@dataclass(frozen=True)
class Figures:
    """Test figures of a sweep under one protocol.

    Attributes:
        finished: trials that could be tested. trials: those that are.
        sets: data sets that any trial was scored on. averaged: those that all tested trials have, over which means are taken.
        recipes: the best on validation first.
        seen: how many of the frames any trial was trained or selected on, by set.
        left_out: sentences on figures that do not count, with the trials that they are of and what to type.
    """

    protocol: str
    finished: int
    trials: int
    sets: tuple[str, ...]
    averaged: tuple[str, ...]
    recipes: tuple[Recipe, ...]
    gains: tuple[Gain, ...]
    seen: dict[str, int]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class _Tested:
    """One trial's rows, and what is known of how they came about, by set."""

    row: Row
    scores: dict[str, list[ImageScore]]
    done: dict[str, Done | None]


def read_tested(
    folder: SweepFolder, trials: Sequence[Row], factors: Factors, protocol: str, sets: Collection[str] | None = None
) -> Figures | None:
    """Test figures of all finished trials; None where there are none. Figures of weights that are no more do not count.

    Nor do those of a set whose frames differ between trials, or of all splits where what the trial has seen is not recorded.

    Args:
        sets: only these ("<data set> (<split>)"); by default all but those of train and validation frames.

    Raises:
        RunError, DataError: damaged records.
    """
    finished = counted(trials)
    tested = [one for row in finished if (one := _read(folder, row, protocol, sets)).scores]
    if not tested:
        return None
    left_out = tuple(_leave_out(folder, tested, protocol))
    held = {one.row.number: one.scores for one in tested if one.scores}
    seen = Counter[str]()
    for label, entry in ((label, one.done[label]) for one in tested for label in one.scores):
        seen[label] = max(seen[label], sum(entry.seen.values()) if entry else 0)
    labels = sorted({label for scores in held.values() for label in scores})
    averaged = tuple(label for label in labels if all(label in scores for scores in held.values()))
    found = [group for group in groups(trials, factors) if any(row.number in held for row in group.rows)]
    gains = (gain for group in found for gain in _gains(group, trials, factors, held, averaged))
    return Figures(
        protocol, len(finished), len(held), tuple(labels), averaged, tuple(_recipe(group, held, averaged) for group in found),
        tuple(gains), {label: count for label, count in seen.items() if count}, left_out,
    )  # fmt: skip


def _read(folder: SweepFolder, row: Row, protocol: str, sets: Collection[str] | None) -> _Tested:
    record = EvaluationRecord(folder.path / "runs" / row.name)
    scores = dict(_scores(record, protocol, sets))
    done = read_done(record.folder) if scores else {}
    return _Tested(row, scores, {label: done.get(f"{protocol}/{label}") for label in scores})


def _leave_out(folder: SweepFolder, tested: Sequence[_Tested], protocol: str) -> Iterator[str]:
    """Takes figures out that are of unknown or of different frames, and says so."""
    for label in sorted({label for one in tested for label in one.scores}):
        split = label.rpartition("(")[2].removesuffix(")")
        remedy = (
            f"polyp-difom evaluate {shlex.quote(str(folder.path))} --data DIR --split {split} --protocol {protocol} --overwrite"
        )
        mine = [one for one in tested if label in one.scores]
        unknown = [one for one in mine if split == "all" and one.done[label] is None]
        for one in unknown:
            del one.scores[label]
        if unknown:
            yield (
                f"Figures for {label} of {_names(unknown)} are left out: how many of these frames a trial has learned from "
                f"was not recorded. Score again: {remedy}"
            )
        mine = [one for one in mine if label in one.scores]
        if strays := _strays(mine, label):
            for one in mine:
                del one.scores[label]
            yield (
                f"Figures for {label} are left out: {_names(strays)} had other frames than the other trials. "
                f"Score all on the same: {remedy}"
            )


def _strays(tested: Sequence[_Tested], label: str) -> list[_Tested]:
    """Trials whose frames of a set are not those that most have; files are compared where their digest was recorded."""
    names = {one.row.number: frozenset(row.id for row in one.scores[label]) for one in tested}
    files = {one.row.number: entry.frames for one in tested if (entry := one.done[label])}
    rare = _rare(names) | _rare(files)
    return [one for one in tested if one.row.number in rare]


def _rare(found: Mapping[int, Hashable]) -> set[int]:
    """Whose value is not the most frequent one."""
    usual = Counter(found.values()).most_common(1)
    return {number for number, value in found.items() if value != usual[0][0]}


def _names(tested: Iterable[_Tested]) -> str:
    return ", ".join(one.row.name for one in tested)


def _scores(record: EvaluationRecord, protocol: str, sets: Collection[str] | None) -> Scores:
    """A trial's rows, if they are of the weights that it has."""
    best = record.path / "checkpoints" / "best.safetensors"
    if not (record.folder / "target.json").is_file() or not best.is_file() or record.about()["sha256"] != sha256_of(best):
        return {}
    if not any(record.files(protocol, "csv")):
        return {}
    return {label: rows for label, rows in record.scores(protocol).items() if _wanted(label, sets)}


def _wanted(label: str, sets: Collection[str] | None) -> bool:
    return label in sets if sets is not None else not label.endswith(tuple(f"({split})" for split in NO_TEST))


def _recipe(group: Group, held: Mapping[int, Scores], averaged: Sequence[str]) -> Recipe:
    scored = [held[row.number] for row in group.rows if row.number in held]
    sets = {
        label: OverSeeds.of([_dice(scores[label]) for scores in scored if label in scores])
        for label in dict.fromkeys(label for scores in scored for label in scores)
    }
    means = [mean(_dice(scores[label]) for label in averaged) for scores in scored] if len(averaged) > 1 else None
    return Recipe(group.label, group.is_control, sets, OverSeeds.of(means) if means else None)


def _dice(rows: Iterable[ImageScore]) -> float:
    return float(np.mean([row.dice for row in rows]))


def _gains(
    group: Group, trials: Sequence[Row], factors: Factors, held: Mapping[int, Scores], averaged: Sequence[str]
) -> list[Gain]:
    """Of one recipe over its control, and over its shuffled form, as far as both were tested."""
    objectives, mine = factors.get("objective", ()), group.best.settings.get("objective")
    if isinstance(objectives, Span) or mine in (None, CONTROL):
        return []
    found = []
    for against in objectives:
        if against != CONTROL and not is_shuffled(against, mine):
            continue
        over = [one.among(group.rows) for one in paired(trials, factors, "objective", against) if one.level == mine]
        pairs = [
            (a, b) for one in over for a, b in one.pairs
            if a.number in held and b.number in held and held[a.number].keys() & held[b.number].keys()
        ]  # fmt: skip
        if pairs:
            found.append(_gain(group.label, mine, against, pairs, held, averaged))
    return found


def _gain(
    label: str,
    objective: str,
    against: str,
    pairs: Sequence[tuple[Row, Row]],
    held: Mapping[int, Scores],
    averaged: Sequence[str],
) -> Gain:
    scores = [(row.settings.get("seed", 0), held[row.number], held[other.number]) for row, other in sorted(pairs, key=_by_seed)]
    shared = sorted({name for _, a, b in scores for name in a.keys() & b.keys()})
    by_set = {name: [(a[name], b[name]) for _, a, b in scores if name in a and name in b] for name in shared}
    whole = list(averaged) or shared[:1]
    by_seed = {
        seed: mean(_dice(a[name]) - _dice(b[name]) for name in whole)
        for seed, a, b in scores if all(name in a and name in b for name in whole)
    }  # fmt: skip
    over_sets = averaged_difference([by_set[name] for name in averaged]) if len(averaged) > 1 else None
    sets = {name: averaged_difference([held_by_both]) for name, held_by_both in by_set.items()}
    on = MEAN_OF_SETS if over_sets else whole[0]
    return Gain(label, objective, against, by_seed, sets, over_sets, on, over_sets or sets[whole[0]])


def _by_seed(pair: tuple[Row, Row]) -> int:
    return int(pair[0].settings.get("seed", 0))
