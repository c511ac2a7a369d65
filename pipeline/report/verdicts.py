"""What an objective did to Dice, in plain words: runs of one recipe together, each seed against its own control."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from polyp_difom.pipeline.evaluation.paired import PairedDifference
from polyp_difom.pipeline.report.values import CONTROL, RunReport

_SHUFFLED = re.compile(r"(^|\+)shuffled\b")
"""A member of an objective that makes it a control with the wrong frames' features."""


@dataclass(frozen=True)
class Group:
    """Runs of one recipe that differ in nothing but the seed (or one target without a known recipe).

    Attributes:
        label: what tells the recipe from the others on the page, as short as that allows.
        style: number of its colour, dash and sign in all charts.
    """

    label: str
    runs: tuple[RunReport, ...]
    style: int

    @property
    def is_control(self) -> bool:
        """Whether its runs are trained without any teacher."""
        return self.runs[0].objective == CONTROL

    @property
    def taught(self) -> bool:
        """Whether its objective is known and is not the control's."""
        return self.runs[0].objective not in (None, CONTROL)

    def scored(self, label: str) -> list[RunReport]:
        """Its runs that have figures for a test set."""
        return [run for run in self.runs if label in run.by_set]

    def mdice(self, label: str) -> float:
        """Mean over seeds of mean Dice."""
        return mean(run.by_set[label].mdice for run in self.scored(label))

    def miou(self, label: str) -> float:
        """Mean over seeds of mean IoU."""
        return mean(run.by_set[label].miou for run in self.scored(label))

    def mdice_sd(self, label: str) -> float | None:
        """Standard deviation over seeds (n - 1) of mean Dice; None for a single one."""
        scored = self.scored(label)
        return stdev(run.by_set[label].mdice for run in scored) if len(scored) > 1 else None

    def gains(self, label: str) -> list[tuple[int | None, PairedDifference]]:
        """(seed, paired gain over its own control) of every run that has one."""
        return [(run.seed, run.differences[label]) for run in self.runs if label in run.differences]

    def over_shuffled(self, label: str) -> list[tuple[int | None, PairedDifference]]:
        """Likewise over the run that learned from the wrong frames."""
        return [(run.seed, run.over_shuffled[label]) for run in self.runs if label in run.over_shuffled]


def grouped(runs: Sequence[RunReport]) -> list[Group]:
    """Runs by recipe, in the order of their first one."""
    by_recipe: dict[str, list[RunReport]] = {}
    for run in runs:
        by_recipe.setdefault(json.dumps(run.recipe, sort_keys=True, default=str), []).append(run)
    members = list(by_recipe.values())
    labels = _labels([alike[0] for alike in members])
    return [Group(label, tuple(alike), style) for style, (label, alike) in enumerate(zip(labels, members, strict=True))]


def _labels(runs: Sequence[RunReport]) -> list[str]:
    """The objective, and what else of the recipe tells these runs apart."""
    known = [run for run in runs if run.objective is not None]
    several = {key for a in known for b in known for key in a.recipe if _alike(a, b) and a.recipe.get(key) != b.recipe.get(key)}
    labels = []
    for run in runs:
        extras = [_told(key, run.recipe.get(key)) for key in run.recipe if key in several - {"objective"}]
        labels.append(run.name if run.objective is None else ", ".join([run.objective, *extras]))
    return labels


def _alike(a: RunReport, b: RunReport) -> bool:
    """Whether both are controls or neither is: that a control has no teacher needs no telling."""
    return (a.objective == CONTROL) == (b.objective == CONTROL)


def _told(key: str, value: object) -> str:
    if key == "student":
        return str(value)
    if key == "teachers" and isinstance(value, list):
        return " + ".join(value)
    return f"{key.replace('_', ' ')} {str(value)[:12]}"


@dataclass(frozen=True)
class Verdict:
    """`helped`, `no difference`, `did not help`, `harmed`, `mixed` (seeds disagree) or `unknown` (no control), and why."""

    word: str
    sentence: str


def verdicts(group: Group) -> list[Verdict]:
    """One for each test set with a control, one for all sets without; then one for each with a shuffled control.

    A gain counts only when the whole 95 % interval of the paired difference lies above zero, with every seed.
    """
    labels = list(dict.fromkeys(label for run in group.runs for label in run.by_set))
    told = [_verdict(group, label) for label in labels if group.gains(label)]
    if untold := [label for label in labels if not group.gains(label)]:
        place = f"On {', '.join(untold)}, there is" if told else "There is"
        sentence = (
            f"{place} no control to compare with, so nothing shows that {_cause(group)} helped. "
            "Train the same student with objective none, evaluate it on the same frames, and report both."
        )
        told.append(Verdict("unknown", sentence))
    beside = {label: found for label in labels if (found := group.over_shuffled(label))}
    return told + [_beside_shuffled(group, label, found) for label, found in beside.items()]


def word_of(gains: Sequence[PairedDifference]) -> str:
    """The verdict on the gains of all seeds."""
    words = {gain.word for gain in gains}
    if len(words) == 1:
        return words.pop()
    if words == {"harmed", "did not help"}:
        return "did not help"
    return "mixed" if words & {"helped", "harmed"} else "no difference"


def _verdict(group: Group, label: str) -> Verdict:
    gains = group.gains(label)
    word = word_of([gain for _, gain in gains])
    cause = _cause(group)
    does = {
        "helped": f"{cause} helped",
        "harmed": f"{cause} did not help but harm",
        "did not help": f"{cause} did not help",
        "no difference": f"no difference can be shown for {cause}",
        "mixed": f"{cause} had an effect that depends on the seed",
    }[word]
    share = f"; {gains[0][1].improved:.0%} of {gains[0][1].images} frames scored higher than under the control"
    return Verdict(word, f"On {label}, {does}: {_evidence(gains)}{share if len(gains) == 1 else ''}.")


def _beside_shuffled(group: Group, label: str, gains: Sequence[tuple[int | None, PairedDifference]]) -> Verdict:
    word = word_of([gain for _, gain in gains])
    run = next(run for run in group.runs if label in run.over_shuffled)
    does = over_shuffled(str(run.objective), str(run.shuffled), word)
    return Verdict(word, f"On {label}, {does}: {_evidence(gains)}.")


def over_shuffled(objective: str, shuffled: str, word: str) -> str:
    """What a verdict on an objective beside itself towards the wrong frames' maps means."""
    return {
        "helped": f"{objective} beats {shuffled}, so it matters what the teacher saw",
        "harmed": f"{objective} is worse than {shuffled}, which learns from the wrong frames",
        "did not help": f"{objective} is no better than {shuffled}, which learns from the wrong frames",
        "no difference": f"{objective} is not shown to differ from {shuffled}: a gain may come from the added loss alone",
        "mixed": f"whether {objective} differs from {shuffled} depends on the seed",
        "too few": f"{objective} has too few pairs to be told from {shuffled}",
    }[word]


def _evidence(gains: Sequence[tuple[int | None, PairedDifference]]) -> str:
    """Differences in points, of each seed."""
    zero = "; the interval includes zero" if word_of([gain for _, gain in gains]) == "no difference" else ""
    if len(gains) == 1:
        return f"{points(gains[0][1].mean)} points of Dice (one seed; 95 % interval over frames {_range(gains[0][1])}){zero}"
    each = "; ".join(f"seed {seed} {points(gain.mean)} ({_range(gain)})" for seed, gain in gains)
    average = points(mean(gain.mean for _, gain in gains))
    zero = ", no interval clear of zero" if zero else ""
    return f"{average} points of Dice on average over {len(gains)} seeds{zero} (95 % intervals over frames): {each}"


def _cause(group: Group) -> str:
    run = group.runs[0]
    if run.objective and _SHUFFLED.search(run.objective):
        return "training on the wrong frames' features (the shuffled control)"
    if len(run.teachers) == 1:
        return f"the teacher {run.teachers[0]}"
    return f"the teachers {', '.join(run.teachers)}" if run.teachers else f"the objective {run.objective}"


def told(runs: Sequence[RunReport]) -> dict[str, Any]:
    """Figures, gains and verdicts, for `--json`."""
    recipes = []
    for group in grouped(runs):
        labels = list(dict.fromkeys(label for run in group.runs for label in run.by_set))
        over_seeds = {
            label: {"seeds": len(group.scored(label)), "mdice": group.mdice(label), "sd": group.mdice_sd(label)}
            for label in labels
        }
        words = [asdict(verdict) for verdict in verdicts(group)] if group.taught else []
        recipes.append({"recipe": group.label, "runs": [run.name for run in group.runs], "sets": over_seeds, "verdicts": words})
    return {
        "sets": {run.name: [asdict(summary) for summary in run.summaries] for run in runs},
        "without_leaks": {run.name: {label: asdict(s) for label, s in run.without_leaks.items()} for run in runs},
        "gains_over_control": {run.name: {label: asdict(d) for label, d in run.differences.items()} for run in runs},
        "gains_over_shuffled": {run.name: {label: asdict(d) for label, d in run.over_shuffled.items()} for run in runs},
        "recipes": recipes,
    }


def points(value: float) -> str:
    """A difference in hundredths, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−")


def _range(gain: PairedDifference) -> str:
    return f"{points(gain.interval[0])} to {points(gain.interval[1])}"
