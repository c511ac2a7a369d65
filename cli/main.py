"""The `polyp-difom` command: registers one file per command, imports nothing heavy."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from polyp_difom.cli import (
    agree,
    bench,
    cache,
    data,
    distill,
    doctor,
    evaluate,
    export,
    extend,
    extract,
    predict,
    report,
    slurm,
    sweep,
)

app = typer.Typer(
    name="polyp-difom",
    help="Teach small polyp-segmentation networks what large frozen vision models see, from an offline feature cache.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"polyp-difom {version('polyp-difom')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Research software, not a medical device."""


for module in (extract, distill, evaluate, agree, predict, export, report, slurm, doctor):
    app.command()(getattr(module, module.__name__.rpartition(".")[2]))
app.add_typer(data.app, name="data")
cache.app.command()(extend.extend)
app.add_typer(cache.app, name="cache")
app.add_typer(bench.app, name="bench")
app.add_typer(sweep.app, name="sweep")


def main() -> None:
    """Entry point of the console script."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # what cannot be fetched is said once, by our own error
    app()
