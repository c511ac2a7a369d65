"""`polyp-difom agree`: how far trained students have come to see what the teachers see."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polyp_difom.cli import options
from polyp_difom.cli.console import Terminal, guarded, print_json, print_table

if TYPE_CHECKING:
    from polyp_difom.pipeline.evaluation.agreement import Agreement

MEASURES = {"cka": "CKA", "explained": "R2", "cosine": "cosine"}


@guarded
def agree(
    runs: Annotated[list[Path], typer.Argument(help="Run folders: a taught run, then its control.")],
    cache: Annotated[
        str | None, typer.Option(help="Store with the teachers to compare with; by default each run's own.")
    ] = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Agreement with every stored teacher on validation frames: linear CKA, and what a linear map explains (R2, cosine)."""
    from dataclasses import asdict

    from polyp_difom.pipeline.evaluation.agreement import agree as compare

    found = {str(run): compare(run, cache, device, Terminal(quiet)) for run in runs}
    if as_json:
        print_json({"runs": {name: asdict(agreement) for name, agreement in found.items()}})
    else:
        _print(found)


def _print(found: dict[str, Agreement]) -> None:
    """A row for each teacher, scale, tap and band, the runs side by side; below, the means over what all of them have."""
    from polyp_difom.pipeline.evaluation.agreement import mean
    from polyp_difom.pipeline.evaluation.tables import number

    rows = {name: {row.place: row for row in agreement.rows} for name, agreement in found.items()}
    places = list(dict.fromkeys(place for held in rows.values() for place in held))
    shared = {place for place in places if all(place in held for held in rows.values())}
    table = [
        [*place, *(number(getattr(held.get(place), what, None), 3) for what in MEASURES for held in rows.values())]
        for place in places
    ]
    if shared:
        means = [mean(agreement.rows, shared) for agreement in found.values()]
        table.append(["mean", "", "", "whole", *(number(each.get(what), 3) for what in MEASURES for each in means)])
    several = len(found) > 1
    columns = [f"{text} {Path(name).name}" if several else text for text in MEASURES.values() for name in found]
    frames = ", ".join(dict.fromkeys(f"{held.frames} validation frames" for held in found.values()))
    title = f"agreement with the teachers on {frames}; linear maps fitted on train frames"
    print_table(["teacher", "scale", "tap", "band", *columns], table, title=title)
