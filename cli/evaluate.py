"""`polyp-difom evaluate`: figures of a run on one or several data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyp_difom.cli import options
from polyp_difom.cli.console import Terminal, guarded, print_json, print_table


@guarded
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    data: options.Data,
    split: Annotated[str, typer.Option(help="test, val, train or all.")] = "test",
    split_by: Annotated[str | None, typer.Option(help="As for extract; default: as the run's store was split.")] = None,
    split_seed: Annotated[int | None, typer.Option(help="Seed of seeded splits; default: the store's.")] = None,
    protocol: Annotated[str, typer.Option(help="per-image, pranet or pooled-6; not comparable.")] = "per-image",
    overlays: Annotated[int, typer.Option(min=0, help="Pictures a data set: worst, middle, best.")] = 6,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Score a run at the frames' original sizes; writes results.csv, a CSV of all frames and overlays into the run."""
    from polyp_difom.cache.errors import UsageError
    from polyp_difom.pipeline.data.sources import parse_source
    from polyp_difom.pipeline.evaluate import evaluate as score

    if split not in ("train", "val", "test", "all"):
        raise UsageError("unknown split", where="--split", got=split, wanted="test, val, train or all")
    sources = tuple(parse_source(text) for text in data)
    terminal = Terminal(quiet)
    result = score(
        run, sources, split=split, split_by=split_by, seed=split_seed, protocol=protocol, overlays=overlays, device=device,
        progress=terminal,
    )  # fmt: skip
    if as_json:
        print_json(result.as_json())
    else:
        columns = ["data set", "images", "mDice", "95 % interval", "mIoU", "precision", "recall", "MAE"]
        rows = [
            [s.dataset, str(s.images), f"{s.mdice:.4f}", f"{s.dice_interval[0]:.4f} to {s.dice_interval[1]:.4f}",
             *(f"{value:.4f}" for value in (s.miou, s.precision, s.recall, s.mae))]
            for s in result.summaries
        ]  # fmt: skip
        print_table(columns, rows, title=f"{run}, split {split}, protocol {protocol}")
        typer.echo(f"{run / 'results.csv'}" + (f"\n{run / 'overlays'}" if result.overlays else ""))
    if unexpected := {name: number for name, number in result.seen.items() if name != split}:
        known = ", ".join(f"{number} {name}" for name, number in unexpected.items())
        count = sum(unexpected.values())
        typer.echo(f"warning: the run has seen {count} of these frames ({known}): not a test of it", err=True)
