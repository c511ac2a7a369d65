"""`polyp-difom data`: check a data folder, or draw a synthetic one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polyp_difom.cli import options
from polyp_difom.cli.console import Terminal, echo, guarded, print_json, print_table

if TYPE_CHECKING:
    from polyp_difom.pipeline.data.audit import AuditReport, Comparison
    from polyp_difom.pipeline.data.pairing import Pair
    from polyp_difom.pipeline.data.twins import Twin

SHOWN = 10
"""Bad files and twins listed; `--json` has all."""

app = typer.Typer(help="Check a data folder, or draw a synthetic one.", no_args_is_help=True)


@app.command()
@guarded
def check(
    folder: Annotated[Path, typer.Argument(help="Data folder.")],
    layout: Annotated[str | None, typer.Option(help="Layout, where it cannot be found automatically.")] = None,
    split_by: options.SplitBy = "auto",
    against: Annotated[
        list[str] | None,
        typer.Option(help="Folder that was trained on, or LAYOUT=FOLDER: look for its frames here; repeatable."),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Report bad files, odd masks, and frames that are identical or near twins. Exit code 3 if a file is bad."""
    from dataclasses import asdict

    from polyp_difom.cache.errors import DataError
    from polyp_difom.pipeline.data.audit import audit
    from polyp_difom.pipeline.data.sources import parse_source

    terminal = Terminal(quiet)

    def tracked(pairs: Sequence[Pair]) -> Iterator[Pair]:
        with terminal.task("checking", len(pairs)) as advance:
            for pair in pairs:
                yield pair
                advance(1)

    others = [parse_source(text) for text in against or []]
    report = audit(folder, layout, split_by, tracked, others)
    if as_json:
        print_json(asdict(report))
    else:
        _print_report(report)
    if report.errors:
        raise DataError(
            f"{len(report.errors)} of {report.frames} frames cannot be used", where=folder,
            remedy="mend those named above or take them out; `extract` refuses them too",
        )  # fmt: skip


@app.command()
@guarded
def synth(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    count: Annotated[int, typer.Option(help="Frames to draw.")] = 200,
    size: Annotated[int, typer.Option(help="Frame side in pixels.")] = 256,
    seed: Annotated[int, typer.Option(help="Another seed draws other frames.")] = 0,
    quiet: options.Quiet = False,
) -> None:
    """Draw a synthetic colonoscopy set with exact masks."""
    from polyp_difom.pipeline.data.synthetic import write_dataset

    with Terminal(quiet).task("drawing frames", count) as advance:
        write_dataset(out, count, size, seed, progress=lambda done: advance(1))
    echo(f"{out}: {count} frames of {size} x {size}")


def _print_report(report: AuditReport) -> None:
    def spread(values: dict[str, float]) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in values.items()) or "none readable"

    rows = [
        ["layout", report.layout],
        ["split", report.split],
        ["frames", f"{report.frames} ({', '.join(f'{count} {name}' for name, count in report.per_split.items())})"],
        ["height", spread(report.height)],
        ["width", spread(report.width)],
        ["lesion share", spread({name: round(value, 4) for name, value in report.lesion_share.items()})],
        ["frames without lesion", str(len(report.empty_masks))],
        ["masks with other values than 0 and 255", f"{report.non_binary_masks} (read as lesion above 127)"],
        ["groups of identical frames", str(len(report.identical))],
        ["of these across splits", str(len(report.leaks))],
        ["groups of twins (above 0.95)", _groups(report)],
        ["test frames with a near-twin outside test", str(len(report.near_twins))],
        ["validation frames with a near-twin in train", str(len(report.validation_twins))],
        *([f"frames with a twin in {other.root}", f"{len(other.twins)}, {_identical(other)}"] for other in report.against),
        ["files that cannot be used", str(len(report.errors))],
    ]
    print_table(["finding", report.root], rows)
    for problem in report.errors[:SHOWN]:
        echo(f"{problem.path}: {problem.message}", err=True)
    _print_twins("test frames with a near-twin outside test", report.near_twins)
    for other in report.against:
        _print_twins(f"frames with a twin in {other.root}", other.twins)


def _groups(report: AuditReport) -> str:
    if not report.twin_groups:
        return "0"
    frames, largest = sum(map(len, report.twin_groups)), len(report.twin_groups[0])
    mirrored = sum(twin.view != "identity" for twin in report.twins)
    pairs = f"{len(report.twins)} pairs, {mirrored} of them mirrored"
    return f"{len(report.twin_groups)} with {frames} frames, {largest} in the largest; {pairs}"


def _identical(other: Comparison) -> str:
    return f"{sum(twin.identical for twin in other.twins)} of them identical (of {other.frames} there)"


def _print_twins(label: str, twins: list[Twin]) -> None:
    if twins:
        echo(f"{label}, {min(SHOWN, len(twins))} of {len(twins)} (all with --json):")
    for twin in twins[:SHOWN]:
        kind = "identical" if twin.identical else f"correlation {twin.correlation:.3f}"
        echo(f"  {twin.frame} ~ {twin.other}, {kind}" + ("" if twin.view == "identity" else f", {twin.view}"))
