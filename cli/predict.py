"""`polyp-difom predict`: a model on pictures, films and cameras."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polyp_difom.cli import options
from polyp_difom.cli.console import Terminal, guarded, print_json

if TYPE_CHECKING:
    from polyp_difom.pipeline.predict.run import Totals


@guarded
def predict(
    model: Annotated[str, typer.Argument(help="Run folder, checkpoint, hub folder, or an exported file.")],
    inputs: Annotated[
        list[str], typer.Argument(help="Pictures, folders of them, globs in quotes, films, DICOM files, or camera:0.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; new, or --overwrite.")],
    save: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: mask, probability, overlay, uncertainty, coco, label-studio. Default: mask,overlay; "
            "of films overlay. predictions.csv always."
        ),
    ] = None,
    threshold: Annotated[float, typer.Option(help="Lesion from this probability on.")] = 0.5,
    flips: Annotated[bool, typer.Option("--flips", help="Average over four flips; their spread is the uncertainty.")] = False,
    every: Annotated[int, typer.Option(help="Of films: every N-th frame.")] = 1,
    limit: Annotated[int | None, typer.Option(help="Stop after so many pictures.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures at once; default 1 on a CPU, 8 on a GPU.")] = None,
    device: options.Device = "auto",
    trust: options.Trust = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier prediction in -o.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Segment pictures, films, DICOM files or a camera at their own size: masks, overlays, a table, annotation files."""
    from polyp_difom.pipeline.models.loading import load_model
    from polyp_difom.pipeline.predict.folder import refuse_to_lose
    from polyp_difom.pipeline.predict.inputs import find_sources
    from polyp_difom.pipeline.predict.run import PredictConfig
    from polyp_difom.pipeline.predict.run import predict as run

    config = options.validated(
        PredictConfig, threshold=threshold, flips=flips, every=every, limit=limit, batch_size=batch_size,
        save=None if save is None else options.names(save, "--save"),
    )  # fmt: skip
    config.require_outputs()
    terminal = Terminal(quiet)
    sources = find_sources(inputs, terminal)
    refuse_to_lose(out, overwrite, inputs, sources)
    totals = run(load_model(model, device, trust=trust), sources, out, config, terminal)
    _tell(totals, len(sources), out, as_json)


def _tell(totals: Totals, sources: int, out: Path, as_json: bool) -> None:
    """What was predicted; DataError where an input could not be read as a whole."""
    from polyp_difom.cache.errors import DataError

    if as_json:
        print_json(totals.as_json())
    elif totals.pictures:
        rates = ", ".join(f"{name} {rate:,.1f}" for name, rate in totals.rates.items())
        typer.echo(f"{out}: {totals.pictures} pictures, {totals.with_lesion} with a lesion")
        typer.echo(f"pictures a second: {rates} ({totals.device})")
    for failure in totals.failures:
        typer.echo(f"error: {failure}", err=True)
    if totals.failures:
        raise DataError(
            f"{len(totals.failures)} of {sources} inputs could not be read as a whole",
            got=f"{totals.pictures} pictures predicted" + (f", kept in {out}" if totals.pictures else ""),
        )
