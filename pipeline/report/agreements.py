"""Agreement with the teachers on validation frames, as `agree` measured it: a chart for each teacher and measure."""

from __future__ import annotations

from collections.abc import Sequence

from polyp_difom.pipeline.evaluation.agreement import Row
from polyp_difom.pipeline.report.plot import Axis, Panel, Plot
from polyp_difom.pipeline.report.values import RunReport
from polyp_difom.pipeline.report.verdicts import Group

MEASURES = {"cka": "linear CKA", "explained": "variance that a linear map explains"}
_ROW, _LEGEND = 36, 18


def agreements(groups: Sequence[Group]) -> list[Panel]:
    """Whole maps, every run with the sign of its recipe; none where no run was measured."""
    measured = [(group, run) for group in groups for run in group.runs if run.agreement]
    teachers = dict.fromkeys(row.teacher for _, run in measured for row in _whole(run))
    return [panel for teacher in teachers for what in MEASURES if (panel := _panel(measured, teacher, what))]


def _whole(run: RunReport) -> list[Row]:
    return [row for row in (run.agreement.rows if run.agreement else ()) if row.band == "whole"]


def _panel(measured: Sequence[tuple[Group, RunReport]], teacher: str, what: str) -> Panel | None:
    """Marks of all runs, a line for each scale and tap; above them what the signs stand for."""
    found: dict[str, list[tuple[int, float]]] = {}
    for group, run in measured:
        for row in _whole(run):
            if row.teacher == teacher and (value := getattr(row, what)) is not None:
                found.setdefault(f"{row.scale} {row.tap}", []).append((group.style, value))
    if not found:
        return None
    styles = {group.style: group.label for group, _ in measured}
    values = [value for marks in found.values() for _, value in marks]
    title = f"Agreement with {teacher}: {MEASURES[what]}"
    told = "; ".join(
        f"{place}: {', '.join(f'{styles[style]} {value:.3f}' for style, value in m)}" for place, m in found.items()
    )
    axis = Axis(MEASURES[what], min(0.0, *values), 1)
    head = _LEGEND * len(styles)
    plot = Plot(title, f"{told}.", axis, Axis("", 0, 1), height=head + _ROW * len(found), left=14, right=14)
    plot.grid(y=False)
    for number, (style, label) in enumerate(styles.items()):
        level = plot.top + _LEGEND * number + 8
        plot.mark((plot.left + 6, level), style)
        plot.text((plot.left + 16, level + 4), label)
    for number, (place, marks) in enumerate(found.items()):
        level = plot.top + head + _ROW * number + 26
        plot.text((plot.left, level - 11), place)
        plot.segment((plot.left, level), (plot.left + plot.width, level), "axis")
        for style, value in marks:
            plot.mark((plot.at(value, 0)[0], level), style)
    return Panel(plot.svg(), f"{title}.")
