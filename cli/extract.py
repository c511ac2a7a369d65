"""`polyp-difom extract`: stage one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polyp_difom.cache.errors import UsageError
from polyp_difom.cli import options
from polyp_difom.cli.console import Terminal, guarded, print_json

if TYPE_CHECKING:
    from polyp_difom.pipeline.plan import ExtractConfig


@guarded
def extract(
    data: options.Data,
    cache: Annotated[str, typer.Option(help="Store to write: a path or an fsspec URL.")],
    teachers: Annotated[str, typer.Option(help="Comma-separated: litemedsam, sam:vit_b, dinov2:base@9+12, hf:FOLDER, ...")] = (
        "litemedsam"
    ),
    weights: Annotated[
        list[str],
        typer.Option(help="TEACHER=FOLDER or hub id; sam, medsam, litemedsam, timm: PATH, https://...#sha256=HEX. Repeatable."),
    ] = [],  # noqa: B006
    input_size: Annotated[list[str], typer.Option(help="TEACHER=PIXELS that its input is resized to; repeatable.")] = [],  # noqa: B006
    size: Annotated[int, typer.Option(help="Frame side in pixels, a multiple of 32.")] = 352,
    views: Annotated[int, typer.Option(help="Flips to store: 1 none, 2 horizontal, 4 all.")] = 4,
    limit: Annotated[int | None, typer.Option(help="At most this many frames, train and val in proportion.")] = None,
    scales: Annotated[str, typer.Option(help="Grids to store: s4, s8, s16, s32 (frame pixels per cell).")] = "s8,s16,s32",
    channels: Annotated[int, typer.Option(help="Stored channels a teacher.")] = 64,
    spectra: Annotated[str, typer.Option(help="Whole half spectra (full), their low block alone (low), or none.")] = "full",
    dtype: Annotated[str, typer.Option(help="What maps are stored as: float16, or int8 (half, about 1 % off).")] = "float16",
    basis: Annotated[
        str, typer.Option(help="Channels: phi-s; or, to measure against, pca (unmixed) or standard (own ones).")
    ] = ("phi-s"),
    basis_frames: Annotated[int, typer.Option(help="Train frames that each channel basis is fitted on.")] = 256,
    split_by: options.SplitBy = "auto",
    val_fraction: Annotated[float, typer.Option(help="Share of the train frames kept for validation.")] = 0.1,
    seed: options.SplitSeed = 0,
    batch_size: Annotated[int, typer.Option(help="Images (frames and their flips) a teacher sees at once.")] = 8,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    part_id: Annotated[int | None, typer.Option(help="Fill only every N-th shard from this one on; see --num-parts.")] = None,
    num_parts: Annotated[int | None, typer.Option(help="Parts that the shards are dealt to, one a process or job.")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: workers on a Ray cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="HOST:PORT of a running Ray cluster, or auto; else a local one.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Ray workers; else as many as GPUs, or one a machine.")] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(min=0, help="GPUs of a Ray worker; 0.5: two share one.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, time the teachers, say what it will take.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Stage one: run frozen teachers once over all frames and cache their maps and spectra.

    A killed run goes on where it stopped when the same command is given again. Several processes may share the work: the
    same command several times, under torchrun (rank and world size come from the environment), with --part-id and
    --num-parts in a job array (`polyp-difom slurm` writes its script), or with --engine ray.
    """
    import os

    from polyp_difom.pipeline.data.sources import parse_source
    from polyp_difom.pipeline.extract import extract as run
    from polyp_difom.pipeline.plan import ExtractConfig
    from polyp_difom.pipeline.workers import Part, part_of

    config = options.validated(
        ExtractConfig,
        sources=tuple(parse_source(text) for text in data), teachers=options.names(teachers, "--teachers"), cache=cache,
        weights=dict(read_weights(text) for text in weights), input_sizes=dict(read_input_size(text) for text in input_size),
        size=size, views=views, limit=limit,
        scales=options.names(scales, "--scales"), channels=channels,
        spectra=spectra, dtype=dtype, basis=basis, basis_frames=basis_frames, split_by=split_by, val_fraction=val_fraction,
        seed=seed, batch_size=batch_size, device=device, precision=precision,
        part_id=part_id, num_parts=num_parts,
    )  # fmt: skip
    if dry_run:
        foresee(config, as_json, quiet)
        return
    check_engine(engine, {"--address": address, "--workers": workers, "--gpus-per-worker": gpus_per_worker})
    part, follows = Part(), False
    if engine == "ray":
        from polyp_difom.pipeline.engines.ray_extract import extract_on_ray

        store = extract_on_ray(
            config, Terminal(quiet), address=address, workers=workers, gpus_per_worker=gpus_per_worker
        )  # fmt: skip
    else:
        part = part_of(config, os.environ)
        follows = part.helps and part.index > 0  # one rank of torchrun's speaks for all
        store = run(config, Terminal(quiet or follows))
    if follows:
        return
    if as_json:
        print_json(store.summary())
    elif pending := store.pending():
        shards = len(store.shards)
        typer.echo(f"{cache}: part {part.index} of {part.count} is done, {shards - len(pending)} of {shards} shards are there")
    else:
        typer.echo(f"{cache}: {len(store)} frames, complete\nnext: polyp-difom distill --cache {cache}")


def foresee(config: ExtractConfig, as_json: bool, quiet: bool) -> None:
    """What an extraction will take, on stdout."""
    from polyp_difom.pipeline.preview import preview

    found = preview(config, Terminal(quiet))
    if as_json:
        print_json(found.as_json())
        return
    room = f", {found.free_bytes / 2**20:,.0f} MiB free" if found.free_bytes is not None else ""
    size = f"{found.bytes / 2**20:,.1f} MiB of frames and maps{room}"
    typer.echo(f"{found.frames} frames x {found.views} views in {found.shards} shards: {size}")
    if found.done:
        left = found.shards - found.done
        typer.echo(f"{left} of {found.shards} shards are left" if left else "complete already, nothing to do")
    for name, seconds in found.seconds.items():
        minutes = f"{seconds / 60:.1f} minutes on {found.device} in {found.precision}, one process"
        typer.echo(f"{name}: {minutes} (and what fitting its basis and measuring flips takes, on up to some hundred frames)")


def check_engine(engine: str, of_ray: dict[str, object]) -> None:
    """UsageError for an unknown engine, or options of Ray's without it."""
    if engine not in ("local", "ray"):
        raise UsageError("no such engine", where="--engine", got=engine, wanted="local or ray")
    if engine == "local" and (given := [option for option, value in of_ray.items() if value is not None]):
        raise UsageError("these options are Ray's", where=", ".join(given), remedy="add --engine ray, or leave them out")


def _pair(text: str, option: str, wanted: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise UsageError(f"{option} without a teacher or a value", where=option, got=text, wanted=wanted)
    return name, value


def read_weights(text: str) -> tuple[str, str]:
    """(teacher, source) of one --weights; paths that exist are expanded."""
    name, source = _pair(text, "--weights", "TEACHER=PATH")
    path = Path(source).expanduser()
    return name, str(path) if path.exists() else source


def read_input_size(text: str) -> tuple[str, int]:
    """(teacher, pixels) of one --input-size."""
    name, pixels = _pair(text, "--input-size", "TEACHER=PIXELS")
    if not pixels.isdecimal():
        raise UsageError("an input size is a number of pixels", where="--input-size", got=text, wanted="TEACHER=PIXELS")
    return name, int(pixels)
