"""The charts of a report page: which values go into which chart, and what stands beneath it."""

from __future__ import annotations

from collections.abc import Sequence

from polyp_difom.pipeline.evaluation.published import PublishedFigure
from polyp_difom.pipeline.report.charts import (
    Spot,
    Strip,
    gains_chart,
    reliability_chart,
    scatter_chart,
    strips_chart,
)
from polyp_difom.pipeline.report.plot import Panel
from polyp_difom.pipeline.report.verdicts import Group

MILLION = 1e6


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
