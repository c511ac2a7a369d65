"""Figures as tables: the columns of results.csv, and results.md for papers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polyp_difom.pipeline.evaluation.metrics import Summary
from polyp_difom.pipeline.evaluation.scoring import PROTOCOLS

Figures = tuple[str, int, Summary]
"""Split, number of frames left out as leaked (0: everything scored), and the figures."""

_PLAIN = ("miou", "precision", "recall", "mae", "weighted_f", "s_measure", "e_mean", "e_max", "hd95")

_HEAD = (
    *("data set", "split", "images", "mDice (95 % interval)", "mIoU", "precision", "recall"),
    *("wF", "S", "mE", "max E", "MAE", "HD95", "ECE"),
)


def csv_table(figures: Sequence[Figures]) -> tuple[list[str], list[dict[str, Any]]]:
    """(columns, rows), one row for each data set, split, protocol, and once more where leaked frames were left out."""
    rows = []
    for split, left_out, summary in figures:
        low, high = summary.dice_interval
        rows.append({
            "dataset": summary.dataset, "split": split, "protocol": summary.protocol, "images": summary.images,
            "mdice": summary.mdice, "dice_low": low, "dice_high": high, **{name: getattr(summary, name) for name in _PLAIN},
            "ece": summary.calibration.ece if summary.calibration else None, "left_out": left_out,
            **{f"dice_{band.name}": band.mdice for band in summary.dice_by_size},
        })  # fmt: skip
    return list(rows[0]), rows


def markdown(about: Mapping[str, Any], figures: Sequence[Figures]) -> str:
    """A Markdown table a protocol; the protocol, the intervals and what was left out are named."""
    parts = [f"# {_escaped(about['name'])}\n\nWhat was scored: {about['kind']} `{_escaped(about['path'])}`"]
    if about["sha256"]:
        parts[0] += f", sha256 `{about['sha256'][:16]}`"
    head = f"| {' | '.join(_HEAD)} |"
    rule = "|---|---|" + "---:|" * (len(_HEAD) - 2)
    for protocol in dict.fromkeys(summary.protocol for _, _, summary in figures):
        mine = [entry for entry in figures if entry[2].protocol == protocol]
        about_protocol = f"## Protocol `{protocol}`: {PROTOCOLS[protocol].summary}"
        parts.append("\n".join([about_protocol, "", head, rule, *(_row(*entry) for entry in mine)]))
    parts.append(
        "The interval is a bootstrap over images: it covers the choice of images, not the luck of training. wF weighted F, "
        "S S-measure, mE and max E mean and maximal E-measure, HD95 in pixels of the mask's own size, ECE in a band around the "
        "lesion's border. "
        "Figures of different protocols are not comparable. Research software, not a medical device."
    )
    return "\n\n".join(parts) + "\n"


def _row(split: str, left_out: int, summary: Summary) -> str:
    low, high = summary.dice_interval
    name = _escaped(summary.dataset) + (f", without {left_out} leaked frames" if left_out else "")
    ece = summary.calibration.ece if summary.calibration else None
    values = (
        *(summary.miou, summary.precision, summary.recall, summary.weighted_f, summary.s_measure),
        *(summary.e_mean, summary.e_max, summary.mae),
    )
    cells = [
        *(name, split, str(summary.images), f"{summary.mdice:.3f} ({low:.3f} to {high:.3f})"),
        *(number(value) for value in values),
        *(number(summary.hd95, 1), number(ece)),
    ]
    return f"| {' | '.join(cells)} |"


def number(value: float | None, digits: int = 3) -> str:
    """A figure for a table; a dash where it was not computed."""
    return "-" if value is None else f"{value:.{digits}f}"


def _escaped(text: str) -> str:
    """`text` in one cell of a Markdown table, or between backticks."""
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'")
