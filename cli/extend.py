"""`polyp-difom cache extend`: more teachers, scales or views in a store that is there."""

from __future__ import annotations

from typing import Annotated

import typer

from polyp_difom.cli import options
from polyp_difom.cli.console import Terminal, guarded, print_json
from polyp_difom.cli.extract import read_input_size, read_weights


@guarded
def extend(
    store: Annotated[str, typer.Argument(help="Store that `polyp-difom extract` made.")],
    teachers: Annotated[str | None, typer.Option(help="Comma-separated teachers to add.")] = None,
    scales: Annotated[str | None, typer.Option(help="Comma-separated grids to add, of every teacher in the store.")] = None,
    views: Annotated[
        int | None, typer.Option(help="Flips to have, of every teacher in the store: 2 horizontal, 4 all.")
    ] = None,
    weights: Annotated[list[str], typer.Option(help="As for `extract`; repeatable.")] = [],  # noqa: B006
    input_size: Annotated[list[str], typer.Option(help="As for `extract`; repeatable.")] = [],  # noqa: B006
    batch_size: Annotated[int, typer.Option(help="Images (frames and their flips) a teacher sees at once.")] = 8,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Add a teacher, a scale or views to a complete store; no array that is there changes, no image folder is needed.

    Its signature does change. Runs and sweeps that were begun before go on, or start their next trial, with the teachers,
    scales and views that there were; they compare with later ones of the same frames.

    A killed extension leaves the store as it was, and goes on when the same command is given again.
    """
    from polyp_difom.pipeline.extend import ExtendConfig
    from polyp_difom.pipeline.extend import extend as run

    config = options.validated(
        ExtendConfig,
        cache=store, teachers=options.names(teachers, "--teachers") if teachers else (),
        scales=options.names(scales, "--scales") if scales else (), views=views,
        weights=dict(read_weights(text) for text in weights),
        input_sizes=dict(read_input_size(text) for text in input_size),
        batch_size=batch_size, device=device,
    )  # fmt: skip
    extended = run(config, Terminal(quiet))
    if as_json:
        print_json(extended.summary())
    else:
        names = ", ".join(entry.name for entry in extended.manifest.teachers)
        typer.echo(f"{store}: {names} at {', '.join(extended.manifest.scales)}, {len(extended.manifest.views)} views, complete")
