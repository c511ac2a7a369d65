"""The charts of a sweep's page: paired differences, importance, Dice against cost, learning curves.

Recipes are numbered by their rank in the page's table; captions say which number is which.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

from markupsafe import Markup

from polyp_difom.pipeline.report.charts import Curve, Spot, Strip, curves_chart, gains_chart, scatter_chart
from polyp_difom.pipeline.report.panels import MILLION, Panel
from polyp_difom.pipeline.report.plot import Axis, Plot, Point
from polyp_difom.pipeline.sweep.analysis import Comparison, Group, Importance, level_text, pareto
from polyp_difom.pipeline.sweep.tested import Figures

CURVES = 5
_ROW = 36


def differences(compared: Iterable[Comparison]) -> Panel | None:
    """Mean differences of levels to their reference levels with their intervals; None where none has an interval."""
    strips = [
        Strip(
            f"{level_text(one.factor, one.level)} − {level_text(one.factor, one.reference)}",
            (100 * mean(one.differences), *ends),
            0,
        )
        for one in compared
        if (ends := [100 * end for end in one.interval or ()])
    ]
    if not strips:
        return None
    title = "Paired differences in validation Dice"
    return Panel(gains_chart(title, strips, "points of validation Dice"), f"{title}: mean and 95 % interval over trials.")


def test_gains(found: Figures) -> Panel | None:
    """Paired differences on the test frames with their intervals, each on what its `on` says; None where there are none."""
    if not found.gains:
        return None
    on = list(dict.fromkeys(gain.on for gain in found.gains))
    strips = [
        Strip(
            f"{gain.label} − {gain.against}" + (f", {gain.on}" if len(on) > 1 else ""),
            [100 * value for value in (gain.whole.mean, *gain.whole.interval)],
            0,
        )
        for gain in found.gains
    ]
    title = f"Paired differences in test Dice, {on[0] if len(on) == 1 else 'one set each'}"
    return Panel(gains_chart(title, strips, "points of test Dice"), f"{title}: mean over seeds and 95 % interval over frames.")


def importances(found: Sequence[Importance]) -> Panel:
    """A bar a factor, and a mark where chance alone would put it."""
    told = "; ".join(f"{one.factor}: {one.share:.0%}, {one.by_chance:.0%} by chance" for one in found)
    axis = Axis("share of the variance explained", 0, 1)
    plot = Plot("Importance of each factor", told + ".", axis, Axis("", 0, 1), height=_ROW * len(found), left=14, right=14)
    plot.grid(y=False)
    for number, one in enumerate(found):
        top = plot.top + _ROW * number
        start, end, chance = (plot.at(value, 0)[0] for value in (0, one.share, one.by_chance))
        plot.text((plot.left, top + 12), f"{one.factor.replace('_', ' ')} {one.share:.0%}")
        form = Markup('<rect class="s0 full" x="{:.1f}" y="{}" width="{:.1f}" height="11"/>')
        plot.parts.append(form.format(start, top + 18, max(end - start, 0.5)))
        plot.segment((chance, top + 15), (chance, top + 32), "median")
    caption = "Bars: share of the variance of validation Dice. Upright marks: what a factor without any effect reaches."
    return Panel(plot.svg(), caption)


def cost(found: Sequence[Group], device: str) -> Panel | None:
    """Mean Dice of all recipes against latency, or parameters where that is not known; names those that none beats."""
    front = pareto(found)
    if front is None:
        return None
    timed = front.cost == "latency_ms"
    numbers = {id(group): number for number, group in enumerate(found, start=1)}
    best = [numbers[id(group)] for group in front.best]
    spots = [
        Spot(str(number) if number in best else "", value if timed else value / MILLION, group.mean, number - 1)
        for (number, group), value in zip(enumerate(found, start=1), front.costs, strict=True)
    ]
    axis = "latency of one frame, ms" if timed else "parameters, millions"
    title = f"Validation Dice against {f'latency on {device}' if timed else 'parameters'}"
    named = "; ".join(f"{numbers[id(group)]}: {group.label}" for group in front.best)
    return Panel(scatter_chart(title, spots, axis, "Dice"), f"{title}. Nothing beats {named}.")


@dataclass(frozen=True)
class Course:
    """One recipe's validation Dice over epochs, mean over seeds."""

    number: int
    group: Group
    points: Sequence[Point]


def course(number: int, group: Group, histories: Sequence[Sequence[dict[str, float]]]) -> Course:
    """Over the epochs that all seeds have."""
    epochs = zip(*histories, strict=False)
    return Course(number, group, [(row[0]["epoch"], mean(one["val_dice"] for one in row)) for row in epochs])


def shown(found: Sequence[Group]) -> list[tuple[int, Group]]:
    """(rank, recipe) of the best, the best control among them where there is one."""
    ranked = list(enumerate(found, start=1))
    best = ranked[:CURVES]
    controls = [entry for entry in ranked if entry[1].is_control]
    if controls and controls[0] not in best:
        best[-1] = controls[0]
    return best


def learning(courses: Sequence[Course]) -> Panel:
    """Learning curves of recipes in one chart."""
    curves = [Curve(str(one.number), one.points, one.number - 1) for one in courses]
    named = "; ".join(f"{one.number}: {one.group.label}" for one in courses)
    title = "Validation Dice over epochs"
    values = [value for one in courses for _, value in one.points]
    return Panel(curves_chart(title, curves, Axis.around("", values)), f"{title}, mean over seeds. {named}.")
