"""What a sweep's paired differences mean, in plain words that claim no more than their intervals do."""

from __future__ import annotations

from collections.abc import Sequence

from polyp_difom.pipeline.objectives.weighted import is_shuffled
from polyp_difom.pipeline.recipe import DistillConfig
from polyp_difom.pipeline.report.values import CONTROL
from polyp_difom.pipeline.report.verdicts import Verdict, over_shuffled, points
from polyp_difom.pipeline.sweep.analysis import FEWEST, Comparison, counted, level_text, needs_of, paired
from polyp_difom.pipeline.sweep.results import Row
from polyp_difom.pipeline.sweep.space import Factors, Span


def verdicts(rows: Sequence[Row], factors: Factors) -> list[Verdict]:
    """One for each objective beside `none`, and beside itself shuffled where that was trained; or one that misses a control."""
    objectives = factors.get("objective", (DistillConfig.model_fields["objective"].default,))
    if isinstance(objectives, Span) or objectives == (CONTROL,):
        return []
    if not counted(rows):
        return [Verdict("unknown", "No trial has finished yet.")]
    if CONTROL not in objectives:
        sentence = (
            "There is no control in this sweep, so nothing shows that any teacher helped. "
            f"Sweep with objective={','.join([CONTROL, *map(str, objectives)])}."
        )
        return [Verdict("unknown", sentence)]
    told = [_beside_control(one, factors) for one in paired(rows, factors, "objective")]
    for shuffled in objectives:
        over = paired(rows, factors, "objective", shuffled)
        told += [_beside_shuffled(one) for one in over if one.pairs and is_shuffled(shuffled, one.level)]
    return told


def word_of(one: Comparison) -> str:
    """The verdict on one level of any factor."""
    better = {"helped": "better", "harmed": "worse", "did not help": "no better", "unknown": "no pair"}
    return one.word if one.factor == "objective" and one.pairs else better.get(one.word, one.word)


def _beside_control(one: Comparison, factors: Factors) -> Verdict:
    does = {
        "helped": f"{one.level} beats {CONTROL}",
        "harmed": f"{one.level} does harm",
        "did not help": f"{one.level} does not help",
        "no difference": f"No difference can be shown between {one.level} and {CONTROL}",
        "too few": f"Too few pairs to tell {one.level} from {CONTROL}",
    }
    if one.word == "unknown":
        why, needs = "", needs_of({"objective": one.level})
        own = [*(["affine=false"] if needs.spectra else []), *(["latents=true"] if needs.latents else [])]
        if own:
            why = f" It trains so whatever is asked for, and its control needs {' '.join(own)}."
        elif any(isinstance(values, Span) for values in factors.values()):
            why = " Drawn trials hardly ever agree in all but one factor; confirm the best values with a grid."
        return Verdict(one.word, f"{one.level}: no finished trial of {CONTROL} has the same settings.{why}")
    return Verdict(one.word, f"{does[one.word]}: {evidence(one)}.")


def _beside_shuffled(one: Comparison) -> Verdict:
    does = over_shuffled(str(one.level), str(one.reference), one.word)
    return Verdict(one.word, f"{does}: {evidence(one)}.")


def evidence(one: Comparison) -> str:
    """A comparison's figures in words; it has at least one pair."""
    pairs, alone = len(one.pairs), len(one.differences)
    over = "1 pair" if pairs == 1 else f"{pairs} pairs"
    if alone < pairs:
        reference = level_text(one.factor, one.reference)
        over += f", averaged beside each of {alone} trials of {reference}" if alone > 1 else f" with one trial of {reference}"
    told = f"{points(one.mean or 0.0)} points of validation Dice over {over}"
    if one.interval is not None:
        told += f" (95 % interval {points(one.interval[0])} to {points(one.interval[1])})"
    if one.word == "no difference":
        told += ", which includes zero"
    if one.word == "too few":
        told += f"; at least {FEWEST} pairs are needed, more for a small gain"
    return told
