"""`polyp-difom distill`: stage two."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from polyp_difom.cli import options
from polyp_difom.cli.console import F, Terminal, guarded, print_json


def in_group(command: F) -> F:
    """The command as one of the processes that torchrun started, or alone."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        from polyp_difom.pipeline.distributed import group

        with group(os.environ):
            command(*args, **kwargs)

    return run  # type: ignore[return-value]


@guarded
@in_group
def distill(
    context: typer.Context,
    cache: Annotated[str | None, typer.Option(help="Store that `polyp-difom extract` made.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of these options; flags win over it.")] = None,
    student: Annotated[
        str, typer.Option(help="unet or unetpp (:B for base width B), pranet, light, smp:ARCH/ENCODER.")
    ] = "unet",
    pretrained: Annotated[bool, typer.Option(help="ImageNet weights for the encoder, where the student has one.")] = True,
    objective: Annotated[str, typer.Option(help="multiscale, paper, shuffled, or none (the control).")] = "multiscale",
    teachers: Annotated[str | None, typer.Option(help="Comma-separated teachers of the store; all by default.")] = None,
    scales: Annotated[str | None, typer.Option(help="Comma-separated scales of the store; all by default.")] = None,
    channels: Annotated[
        int | None, typer.Option(help="Leading channels of each teacher, as if no more were stored; all by default.")
    ] = None,
    views: Annotated[int | None, typer.Option(help="Only the store's first so many flips; all by default.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the train frames.")] = 40,
    batch_size: Annotated[int, typer.Option(help="Frames a step.")] = 16,
    learning_rate: Annotated[float, typer.Option("--learning-rate", "--lr", help="Peak of the one-cycle rate.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = 1e-2,
    distill_weight: Annotated[float, typer.Option(help="Weight of the teachers' terms.")] = 1.0,
    affine: Annotated[bool, typer.Option(help="Rotate, zoom and shift frames together with the cached maps.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")] = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Run folder; default runs/<student>-<objective>-s<seed>.")
    ] = None,
    stage_dir: options.StageDir = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Stage two: train a light student on the cached maps. Needs the store alone: no images, no teachers."""
    from polyp_difom.pipeline.distill import DistillConfig
    from polyp_difom.pipeline.distill import distill as run
    from polyp_difom.pipeline.distributed import leads

    flags: dict[str, Any] = dict(  # noqa: C408
        cache=cache, student=student, pretrained=pretrained, objective=objective, teachers=teachers, scales=scales,
        channels=channels, views=views, epochs=epochs, batch_size=batch_size,
        learning_rate=learning_rate, weight_decay=weight_decay, distill_weight=distill_weight,
        affine=affine, seed=seed, device=device, precision=precision,
    )  # fmt: skip
    if resume and out is not None and config is None and (out / "config.yaml").is_file():
        config = out / "config.yaml"  # a run goes on under its own settings
    values = options.merged(context, config, flags)
    for name in ("teachers", "scales"):
        if isinstance(values[name], str):
            values[name] = options.names(values[name], f"--{name}")
    settings = options.validated(DistillConfig, **values)
    if stage_dir is not None:
        from polyp_difom.cache.staging import staged

        settings = settings.model_copy(
            update={"cache": str(staged(settings.cache, stage_dir, Terminal(quiet or not leads()).say))}
        )
    student = settings.student.replace(":", "").replace("/", "-")
    folder = out or Path("runs") / f"{student}-{settings.objective}-s{settings.seed}"
    finished = run(settings, folder, Terminal(quiet), resume=resume, overwrite=overwrite)
    if not leads():
        return
    best = max(finished.history(), key=lambda record: record["val_dice"])
    if as_json:
        print_json({"run": str(folder), "best_val_dice": best["val_dice"], "epoch": best["epoch"], "epochs": settings.epochs})
    else:
        typer.echo(f"{folder}: best validation Dice {best['val_dice']:.4f} at epoch {best['epoch']}")
        typer.echo(f"next: polyp-difom evaluate {folder} --data DIR")
