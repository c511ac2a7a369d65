"""`polyp-difom bench train`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from polyp_difom.cli import options
from polyp_difom.cli.console import Terminal, guarded, print_json, print_table

if TYPE_CHECKING:
    from polyp_difom.pipeline.bench.train_figures import Compiling, TrainBench


@guarded
def train(
    student: Annotated[str, typer.Argument(help="As for `distill`; it starts from random weights.")] = "unet",
    objective: Annotated[str, typer.Option(help="As for `distill`; compared with none.")] = "multiscale",
    size: Annotated[int | None, typer.Option(help="Frame side; default: the store's, 352 without one.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Frames a step.")] = 16,
    cache: Annotated[str | None, typer.Option(help="Complete store; default: drawn frames and random maps.")] = None,
    teachers: Annotated[str | None, typer.Option(help="Also run these beside the student, as without a cache.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="For the teachers: for timing alone.")] = False,
    frames: Annotated[int, typer.Option(min=1, help="Of the epoch that is predicted, without validation.")] = 5800,
    compile: Annotated[bool, typer.Option("--compile", help="Time torch.compile too, and say when it pays.")] = False,
    repeats: Annotated[int | None, typer.Option(min=1, help="Timed calls; default: 30, or what fits into 20 s.")] = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """A training step with the objective, without teachers, and with the teachers in the loop, in turn; and its parts."""
    from polyp_difom.pipeline.bench.train import bench_train

    found = bench_train(
        student, objective=objective, size=size, batch=batch, cache=cache, random=random_weights, frames=frames,
        teachers=options.names(teachers, "--teachers") if teachers is not None else (), device=device, precision=precision,
        threads=threads, compile=compile, repeats=repeats, progress=Terminal(quiet),
    )  # fmt: skip
    if as_json:
        print_json(found.as_json())
        return
    rows = [
        [w.name, f"{w.median_ms:,.1f}", f"{w.p95_ms:,.1f}", f"{w.best_ms:,.1f}", f"{w.fps:,.1f}", f"{w.epoch_seconds:,.1f}",
         f"{w.first_seconds:.1f}", str(w.steps)]
        for w in found.ways
    ]  # fmt: skip
    columns = ["step", "median ms", "p95 ms", "best ms", "frames/s", f"s for {found.frames:,} frames", "first call s", "steps"]
    title = f"{found.student} at {found.size}, batch {found.batch}, {found.precision}; maps of {', '.join(found.teachers)}"
    print_table(columns, rows, title=title)
    words = {None: "", True: "yes", False: "NO"}
    cells = [[r.way, r.over, f"{r.value:.3f}", f"{r.low:.3f} to {r.high:.3f}", r.bar, words[r.met]] for r in found.ratios]
    print_table(["step of", "over", "times", "over turns", "wanted", "met"], cells)
    _print_stages(found)
    for verdict in found.compiling:
        typer.echo(_verdict(verdict, found))
    typer.echo(found.machine.title)


def _print_stages(found: TrainBench) -> None:
    """Each part of a step; with an objective beside its control, what it adds."""
    names = list(found.stages)
    totals = [sum(found.stages[name].values()) for name in names]
    whole = {"sum": dict(zip(names, totals, strict=True))}
    parts = {part: {name: found.stages[name][part] for name in names} for part in found.stages[names[0]]}
    rows = []
    for part, taken in (parts | whole).items():
        if not any(taken.values()):
            continue
        cells = [cell for name, total in zip(names, totals, strict=True)
                 for cell in (f"{taken[name]:,.2f}", f"{taken[name] / total:.1%}")]  # fmt: skip
        added = [f"{taken[names[-1]] - taken[names[0]]:+,.2f}"] if len(names) > 1 else []
        rows.append([part, *cells, *added])
    columns = [column for name in names for column in (f"{name} ms", "share")]
    print_table(["part, waited for", *columns, *(["more ms"] if len(names) > 1 else [])], rows)


def _verdict(found: Compiling, bench: TrainBench) -> str:
    """When compiling pays, in a line."""
    cost = f"{found.way}: compiling takes {found.seconds:.1f} s"
    if found.pays_from is None:
        return f"{cost} and a step gets {-found.share:.1%} slower: it does not pay"
    epochs = found.pays_from * bench.batch / bench.frames
    return (
        f"{cost} and saves {found.saved_ms:.2f} ms a step ({found.share:.1%}): it pays from step {found.pays_from:,} on, "
        f"after {epochs:.1f} epochs of {bench.frames:,} frames"
    )
