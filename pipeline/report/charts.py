"""Charts as inline SVG: readable without colour vision (shape, dash, direct labels), in light and dark, without a script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from polyp_difom.pipeline.report.plot import LETTER, STYLES, WIDTH, Axis, Plot, Point, cut

_LINE = 14
_LEADER = 18
"""From the plot's edge to the labels of curves."""


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions as near to `wanted` as keeps them `gap` apart, in the same order, inside low..high while they fit."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed: list[float] = []
    for i in order:
        placed.append(max(wanted[i], placed[-1] + gap if placed else low))
    for k in range(len(placed) - 1, -1, -1):
        placed[k] = min(placed[k], high if k == len(placed) - 1 else placed[k + 1] - gap)
    return [placed[order.index(i)] for i in range(len(wanted))]


@dataclass(frozen=True)
class Curve:
    """One line of a chart over epochs, with the label that stands at its end."""

    label: str
    points: Sequence[Point]
    style: int


def curves_chart(title: str, curves: Sequence[Curve], y: Axis) -> Markup:
    """Values over epochs; labels at the right ends, each with a line to its curve's end."""
    last = max(point[0] for curve in curves for point in curve.points)
    room = min(130, round(max(len(curve.label) for curve in curves) * LETTER) + _LEADER + 8)
    ends = ", ".join(f"{curve.label} {curve.points[-1][1]:.3f}" for curve in curves)
    plot = Plot(title, f"Last values: {ends}.", Axis("epoch", 0, max(last, 1)), y, right=room)
    plot.grid()
    ends_at = [plot.at(*curve.points[-1])[1] for curve in curves]
    labels_at = spread(ends_at, _LINE, plot.top + 4, plot.top + plot.height)
    for curve, label_at in zip(curves, labels_at, strict=True):
        end = plot.at(*curve.points[-1])
        plot.line(curve.points, curve.style)
        plot.segment(end, (WIDTH - room + _LEADER, label_at), f"leader s{curve.style % STYLES}")
        plot.mark(end, curve.style, radius=3)
        plot.text((WIDTH - room + _LEADER + 4, label_at + 4), curve.label)
    return plot.svg()


@dataclass(frozen=True)
class Strip:
    """Values of one run, all shown; for `gains_chart`, (mean, low, high)."""

    label: str
    values: Sequence[float]
    style: int


def strips_chart(title: str, strips: Sequence[Strip], x_label: str) -> Markup:
    """Every frame's score as a tick, with the box from the lower to the upper quartile and the median beneath, a row a run."""
    row = 46
    told = [f"{strip.label}: median {np.median(strip.values):.3f}" for strip in strips]
    plot = Plot(title, "; ".join(told) + ".", Axis(x_label, 0, 1), Axis("", 0, 1), height=row * len(strips), left=14, right=14)
    plot.grid(y=False)
    for number, strip in enumerate(strips):
        top = plot.top + row * number

        def across(value: float) -> float:
            return plot.at(value, 0)[0]

        low, middle, high = (across(value) for value in np.quantile(strip.values, (0.25, 0.5, 0.75)))
        plot.text((plot.left, top + 12), strip.label)
        ticks = "".join(f"M{across(value):.1f} {top + 17}v9" for value in sorted(strip.values))
        plot.parts.append(Markup('<path class="tick s{}" d="{}"/>').format(strip.style % STYLES, ticks))
        form = Markup('<rect class="box s{}" x="{:.1f}" y="{}" width="{:.1f}" height="9"/>')
        plot.parts.append(form.format(strip.style % STYLES, low, top + 29, max(high - low, 1)))
        plot.segment((middle, top + 27), (middle, top + 40), "median")
    return plot.svg()


def gains_chart(title: str, strips: Sequence[Strip], x_label: str) -> Markup:
    """Means with their intervals around zero, a row each, in points of Dice; values are (mean, low, high)."""
    row = 36
    ends = [value for strip in strips for value in strip.values]
    axis = Axis.around(x_label, [*ends, 0.0])
    told = [f"{strip.label}: {strip.values[0]:+.1f} ({strip.values[1]:+.1f} to {strip.values[2]:+.1f})" for strip in strips]
    plot = Plot(title, "; ".join(told) + ".", axis, Axis("", 0, 1), height=row * len(strips), left=14, right=14)
    plot.grid(y=False)
    zero, _ = plot.at(0, 0)
    plot.segment((zero, plot.top), (zero, plot.top + plot.height), "zero")
    for number, strip in enumerate(strips):
        mean, low, high = (plot.at(value, 0)[0] for value in strip.values)
        level = plot.top + row * number + 24
        plot.text((plot.left, level - 11), strip.label)
        plot.segment((low, level), (high, level), f"whisker s{strip.style % STYLES}")
        plot.mark((mean, level), strip.style)
    return plot.svg()


def reliability_chart(title: str, bins: Sequence[tuple[float, float, int]], style: int) -> Markup:
    """Share of lesion pixels against mean probability, by bins (confidence, accuracy, pixels); below, the share of pixels."""
    filled = [entry for entry in bins if entry[2]]
    total = sum(count for *_, count in filled)
    told = "; ".join(f"{confidence:.2f} said, {accuracy:.2f} true" for confidence, accuracy, _ in filled)
    plot = Plot(title, told + ".", Axis("probability said", 0, 1), Axis("", 0, 1), height=220, right=80)
    plot.grid()
    plot.segment(plot.at(0, 0), plot.at(1, 1), "zero")
    plot.line([(confidence, accuracy) for confidence, accuracy, _ in filled], style)
    for confidence, accuracy, count in filled:
        plot.mark(plot.at(confidence, accuracy), style, radius=2 + 5 * math.sqrt(count / total))
    plot.text((plot.left + 4, plot.top + 12), "true share of lesion")
    return plot.svg()


@dataclass(frozen=True)
class Spot:
    """One labelled point; hollow for a figure that somebody else published."""

    label: str
    x: float
    y: float
    style: int
    hollow: bool = False


def scatter_chart(title: str, spots: Sequence[Spot], x_label: str, y_label: str) -> Markup:
    """Quality against cost (logarithmic); the points that no other beats in both are joined."""
    x = Axis.around(x_label, [spot.x for spot in spots], log=True)
    y = Axis.around("", [spot.y for spot in spots])
    told = "; ".join(f"{spot.label}: {spot.x:.4g}, {y_label} {spot.y:.3f}" for spot in spots)
    plot = Plot(title, told + ".", x, y, height=230)
    plot.grid()
    plot.text((plot.left + 4, plot.top + 10), y_label)
    front = undominated([(spot.x, spot.y) for spot in spots])
    if len(front) > 1:
        plot.line(front, 0, faint=True)
    places = [plot.at(spot.x, spot.y) for spot in spots]
    taken = [(h - 5, v - 5, h + 5, v + 5) for h, v in places]
    for spot, place in zip(spots, places, strict=True):
        plot.mark(place, spot.style, hollow=spot.hollow)
        _label(plot, spot.label, place, taken)
    return plot.svg()


def undominated(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in x (less is better) without losing in y (more is better), from cheap to dear."""
    front: list[Point] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def _label(plot: Plot, label: str, place: Point, taken: list[tuple[float, float, float, float]]) -> None:
    """Writes the label at the nearest free place beside its point, with a leader where it had to move; notes what it covers."""
    (h, v), label = place, cut(label, WIDTH / 2 - 12)
    width = len(label) * LETTER
    lefts = (h + 8, h - 8 - width)
    shifts = sorted((k * 7 for k in range(-30, 31)), key=abs)
    for left, shift in ((left, shift) for shift in shifts for left in lefts):
        box = (left, v + shift - 6, left + width, v + shift + 7)
        inside = box[0] >= plot.left and box[2] <= WIDTH - 2 and box[1] >= plot.top + 12 and box[3] <= plot.top + plot.height
        if inside and not any(box[0] < r and l < box[2] and box[1] < b and t < box[3] for l, t, r, b in taken):  # noqa: E741
            break
    taken.append(box)
    if abs(shift) > _LINE:
        plot.segment(place, (box[0] if left > h else box[2], v + shift), "leader")
    plot.text((left, v + shift + 4), label)
