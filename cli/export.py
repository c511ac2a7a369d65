"""`polyp-difom export`: a trained network as a file for other software, or as a folder to share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from polyp_difom.cli import options
from polyp_difom.cli.console import Terminal, guarded, print_json

if TYPE_CHECKING:
    from polyp_difom.pipeline.export.exporting import Exported


@guarded
def export(
    run: Annotated[Path, typer.Argument(help="Run folder, checkpoint or hub folder.")],
    to: Annotated[str, typer.Option(help="onnx, torchscript, openvino, tensorrt-ready or hub-folder.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="File (folder for hub-folder); default exports/<run> with its suffix.")
    ] = None,
    precision: Annotated[
        Literal["float32", "float16", "int8"], typer.Option(help="float32, float16 or int8 (set by train frames).")
    ] = "float32",
    embed_preprocessing: Annotated[
        bool, typer.Option("--embed-preprocessing", help="Take uint8 pictures of any size, give probabilities at their size.")
    ] = False,
    data: Annotated[
        list[str] | None, typer.Option("--data", "-d", help="Compare on these val frames; default: those of the run's store.")
    ] = None,
    push: Annotated[str | None, typer.Option(help="ORG/NAME: put the hub folder on the hub, private.")] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: for everyone to see.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing export.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a trained network as another kind of file; it is compared with the original before it is kept."""
    from polyp_difom.cache.errors import UsageError
    from polyp_difom.pipeline.data.sources import parse_source
    from polyp_difom.pipeline.export.exporting import export as write

    if push is not None and to != "hub-folder":
        raise UsageError("only a hub folder goes to the hub", where="--push", got=f"--to {to}", remedy="give --to hub-folder")
    if public and push is None:
        raise UsageError("nothing is pushed", where="--public", remedy="give --push ORG/NAME too")
    if push is not None:
        from polyp_difom.pipeline.models.hub import check_name, push_to_hub

        check_name(push)
    sources = tuple(parse_source(text) for text in data or [])
    done = write(
        run, to, out=out, precision=precision, embed_preprocessing=embed_preprocessing, sources=sources, overwrite=overwrite,
        progress=Terminal(quiet),
    )  # fmt: skip
    pushed = None if push is None else push_to_hub(done.path, push, private=not public)
    if as_json:
        print_json(done.as_json() | ({} if pushed is None else {"pushed": pushed}))
    else:
        _tell(done, to, pushed)


def _tell(done: Exported, to: str, pushed: str | None) -> None:
    """What was written, how it compares, and where it is on the hub or what to do with it next."""
    for path in done.files:
        typer.echo(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    typer.echo(f"compared with torch on {done.parity.words()}")
    for remark in done.remarks:
        typer.echo(remark)
    if pushed is not None:
        typer.echo(pushed)
    elif to == "torchscript":  # a program, which no command opens unasked
        typer.echo(f"next: polyp-difom predict {done.path} PICTURES -o OUT --trust")
    else:
        typer.echo(f"next: polyp-difom evaluate {done.path} --data DIR")
