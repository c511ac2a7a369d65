"""`polyp-difom bench sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyp_difom.cli import options
from polyp_difom.cli.console import Terminal, guarded, print_json, print_table


@guarded
def sweep(
    store: Annotated[str | None, typer.Option(help="Complete store; its ledger stands for the extraction.")] = None,
    data: Annotated[Path | None, typer.Option("--data", "-d", help="Data folder; default: drawn frames.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Default: a DINOv2-S with random weights.")] = None,
    frames: Annotated[int, typer.Option(min=10, help="At most this many frames.")] = 24,
    size: Annotated[int, typer.Option(help="Frame side in pixels, a multiple of 32.")] = 64,
    students: Annotated[int, typer.Option(min=1, max=100, help="Trained in each way.")] = 3,
    student: Annotated[str, typer.Option(help="As for `distill`; it starts from random weights.")] = "unet:8",
    epochs: Annotated[int, typer.Option(min=1, help="Of each student.")] = 20,
    jobs: Annotated[int | None, typer.Option(min=1, help="Of the sweep; default: it measures what is fastest.")] = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """One sweep over one store, against separate `distill` calls, and against runs that each extract for themselves.

    Also from how many students on the store pays, and the memory of four trials side by side against one run.
    """
    from polyp_difom.pipeline.bench.sweep import bench_sweep

    found = bench_sweep(
        store=store, data=data, teacher=teacher, frames=frames, size=size, students=students, student=student, epochs=epochs,
        jobs=jobs, device=device, progress=Terminal(quiet),
    )  # fmt: skip
    if as_json:
        print_json(found.as_json())
        return
    rows = [
        [str(way.students), way.name, f"{way.seconds:,.1f}", f"{way.ratio:.2f}", "" if way.measured else "from the parts"]
        for way in found.ways
    ]
    print_table(["students", "way", "seconds", "x one sweep", "how"], rows)
    parts, memory = found.parts, found.memory
    typer.echo(
        f"extract {parts.extract:.1f} s; distill {parts.distill:.1f} s; a trial of the sweep {parts.trial:.1f} s, "
        f"{parts.jobs} side by side, and {parts.around:.1f} s around them"
    )
    typer.echo(f"one store and one sweep beat runs that each extract: {_from(found.break_even)}")
    typer.echo(f"a sweep beats separate distill calls over the same store: {_from(found.sweep_pays)}")
    typer.echo(f"by its ledger: {found.ledger}")
    typer.echo(
        f"peak memory of {memory.jobs} trials side by side {memory.sweep / 2**20:,.0f} MiB, of one run "
        f"{memory.one / 2**20:,.0f} MiB ({memory.sweep / memory.one:.2f} times; the store has {memory.store / 2**20:,.0f} MiB)"
    )
    typer.echo(found.machine.title)


def _from(students: int | None) -> str:
    return "never" if students is None else f"from {students} student{'s' * (students > 1)} on"
