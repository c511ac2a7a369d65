"""`polyp-difom bench teacher`."""

from __future__ import annotations

from typing import Annotated

import typer

from polyp_difom.cli import options
from polyp_difom.cli.console import Terminal, guarded, print_json, print_table


@guarded
def teacher(
    name: Annotated[str, typer.Argument(help="litemedsam, sam:vit_b, dinov2:base, ...")],
    weights: Annotated[str | None, typer.Option(help="Checkpoint, folder or hub id.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="For timing alone, where none can be had.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Frames at once.")] = 8,
    frames: Annotated[int, typer.Option(min=0, help="Frames of a small extraction; 0: none.")] = 16,
    size: Annotated[int, typer.Option(help="Frame side in pixels, a multiple of 32.")] = 352,
    compile: Annotated[bool, typer.Option("--compile", help="Time torch.compile too.")] = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """A teacher one frame at a time (float32) and in batches as `extract` runs it, in turn, and against the device's peak."""
    from polyp_difom.pipeline.bench.teacher import bench_teacher

    found = bench_teacher(
        name, weights=weights, random=random_weights, batch=batch, frames=frames, size=size, device=device,
        precision=precision, compile=compile, progress=Terminal(quiet),
    )  # fmt: skip
    if as_json:
        print_json(found.as_json())
        return
    rows = [
        [w.name, str(w.batch), w.precision, f"{w.fps:.2f}", f"{w.speedup:.2f}", f"{w.gflops:,.0f}", f"{w.share_of_peak:.0%}",
         f"{w.first_seconds:.1f}", str(w.repeats)]
        for w in found.ways
    ]  # fmt: skip
    columns = ["way", "batch", "precision", "frames/s", "x one at a time", "GFLOP/s", "of peak", "first call s", "calls"]
    note = ", random weights" if found.random else ""
    print_table(columns, rows, title=f"{found.teacher}: {found.gflop:,.1f} GFLOP a frame{note}")
    if done := found.extraction:
        shares = ", ".join(f"{part} {share:.1%}" for part, share in done.shares.items())
        typer.echo(f"extraction of {done.frames} frames, one view, {done.seconds:.1f} s with basis and checks: {shares}")
    peaks = ", ".join(f"{speed:,.0f} GFLOP/s in {precision}" for precision, speed in found.peaks.items())
    typer.echo(f"peak of a matrix product: {peaks}\n{found.machine.title}")
