"""`polyp-difom report`: evaluated runs side by side, as a table and as one page with pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyp_difom.cli import options
from polyp_difom.cli.console import Terminal, guarded, print_json, print_table


@guarded
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders, evaluated on the same frames; one of objective `none` is the control.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="HTML file to write; replaced if it exists.")] = Path("report.html"),
    protocol: Annotated[str, typer.Option(help="per-image, pranet or pooled-6.")] = "per-image",
    as_json: options.Json = False,
) -> None:
    """Set evaluated runs side by side: a table here, and one self-contained HTML page with curves and overlays."""
    from dataclasses import asdict

    from polyp_difom.pipeline.comparison import compare, provenance
    from polyp_difom.pipeline.report import write_report

    reports = compare(runs, protocol, Terminal())
    write_report(out, reports, title="polyp-difom report", provenance=provenance(runs[0]))
    if as_json:
        gains = {r.name: {name: asdict(d) for name, d in r.differences.items()} for r in reports}
        sets = {r.name: [asdict(s) for s in r.summaries] for r in reports}
        print_json({"page": str(out), "sets": sets, "gains_over_control": gains})
        return
    rows = []
    for r in reports:
        for s in r.summaries:
            gain = r.differences.get(s.dataset)
            change = (
                f"{gain.mean:+.4f} ({gain.interval[0]:+.4f} to {gain.interval[1]:+.4f})"
                if gain
                else ("is the control" if r.objective == "none" else "no such control")
            )
            rows.append([r.name, r.objective, s.dataset, str(s.images), f"{s.mdice:.4f}", f"{s.miou:.4f}", change])
    print_table(["run", "objective", "data set", "images", "mDice", "mIoU", "against the control (95 %)"], rows)
    typer.echo(f"page with pictures: {out}")
