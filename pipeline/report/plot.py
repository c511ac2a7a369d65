"""One chart under construction: axes, lines, marks and texts as inline SVG; `charts.py` makes whole charts of them.

Colours come from the page's style sheet by series number (`s0`, `s1`, ...); every text is escaped. Units: view box pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 340
STYLES = 5
"""Different series; a sixth looks like the first, and its label tells them apart."""
DASHES = ("none", "7 4", "2 3", "9 3 2 3", "4 2")
LETTER = 7.0
"""Width of a letter at 12 pixels, about."""
Point = tuple[float, float]


@dataclass(frozen=True)
class Panel:
    """One chart with the line beneath it."""

    svg: Markup
    caption: str


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
            text = cut(text, WIDTH - at[0])
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


def cut(text: str, width: float) -> str:
    """`text` in so many pixels; a longer one loses its beginning, because the ends of names tell them apart."""
    letters = int(width / LETTER)
    return text if len(text) <= letters else f"…{text[len(text) - letters + 1 :]}"
