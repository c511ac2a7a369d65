"""Charts as inline SVG: readable without colour vision (shape, dash, direct labels), in light and dark, without a script.

Colours come from the page's style sheet by series number (`s0`, `s1`, ...); every text is escaped. Units: view box pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

WIDTH = 340
STYLES = 5
"""Different series; a sixth looks like the first, and its label tells them apart."""
DASHES = ("none", "7 4", "2 3", "9 3 2 3", "4 2")
_LETTER = 7.0
"""Width of a letter at 12 pixels, about."""
_LINE = 14
Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A range of values, linear or logarithmic, with its label."""

    label: str
    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, label: str, values: Sequence[float], *, log: bool = False) -> Axis:
        """Just wide enough for `values`, with a little room; values of a logarithmic axis must be positive."""
        low, high = min(values), max(values)
        if log:
            return cls(label, low / 1.6, high * 1.6, True)
        room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        return cls(label, low - room, high + room)

    def share(self, value: float) -> float:
        """Where `value` lies, 0 at the low end, 1 at the high end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values inside the range: at most six, 1-2-5 steps."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            inside = [m * 10.0**k for k in decades for m in (1, 2, 5) if self.low <= m * 10.0**k <= self.high]
            return inside if len(inside) <= 6 else [value for value in inside if f"{value:e}".startswith("1")]
        rough = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


class Plot:
    """One chart under construction: a plot area with axes, marks and texts in it.

    Args:
        title, description: what a screen reader says.
        height: of the plot area; left, right: room beside it.
    """

    def __init__(self, title: str, description: str, x: Axis, y: Axis, *, height: int = 180, left: int = 40, right: int = 12):
        self.title, self.description, self.x, self.y = title, description, x, y
        self.left, self.top, self.width, self.height = left, 10, WIDTH - left - right, height
        self.parts: list[Markup] = []

    def at(self, x: float, y: float) -> Point:
        """Pixels of a point."""
        return self.left + self.width * self.x.share(x), self.top + self.height * (1 - self.y.share(y))

    def grid(self, *, x: bool = True, y: bool = True) -> None:
        """Hairlines with values along the axes named."""
        bottom = self.top + self.height
        if y:
            for value in self.y.ticks():
                _, v = self.at(self.x.low, value)
                self.segment((self.left, v), (self.left + self.width, v), "axis")
                self.text((self.left - 5, v + 4), f"{value:.6g}", "end")
        if x:
            for value in self.x.ticks():
                h, _ = self.at(value, self.y.low)
                self.segment((h, self.top), (h, bottom), "axis")
                self.text((h, bottom + 15), f"{value:.6g}", "middle")
        self.text((self.left + self.width / 2, bottom + 31), self.x.label, "middle")

    def segment(self, start: Point, end: Point, look: str) -> None:
        """A straight line of a CSS class between two pixels."""
        form = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
        self.parts.append(form.format(look, *start, *end))

    def text(self, at: Point, text: str, anchor: str = "start") -> None:
        """A label at a pixel; one that starts there is cut to fit the chart."""
        if anchor == "start":
            text = _cut(text, WIDTH - at[0])
        form = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
        self.parts.append(form.format(*at, anchor, text))

    def line(self, points: Sequence[Point], style: int, *, faint: bool = False) -> None:
        """A polyline through values, in the dash of its series."""
        told = " ".join(f"{h:.1f},{v:.1f}" for h, v in (self.at(*point) for point in points))
        dash = DASHES[style % STYLES]
        look = f"s{style % STYLES}{' faint' if faint else ''}"
        self.parts.append(Markup('<polyline class="{}" stroke-dasharray="{}" points="{}"/>').format(look, dash, told))

    def mark(self, at: Point, style: int, *, hollow: bool = False, radius: float = 4.5) -> None:
        """The sign of a series at a pixel: circle, square, triangle, diamond, cross."""
        (h, v), r = at, radius
        look = f"s{style % STYLES}{' hollow' if hollow else ' full'}"
        corners = (
            (),
            ((-r, -r), (r, -r), (r, r), (-r, r)),
            ((0, -1.3 * r), (1.2 * r, r), (-1.2 * r, r)),
            ((0, -1.4 * r), (1.4 * r, 0), (0, 1.4 * r), (-1.4 * r, 0)),
            ((-r, -r), (0, -r / 3), (r, -r), (r / 3, 0), (r, r), (0, r / 3), (-r, r), (-r / 3, 0)),
        )[style % STYLES]
        if not corners:
            self.parts.append(Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/>').format(look, h, v, r))
        else:
            told = " ".join(f"{h + dx:.1f},{v + dy:.1f}" for dx, dy in corners)
            self.parts.append(Markup('<polygon class="{}" points="{}"/>').format(look, told))

    def svg(self) -> Markup:
        """The whole chart."""
        form = Markup('<svg viewBox="0 0 {} {}" role="img"><title>{}</title><desc>{}</desc>{}</svg>')
        height = self.top + self.height + 40
        return form.format(WIDTH, height, self.title, self.description, Markup("").join(self.parts))


def _cut(text: str, width: float) -> str:
    """`text` in so many pixels; a longer one loses its beginning, because the ends of names tell them apart."""
    letters = int(width / _LETTER)
    return text if len(text) <= letters else f"…{text[len(text) - letters + 1 :]}"


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
    """Values over epochs; labels at the right ends."""
    last = max(point[0] for curve in curves for point in curve.points)
    room = min(130, round(max(len(curve.label) for curve in curves) * _LETTER) + 12)
    ends = ", ".join(f"{curve.label} {curve.points[-1][1]:.3f}" for curve in curves)
    plot = Plot(title, f"Last values: {ends}.", Axis("epoch", 0, max(last, 1)), y, right=room)
    plot.grid()
    ends_at = [plot.at(*curve.points[-1])[1] for curve in curves]
    labels_at = spread(ends_at, _LINE, plot.top + 4, plot.top + plot.height)
    for curve, label_at in zip(curves, labels_at, strict=True):
        plot.line(curve.points, curve.style)
        plot.mark(plot.at(*curve.points[-1]), curve.style, radius=3)
        plot.text((WIDTH - room + 8, label_at + 4), curve.label)
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
    (h, v), label = place, _cut(label, WIDTH / 2 - 12)
    width = len(label) * _LETTER
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
