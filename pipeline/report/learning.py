"""The charts of one training: validation Dice, losses, and how the student comes to agree with each teacher.

A figure of agreement is called "[objective:]teacher/scale/tap[/band]/quantity" (see `pipeline/objectives/protocol.py`), any
other one without a slash is a part of the loss.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from markupsafe import escape

from polyp_difom.pipeline.report.charts import Curve, curves_chart
from polyp_difom.pipeline.report.plot import WIDTH, Axis, Panel, Point

History = Sequence[Mapping[str, Any]]
"""One mapping an epoch, as in metrics.jsonl."""
QUANTITIES = {"cosine": "cosine", "explained": "explained variance", "target_variance": "target's variance"}
"""What is logged of a student's map and a teacher's, in words; an objective need not log all of it, and may log more."""
COLUMNS, _GAP, _HEIGHT, _HEAD = 3, 16, 230, 30
_NO_LOSS = ("epoch", "val_dice", "seconds")


@dataclass(frozen=True)
class Trace:
    """The name of a figure of agreement, taken apart: "cwd:sam/s16/bottleneck/low/cosine".

    Attributes:
        source: teacher, after the objective where there are several: "cwd:sam".
        place: scale and tap: "s16 bottleneck".
        band: "low" or "high"; empty for whole maps.
        quantity: "cosine".
    """

    source: str
    place: str
    band: str
    quantity: str


def traced(key: str) -> Trace | None:
    """A figure's name taken apart; None for a part of the loss. A teacher's name may hold slashes itself."""
    *path, quantity = key.split("/")
    if not path:
        return None
    band = path.pop() if path[-1] in ("low", "high") else ""
    scales = [number for number, part in enumerate(path) if number and re.fullmatch(r"s\d+", part)]
    end = scales[-1] if scales else 1
    return Trace("/".join(path[:end]), " ".join(path[end:]), band, quantity)


def learning(name: str, history: History, control: tuple[str, History] | None = None) -> list[Panel]:
    """All charts of a run with the lines beneath them, its validation Dice beside that of its control (name, history)."""
    if not (charts := [chart for row in _rows(name, history, control) for chart in row]):
        return []
    first, *others = [Panel(chart.svg, f"{name}: {chart.caption}") for chart in charts]
    beside = f"; its control is {control[0]}" if control and control[1] else ""
    return [Panel(panel.svg, f"{panel.caption}{end}.") for panel, end in ((first, beside), *((p, "") for p in others))]


def curves_picture(name: str, history: History) -> str:
    """All charts of a run as one SVG file that needs nothing else, three in a row."""
    parts, top = [f'<text x="{_GAP}" y="22">{escape(name)}</text>'], _HEAD
    for row in _rows(name, history, None):
        for number, chart in enumerate(row):
            left, line = _GAP + number % COLUMNS * (WIDTH + _GAP), top + number // COLUMNS * (_HEIGHT + _HEAD)
            parts.append(f'<text x="{left}" y="{line + 20}">{escape(chart.caption)}</text>')
            place = f'<svg x="{left}" y="{line + _HEAD}" width="{WIDTH}" height="{_HEIGHT}" '
            parts.append(str(chart.svg).replace("<svg ", place, 1))
        top += -(-len(row) // COLUMNS) * (_HEIGHT + _HEAD)
    width = COLUMNS * (WIDTH + _GAP) + _GAP
    head = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" width="{width}" height="{top}"'
    paper = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'<svg {head} font-family="sans-serif"><style>{_style()}</style>{paper}{"".join(parts)}</svg>\n'


def _style() -> str:
    """The page's own style of charts in its light colours, written out: few viewers of pictures know variables."""
    page, charts = ((files(__package__) / f"{part}.html.j2").read_text("utf-8") for part in ("style", "chart_style"))
    light = dict(re.findall(r"--(\w+): (#\w+)", page.partition("@media")[0]))
    return re.sub(r"var\(--(\w+)\)", lambda found: light[found[1]], charts.replace("var(--card)", "var(--paper)"))


def _rows(name: str, history: History, control: tuple[str, History] | None) -> list[list[Panel]]:
    """Dice and losses, then a row for each teacher's maps and one for their bands; each caption without the run's name."""
    dice = [Curve("Dice", _over_epochs(history, "val_dice"), 0)]
    if not dice[0].points:
        return []
    epoch, best = max(dice[0].points, key=lambda point: point[1])
    if control and (points := _over_epochs(control[1], "val_dice")):
        dice.append(Curve("control", points, 1))
    told = f"validation Dice, best {best:.3f} in epoch {epoch:.0f}"
    rows = [[Panel(curves_chart(f"Validation Dice of {name}", dice, Axis("", 0, 1)), told)]]
    keys = list(dict.fromkeys(key for record in history for key in record if key not in _NO_LOSS))
    traces = {key: trace for key in keys if (trace := traced(key))}
    if losses := [key for key in keys if key not in traces]:
        rows[0].append(_chart(name, "loss on train frames, by part", history, {key: key for key in losses}))
    for source, banded in dict.fromkeys((trace.source, bool(trace.band)) for trace in traces.values()):
        mine = {key: trace for key, trace in traces.items() if (trace.source, bool(trace.band)) == (source, banded)}
        rows.append(_of_teacher(name, source, history, mine))
    return rows


def _of_teacher(name: str, source: str, history: History, traces: Mapping[str, Trace]) -> list[Panel]:
    """A chart for each quantity of the agreement with one teacher: its whole maps, or their bands."""
    places = list(dict.fromkeys(trace.place for trace in traces.values()))
    bands, row = {trace.band for trace in traces.values()} != {""}, []
    for quantity in sorted({trace.quantity for trace in traces.values()}, key=_rank):
        chosen = {key: trace for key, trace in traces.items() if trace.quantity == quantity}
        told = f"{QUANTITIES.get(quantity, quantity)}, {source}"
        if bands and len(places) == 1:
            labels, told = {key: trace.band for key, trace in chosen.items()}, f"{told}, bands at {places[0]}"
        else:
            labels = {key: f"{trace.band} {trace.place}".strip() or source for key, trace in chosen.items()}
        row.append(_chart(name, told, history, labels, top=1.0 if quantity in ("cosine", "explained") else 0.0))
    return row


def _rank(quantity: str) -> tuple[int, str]:
    order = list(QUANTITIES)
    return (order.index(quantity) if quantity in order else len(order), quantity)


def _chart(name: str, told: str, history: History, labels: Mapping[str, str], top: float = 0.0) -> Panel:
    """Curves by key, labelled, from zero or their least value to `top` or a little above their largest."""
    curves = [Curve(label, _over_epochs(history, key), number) for number, (key, label) in enumerate(labels.items())]
    values = [value for curve in curves for _, value in curve.points]
    low, high = min(0.0, *values), max(top, 1.05 * max(values)) or 1.0
    return Panel(curves_chart(f"{told[0].upper()}{told[1:]}: {name}", curves, Axis("", low, high)), told)


def _over_epochs(history: History, key: str) -> list[Point]:
    return [(float(record["epoch"]), float(record[key])) for record in history if key in record]


@dataclass(frozen=True)
class LastValues:
    """Agreement with a teacher after the last epoch, as logged on train frames; None where an objective does not log it."""

    name: str
    cosine: float | None
    explained: float | None
    target_variance: float | None


def last_values(history: History) -> list[LastValues]:
    """One row for each teacher, scale, tap and band."""
    last = history[-1] if history else {}
    names = dict.fromkeys(key.rpartition("/")[0] for key in last if (trace := traced(key)) and trace.quantity in QUANTITIES)
    return [LastValues(name, *(last.get(f"{name}/{what}") for what in QUANTITIES)) for name in names]
