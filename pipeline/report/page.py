"""Evaluated runs side by side on one self-contained HTML page: figures with intervals, plain words, charts, pictures.

The page needs no network and no script; every text in it is escaped.
"""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.evaluation.scoring import PROTOCOLS
from polyp_difom.pipeline.files import write_text
from polyp_difom.pipeline.report import panels
from polyp_difom.pipeline.report.agreements import agreements
from polyp_difom.pipeline.report.learning import last_values, learning
from polyp_difom.pipeline.report.origins import UNKNOWN
from polyp_difom.pipeline.report.values import RunReport
from polyp_difom.pipeline.report.verdicts import Group, grouped, points, verdicts, word_of

_WIDTH = 640


def write_report(out: Path, runs: list[RunReport], title: str) -> None:
    """Write the page for `runs` to `out`; an existing page is replaced in one step.

    Raises:
        UsageError: figures of several protocols, which one page must not mix. RunError: the disk refuses.
    """
    protocols = sorted({summary.protocol for run in runs for summary in run.summaries})
    if len(protocols) != 1:
        raise UsageError("one page holds one protocol", got=" and ".join(protocols) or "no figures", wanted="exactly one")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (files("polyp_difom.pipeline.report") / name).read_text(encoding="utf-8")),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(score=_score, points=points, picture=_picture, millions=_millions)
    groups = grouped(runs)
    labels = list(dict.fromkeys(summary.dataset for run in runs for summary in run.summaries))
    shared = _shared(runs)
    page = environment.get_template("page.html.j2").render(
        title=title,
        runs=runs,
        groups=groups,
        labels=labels,
        protocol=PROTOCOLS[protocols[0]],
        verdicts=[(group, verdicts(group)) for group in groups if group.taught],
        cautions=list(dict.fromkeys(caution for run in runs for caution in run.cautions)),
        word_of=word_of,
        panels=_panels(groups, runs, labels, protocols[0]),
        rivals={label: found for label in labels if (found := panels.rivals(groups, label))},
        last_values=[(run, rows) for run in runs if (rows := last_values(run.curve))],
        shared=shared,
        own=[(run.name, _own(run, shared)) for run in runs],
    )
    write_text(out, page)


def _panels(groups: list[Group], runs: list[RunReport], labels: list[str], protocol: str) -> dict[str, Any]:
    """All charts, by section and test set; learning curves by run."""
    curves = {run.name: run.curve for run in runs}
    controls = {run.name: (run.control, curves[run.control]) for run in runs if run.control in curves}
    return {
        "gains": {label: panel for label in labels if (panel := panels.gains(groups, label))},
        "distributions": {label: panels.distributions(groups, label) for label in labels},
        "reliability": {label: found for label in labels if (found := panels.reliability(groups, label))},
        "pareto": {label: found for label in labels if (found := panels.pareto(groups, label, protocol))},
        "agreements": agreements(groups),
        "learning": {run.name: learning(run.name, run.curve, controls.get(run.name)) for run in runs if run.curve},
    }


def _shared(runs: list[RunReport]) -> dict[str, str]:
    """Facts that are the same for all runs of which they are known, where those are several."""
    found = {}
    for name in runs[0].facts:
        known = [run.facts[name] for run in runs if run.facts.get(name, UNKNOWN) != UNKNOWN]
        if len(known) > 1 and len(set(known)) == 1:
            found[name] = known[0]
    return found


def _own(run: RunReport, shared: dict[str, str]) -> dict[str, str]:
    """A run's facts that are not shared, and at the end the names of those that nobody recorded."""
    own = {name: value for name, value in run.facts.items() if value not in (shared.get(name), UNKNOWN)}
    lacking = [name for name, value in run.facts.items() if value == UNKNOWN]
    return own | ({UNKNOWN: ", ".join(lacking)} if lacking else {})


def _score(value: float | None, digits: int = 3) -> str:
    """A score with three digits; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def _millions(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e6:,.2f} M"


def _picture(image: NDArray[np.uint8]) -> str:
    """A data address of the picture as JPEG, at most 640 pixels wide."""
    picture = Image.fromarray(image)
    if picture.width > _WIDTH:
        picture = picture.resize((_WIDTH, round(picture.height * _WIDTH / picture.width)), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode("ascii")
