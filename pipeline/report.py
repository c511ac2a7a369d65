"""Runs side by side on one self-contained HTML page: figures with intervals, plain words about the teacher, pictures, origins.

The page needs no network and no script; every text in it is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polyp_difom.pipeline.files import write_text
from polyp_difom.pipeline.metrics import PairedDifference, Summary
from polyp_difom.pipeline.scoring import PROTOCOLS

CONTROL = "none"
_WIDTH = 640
_CHART = (320, 150)


@dataclass(frozen=True, eq=False)
class GalleryItem:
    """One picture, uint8 [h, w, 3], with its caption; items are shown in the order given, so put failures first."""

    caption: str
    image: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class RunReport:
    """What the page says about one run.

    Attributes:
        objective: `none` makes the run a control.
        parameters: of the student as exported.
        differences: Dice of this run minus its control's, by dataset; empty for a control.
        curve: one mapping per epoch, with `epoch` and `val_dice`; empty when there is no history.
    """

    name: str
    student: str
    objective: str
    teachers: tuple[str, ...]
    seed: int
    epochs: int
    parameters: int
    summaries: list[Summary]
    differences: dict[str, PairedDifference] = field(default_factory=dict)
    gallery: list[GalleryItem] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)


def write_report(out: Path, runs: list[RunReport], title: str, provenance: Mapping[str, str]) -> None:
    """Write the page for `runs` to `out`; an existing page is replaced in one step."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update(score=_score, points=_points, picture=_picture, millions=_millions)
    template = environment.from_string((files("polyp_difom.pipeline") / "report.html.j2").read_text(encoding="utf-8"))
    protocols = sorted({summary.protocol for run in runs for summary in run.summaries})
    page = template.render(
        title=title,
        runs=runs,
        control=CONTROL,
        protocols=[(PROTOCOLS[name], _sets(runs, name)) for name in protocols],
        verdicts=[(run, verdicts(run)) for run in runs if run.objective != CONTROL],
        charts=[(run, _chart(run, runs)) for run in runs if run.curve],
        chart_size=_CHART,
        provenance=provenance,
    )
    write_text(out, page)


def verdicts(run: RunReport) -> list[tuple[str, str]]:
    """One (verdict, sentence) per dataset on what the objective did to Dice: `helped`, `no gain`, `harmed` or `unknown`.

    A gain counts only when the whole 95 % interval of the paired difference lies above zero.
    """
    told = [_verdict(run, dataset, difference) for dataset, difference in run.differences.items()]
    untold = list(dict.fromkeys(summary.dataset for summary in run.summaries if summary.dataset not in run.differences))
    if untold or not told:
        place = f"On {', '.join(untold)}, there is" if told else "There is"
        told.append(
            (
                "unknown",
                f"{place} no control to compare with, so nothing shows that {_cause(run)} helped. "
                "Train the same student with objective none, evaluate it on the same frames, and report both.",
            )
        )
    return told


def _verdict(run: RunReport, dataset: str, difference: PairedDifference) -> tuple[str, str]:
    low, high = difference.interval
    evidence = f"{_points(difference.mean)} points of Dice (95 % interval {_points(low)} to {_points(high)})"
    share = f"{difference.improved:.0%} of {difference.images} frames scored higher than under the control"
    if difference.helped:
        return "helped", f"On {dataset}, {_cause(run)} helped: {evidence}; {share}."
    if difference.harmed:
        return "harmed", f"On {dataset}, {_cause(run)} did not help but harm: {evidence}; {share}."
    return "no gain", f"On {dataset}, {_cause(run)} did not help: {evidence} cannot be told from zero; {share}."


def _cause(run: RunReport) -> str:
    if run.objective == "shuffled":
        return "training on the wrong frames' features (the shuffled control)"
    if len(run.teachers) == 1:
        return f"the teacher {run.teachers[0]}"
    return f"the teachers {', '.join(run.teachers)}" if run.teachers else f"the objective {run.objective}"


def _sets(runs: list[RunReport], protocol: str) -> list[str]:
    """Datasets scored under a protocol, in the order the runs bring them."""
    return list(dict.fromkeys(summary.dataset for run in runs for summary in run.summaries if summary.protocol == protocol))


def _chart(run: RunReport, runs: list[RunReport]) -> dict[str, Any]:
    """SVG coordinates of a run's validation Dice, with its control's beneath: the same student and seed, objective none."""
    rivals = [
        other
        for other in runs
        if other.objective == CONTROL != run.objective
        and (other.student, other.seed) == (run.student, run.seed)
        and other.curve
    ]
    curves = [_curve(run), *(_curve(other) for other in rivals[:1])]
    last = max(max(1, curve[-1][0]) for curve in curves)
    width, height = _CHART

    def line(curve: list[tuple[int, float]]) -> str:
        return " ".join(f"{width * epoch / last:.1f},{height * (1 - dice):.1f}" for epoch, dice in curve)

    best = max(curves[0], key=lambda point: point[1])
    return {
        "line": line(curves[0]),
        "control": line(curves[1]) if rivals else None,
        "last": last,
        "best": best,
        "mark": (width * best[0] / last, height * (1 - best[1])),
    }


def _curve(run: RunReport) -> list[tuple[int, float]]:
    return [(int(row["epoch"]), float(row["val_dice"])) for row in run.curve]


def _score(value: float | None) -> str:
    """A score in 0..1 with three digits; a dash where there is none."""
    return "–" if value is None else f"{value:.3f}"


def _points(value: float) -> str:
    """A difference in hundredths, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−")


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _picture(image: NDArray[np.uint8]) -> str:
    """A data address of the picture as JPEG, at most 640 pixels wide."""
    picture = Image.fromarray(image)
    if picture.width > _WIDTH:
        picture = picture.resize((_WIDTH, round(picture.height * _WIDTH / picture.width)), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode("ascii")
