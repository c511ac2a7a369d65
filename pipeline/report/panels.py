"""The charts of a report page: which values go into which chart, and what stands beneath it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from polyp_difom.pipeline.evaluation.published import PublishedFigure
from polyp_difom.pipeline.report.charts import (
    Axis,
    Curve,
    Spot,
    Strip,
    curves_chart,
    gains_chart,
    reliability_chart,
    scatter_chart,
    strips_chart,
)
from polyp_difom.pipeline.report.values import RunReport
from polyp_difom.pipeline.report.verdicts import Group

MILLION = 1e6


@dataclass(frozen=True)
class Panel:
    """One chart with the line beneath it."""

    svg: Markup
    caption: str


def gains(groups: Sequence[Group], label: str) -> Panel | None:
    """Paired gains over the control on one test set, every run with its interval; None where there are none."""
    strips = [
        Strip(run.name, [100 * value for value in (run.differences[label].mean, *run.differences[label].interval)], group.style)
        for group in groups
        for run in group.runs
        if label in run.differences
    ]
    if not strips:
        return None
    title = f"Paired gain in Dice over the control on {label}"
    return Panel(gains_chart(title, strips, "points of Dice"), f"{title}: mean and 95 % interval over frames.")


def distributions(groups: Sequence[Group], label: str) -> Panel:
    """Every row's Dice on one test set, a strip a run."""
    strips = [Strip(run.name, run.dice[label], group.style) for group in groups for run in group.runs if run.dice.get(label)]
    caption = f"{label}: a tick for each; the box spans the middle half, the bar in it is the median."
    return Panel(strips_chart(f"Spread of Dice on {label}", strips, "Dice"), caption)


def reliability(groups: Sequence[Group], label: str) -> list[Panel]:
    """One diagram for each run on one test set."""
    panels = []
    for group in groups:
        for run in group.scored(label):
            if found := run.by_set[label].calibration:
                bins = [(row.confidence, row.accuracy, row.count) for row in found.rows]
                svg = reliability_chart(f"Calibration of {run.name} on {label}", bins, group.style)
                panels.append(Panel(svg, f"{run.name}: ECE {found.ece:.3f} over {found.pixels:,} pixels of the band"))
    return panels


def learning(run: RunReport, control: RunReport | None) -> list[Panel]:
    """Validation Dice beside the control's, loss parts, and one chart for each teacher's agreement."""
    dice = [Curve("Dice", _over_epochs(run, "val_dice"), 0)]
    if not dice[0].points:
        return []
    epoch, best = max(dice[0].points, key=lambda point: point[1])
    told = f"{run.name}: validation Dice, best {best:.3f} in epoch {epoch:.0f}"
    if control is not None and control.curve:
        dice.append(Curve("control", _over_epochs(control, "val_dice"), 1))
        told += f"; its control is {control.name}"
    panels = [Panel(curves_chart(f"Validation Dice of {run.name}", dice, Axis("", 0, 1)), f"{told}.")]
    losses = [key for key in run.curve[-1] if "/" not in key and key not in ("epoch", "val_dice", "seconds")]
    if curves := [Curve(key, _over_epochs(run, key), number) for number, key in enumerate(losses)]:
        values = [value for curve in curves for _, value in curve.points]
        svg = curves_chart(f"Loss of {run.name}", curves, Axis("", min(0.0, *values), 1.05 * max(values)))
        panels.append(Panel(svg, f"{run.name}: loss on train frames, by part."))
    for teacher, keys in _agreements(run).items():
        curves = [Curve(" ".join(key.split("/")[1:]), _over_epochs(run, f"{key}/cosine"), n) for n, key in enumerate(keys)]
        low = min(0.0, *(value for curve in curves for _, value in curve.points))
        svg = curves_chart(f"Agreement of {run.name} with {teacher}", curves, Axis("", low, 1))
        panels.append(Panel(svg, f"{run.name}: cosine between the student's and {teacher}'s maps, by scale and tap."))
    return panels


def _over_epochs(run: RunReport, key: str) -> list[tuple[float, float]]:
    return [(float(row["epoch"]), float(row[key])) for row in run.curve if key in row]


def _agreements(run: RunReport) -> dict[str, list[str]]:
    """Prefixes "teacher/scale/tap" of what was logged, by teacher; with the bands where only those were logged."""
    every: dict[str, list[str]] = defaultdict(list)
    for key in run.curve[-1]:
        if key.endswith("/cosine"):
            every[key.partition("/")[0]].append(key.removesuffix("/cosine"))
    return {teacher: [key for key in keys if key.count("/") == 2] or keys for teacher, keys in every.items()}


@dataclass(frozen=True)
class LastValues:
    """Agreement with a teacher after the last epoch: all scores as logged on train frames."""

    name: str
    cosine: float
    explained: float
    target_variance: float


def last_values(run: RunReport) -> list[LastValues]:
    """One row for each teacher, scale, tap and band."""
    last = run.curve[-1] if run.curve else {}
    names = [key.removesuffix("/cosine") for key in last if key.endswith("/cosine")]
    return [
        LastValues(name, *(last[f"{name}/{what}"] for what in ("cosine", "explained", "target_variance"))) for name in names
    ]


def pareto(groups: Sequence[Group], label: str, protocol: str) -> list[Panel]:
    """Mean Dice on one test set against parameters, multiply-accumulates and latency, as far as known; a chart a device.

    Models that others published stand in the first chart, and only under their own protocol.
    """
    theirs = [
        Spot(figure.model, figure.parameters / MILLION, figure.mdice, 0, hollow=True)
        for figure in rivals(groups, label)
        if figure.protocol == protocol and figure.parameters
    ]
    parameters = {run.name: run.parameters / MILLION for group in groups for run in group.runs if run.parameters}
    macs = {run.name: run.macs / MILLION for group in groups for run in group.runs if run.macs}
    costs = [("parameters, millions", "parameters", parameters, theirs)]
    costs.append(("multiply-accumulates of one frame, millions", "multiply-accumulates", macs, []))
    timed = [(run.name, run.timing) for group in groups for run in group.runs if run.timing]
    for device in dict.fromkeys(timing.device for _, timing in timed):
        times = {name: timing.milliseconds for name, timing in timed if timing.device == device}
        costs.append(("latency of one frame, ms", f"latency on {device}", times, []))
    panels = []
    for axis, name, known, others in costs:
        spots = [
            Spot(group.label, known[costed[0].name], group.mdice(label), group.style)
            for group in groups
            if (costed := [run for run in group.scored(label) if run.name in known])
        ]
        if spots:
            title = f"Dice on {label} against {name}"
            panels.append(Panel(scatter_chart(title, [*spots, *others], axis, "Dice"), f"{title}."))
    return panels


def rivals(groups: Sequence[Group], label: str) -> list[PublishedFigure]:
    """Published figures for a test set, where all that was scored is just the published test frames."""
    found = [run.rivals.get(label, []) for group in groups for run in group.scored(label)]
    return found[0] if all(found) else []
