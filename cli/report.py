"""`polyp-difom report`: evaluated runs side by side, as a table and as one page with charts and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyp_difom.cli import options
from polyp_difom.cli.console import Terminal, echo, guarded, print_json, print_table


@guarded
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders, or folders that `evaluate -o` made; runs of objective `none` are the controls."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="HTML file to write; replaced if it exists.")] = Path("report.html"),
    protocol: Annotated[str, typer.Option(help="per-image, pranet or pooled-6.")] = "per-image",
    as_json: options.Json = False,
) -> None:
    """Set evaluated runs side by side: a table here, and one self-contained HTML page with charts and overlays."""
    from polyp_difom.pipeline.report.comparison import compare
    from polyp_difom.pipeline.report.page import write_report
    from polyp_difom.pipeline.report.verdicts import told

    reports = compare(runs, protocol, Terminal())
    write_report(out, reports, title="polyp-difom report")
    if as_json:
        print_json({"page": str(out), **told(reports)})
        return
    rows = []
    for r in reports:
        for s in r.summaries:
            gain = r.differences.get(s.dataset)
            absent = "is the control" if r.objective == "none" else "no such control" if r.objective else "training unknown"
            change = f"{gain.mean:+.4f} ({gain.interval[0]:+.4f} to {gain.interval[1]:+.4f})" if gain else absent
            rows.append([r.name, r.objective or "?", s.dataset, str(s.images), f"{s.mdice:.4f}", f"{s.miou:.4f}", change])
    print_table(["run", "objective", "data set", "images", "mDice", "mIoU", "gain over the control (95 %)"], rows)
    echo(f"page with pictures: {out}")
