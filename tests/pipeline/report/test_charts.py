"""Charts: values land where the axes say, labels keep clear of each other, text stays text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from polyp_difom.pipeline.report.charts import (
    Curve,
    Spot,
    Strip,
    curves_chart,
    gains_chart,
    reliability_chart,
    scatter_chart,
    spread,
    strips_chart,
    undominated,
)
from polyp_difom.pipeline.report.plot import WIDTH, Axis, Plot


def numbers(element: ET.Element, *names: str) -> list[float]:
    return [float(element.attrib[name]) for name in names]


def boxes(svg: ET.Element, labels: set[str]) -> list[tuple[float, float, float, float]]:
    """Where the texts of these labels stand, at six pixels a letter."""
    found = []
    for text in svg.iter("text"):
        if text.text in labels:
            x, y = numbers(text, "x", "y")
            found.append((x, y - 6, x + 6 * len(text.text), y + 4))
    return found


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis("", 0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (Axis("", -6.5, 4.5), [-5, 0]),
        (Axis("", 0.79, 0.82), [0.79, 0.8, 0.81, 0.82]),
        (Axis("", 1.5, 60, log=True), [2, 5, 10, 20, 50]),
        (Axis("", 0.9, 2000, log=True), [1, 10, 100, 1000]),
    ],
)
def test_ticks_are_round_and_inside_the_range(axis: Axis, ticks: list[float]) -> None:
    assert axis.ticks() == pytest.approx(ticks)


@pytest.mark.parametrize("values", [[0.5], [0.0], [1e-9, 1.0], [-3.0, -3.0], [7.0, 7.0001]])
def test_an_axis_around_any_values_has_room_and_ticks(values: list[float]) -> None:
    axis = Axis.around("", values)
    assert axis.low < min(values)
    assert axis.high > max(values)
    assert 1 <= len(axis.ticks()) <= 7


def test_a_logarithmic_axis_puts_the_geometric_mean_in_the_middle() -> None:
    assert Axis("", 1, 100, log=True).share(10) == pytest.approx(0.5)


def test_points_land_inside_the_plot_area_with_y_upwards() -> None:
    plot = Plot("", "", Axis("", 0, 10), Axis("", 0, 1), height=100, left=40, right=12)
    assert plot.at(0, 0) == (40, plot.top + 100)
    assert plot.at(10, 1) == (WIDTH - 12, plot.top)


def test_labels_are_spread_in_order_and_stay_inside() -> None:
    placed = spread([50, 51, 52, 10], 14, 4, 100)
    assert sorted(placed) == [placed[3], placed[0], placed[1], placed[2]]
    ranked = sorted(placed)
    assert all(b - a >= 14 for a, b in pairwise(ranked))
    assert max(spread([99, 100, 100], 14, 4, 100)) <= 100


def test_a_line_leads_from_every_curves_end_to_its_label_however_crowded_the_ends_are() -> None:
    curves = [Curve(f"c{number}", [(1, 0.1), (5, 0.5 + number / 1000)], number) for number in range(5)]
    svg = str(curves_chart("title", curves, Axis("", 0, 1)))
    ends = re.findall(r'class="leader s(\d)" x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)"', svg)
    marks = re.findall(r'points="[\d.,]+ ([\d.]+),([\d.]+)"', svg)
    labels = {text: float(v) for v, text in re.findall(r'y="([\d.]+)" text-anchor="start">(c\d)<', svg)}
    assert [(x1, y1) for _, x1, y1, *_ in ends] == marks
    assert [float(y2) + 4 for *_, y2 in ends] == pytest.approx([labels[f"c{style}"] for style, *_ in ends], abs=0.06)
    places = sorted(labels.values())
    assert min(below - above for above, below in pairwise(places)) >= 13.9


def test_the_front_holds_what_nothing_cheaper_beats() -> None:
    assert undominated([(3, 0.9), (1, 0.5), (2, 0.4), (1, 0.6), (5, 0.9)]) == [(1, 0.6), (3, 0.9)]


def test_labels_of_crowded_points_do_not_overlap_and_stay_on_the_chart() -> None:
    spots = [Spot(f"model number {n}", 10 + n / 100, 0.8 + n / 1000, n) for n in range(9)]
    svg = ET.fromstring(scatter_chart("t", spots, "parameters", "Dice"))  # noqa: S314
    placed = boxes(svg, {spot.label for spot in spots})
    assert len(placed) == 9
    assert not [
        (a, b) for n, a in enumerate(placed) for b in placed[:n] if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    ]
    assert all(left >= 0 and right <= WIDTH for left, _, right, _ in placed)


def test_a_name_too_long_for_the_chart_keeps_its_end() -> None:
    long = "a run of many words and settings, with a name that no chart can hold, seed 1"
    for svg in (strips_chart("t", [Strip(long, [0.5], 0)], ""), scatter_chart("t", [Spot(long, 2, 0.5, 0)], "", "")):
        (label,) = [text.text or "" for text in ET.fromstring(svg).iter("text") if (text.text or "").startswith("…")]  # noqa: S314
        assert label.endswith("seed 1")
        assert len(label) <= WIDTH / 7


def test_published_points_are_hollow() -> None:
    svg = scatter_chart("t", [Spot("ours", 2, 0.8, 1), Spot("theirs", 30, 0.9, 0, hollow=True)], "parameters", "Dice")
    assert [mark.attrib["class"] for mark in ET.fromstring(svg).iter("circle")] == ["s0 hollow"]  # noqa: S314
    assert 'class="s1 full"' in svg


def test_a_strip_shows_every_value_its_box_and_its_median() -> None:
    svg = ET.fromstring(strips_chart("t", [Strip("run", [0.0, 0.25, 0.5, 0.75, 1.0], 2)], "Dice"))  # noqa: S314
    (ticks,) = svg.iter("path")
    starts = [float(x) for x in re.findall(r"M([\d.]+)", ticks.attrib["d"])]
    assert starts == pytest.approx([14, 92, 170, 248, 326])
    (box,) = svg.iter("rect")
    assert numbers(box, "x", "width") == pytest.approx([92, 156])
    (median,) = [line for line in svg.iter("line") if line.attrib["class"] == "median"]
    assert numbers(median, "x1") == [170]


def test_gains_are_drawn_around_a_zero_line() -> None:
    svg = ET.fromstring(gains_chart("t", [Strip("up", (2.0, 1.0, 3.0), 0), Strip("down", (-2.0, -3.0, -1.0), 1)], "points"))  # noqa: S314
    (zero,) = [numbers(line, "x1")[0] for line in svg.iter("line") if line.attrib["class"] == "zero"]
    up, down = [numbers(line, "x1", "x2") for line in svg.iter("line") if "whisker" in line.attrib["class"]]
    assert down[0] < down[1] < zero < up[0] < up[1]
    assert svg.findtext("desc") == "up: +2.0 (+1.0 to +3.0); down: -2.0 (-3.0 to -1.0)."


def test_a_bin_holding_more_pixels_has_a_larger_mark_and_an_empty_one_none() -> None:
    svg = ET.fromstring(reliability_chart("t", [(0.1, 0.2, 90), (0.5, 0.5, 0), (0.9, 0.8, 10)], 0))  # noqa: S314
    large, small = [numbers(mark, "r")[0] for mark in svg.iter("circle")]
    assert large > small


def test_series_differ_in_dash_and_in_mark() -> None:
    curves = [Curve(f"c{n}", [(0, 0.1 * n), (1, 0.1 * n)], n) for n in range(5)]
    svg = ET.fromstring(curves_chart("t", curves, Axis("", 0, 1)))  # noqa: S314
    dashes = [line.attrib["stroke-dasharray"] for line in svg.iter("polyline")]
    assert len(set(dashes)) == 5
    marks = {len(mark.attrib["points"].split()) for mark in svg.iter("polygon")}
    assert marks == {3, 4, 8}


def test_text_stays_text() -> None:
    svg = curves_chart("<b>&", [Curve("<script>", [(0, 0.1), (1, 0.2)], 0)], Axis("", 0, 1))
    assert "<script>" not in svg
    assert [text.text for text in ET.fromstring(svg).iter("title")] == ["<b>&"]  # noqa: S314
