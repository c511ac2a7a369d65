"""`polyp-difom distill`: stage two."""

from __future__ import annotations

import functools
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polyp_difom.cli import options
from polyp_difom.cli.console import F, Terminal, guarded, print_json

if TYPE_CHECKING:
    from polyp_difom.pipeline.recipe import DistillConfig
    from polyp_difom.pipeline.runs import RunFolder


def in_group(command: F) -> F:
    """The command as one of the processes that torchrun started, or alone."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        from polyp_difom.pipeline.distributed import group

        with group(os.environ):
            command(*args, **kwargs)

    return run  # type: ignore[return-value]


def _option(panel: str, help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel)


_data, _student, _objective, _recipe, _run = (
    functools.partial(_option, panel) for panel in ("Data", "Student", "Objective", "Recipe", "Run")
)


@guarded
@in_group
def distill(
    context: typer.Context,
    cache: Annotated[str | None, _data("Store that `polyp-difom extract` made.")] = None,
    teachers: Annotated[str | None, _data("Comma-separated teachers of the store; all by default.")] = None,
    scales: Annotated[str | None, _data("Comma-separated scales of the store; all by default.")] = None,
    channels: Annotated[
        int | None, _data("Leading channels of each teacher, as if no more were stored; all by default.")
    ] = None,
    views: Annotated[int | None, _data("Only the store's first so many flips; all by default.")] = None,
    stage_dir: Annotated[Path | None, _data("Local folder for a copy of the store, which all processes share.")] = None,
    student: Annotated[
        str, _student("unet, unetpp (:B wide, :deep), pranet, emcad:b0..b5, light (:lite1, :lite2), smp:ARCH/ENCODER.")
    ] = "unet",
    pretrained: Annotated[bool, _student("ImageNet weights for the encoder, where the student has one.")] = True,
    encoder_weights: Annotated[
        str | None, _student("FILE of your own weights for it: timm's, the authors', or a student's.")
    ] = None,
    latents: Annotated[bool, _student("Latents L1 and L2 before the decoder; objective paper implies them.")] = False,
    objective: Annotated[
        str,
        _objective(
            "multiscale, paper, shuffled, none (the control), ...; several: multiscale+cwd:0.5; auto: short trainings choose, "
            "on validation."
        ),
    ] = "multiscale",
    distill_weight: Annotated[float, _objective("Weight of the teachers' terms.")] = 1.0,
    weight_schedule: Annotated[str, _objective("Of that weight: constant, decay, or representation-first.")] = "constant",
    drop_teachers: Annotated[float, _objective("Share of steps that each of several teachers sits out.")] = 0.0,
    loss: Annotated[str, _objective("Segmentation loss: dice-bce or structure (PraNet's).")] = "dice-bce",
    preset: Annotated[
        str | None, _recipe("multiscale (the defaults), paper, notebook or control; --config and flags win over it.")
    ] = None,
    epochs: Annotated[int, _recipe("Passes over the train frames.")] = 40,
    batch_size: Annotated[int, _recipe("Frames a step; halved where memory is too small.")] = 16,
    optimizer: Annotated[str, _recipe("adamw or adam.")] = "adamw",
    learning_rate: Annotated[float, _recipe("Its peak.", "--learning-rate", "--lr")] = 1e-3,
    schedule: Annotated[str, _recipe("Of the learning rate: one-cycle, cosine or constant.")] = "one-cycle",
    weight_decay: Annotated[float, _recipe("AdamW's; with adam, an L2 term (give it 0).")] = 1e-2,
    clip: Annotated[float, _recipe("Largest norm of the gradient; 0 for any.")] = 1.0,
    ema: Annotated[float, _recipe("Decay (0.99, say) of averaged weights, which are validated and saved; 0: none.")] = 0.0,
    patience: Annotated[int | None, _recipe("Stop after so many epochs without a better validation Dice.")] = None,
    flips: Annotated[bool, _recipe("The store's flipped views.")] = True,
    colour: Annotated[bool, _recipe("Brightness, contrast, saturation and tint.")] = True,
    affine: Annotated[bool, _recipe("Rotate, zoom and shift frames together with the cached maps.")] = True,
    out: Annotated[Path | None, _run("Run folder; default runs/<student>-<objective>-s<seed>.", "-o", "--out")] = None,
    config: Annotated[Path | None, _run("YAML file of these options, such as a run's config.yaml; flags win over it.")] = None,
    resume: Annotated[bool, _run("Go on with an interrupted run.", "--resume")] = False,
    overwrite: Annotated[bool, _run("Replace an existing run.", "--overwrite")] = False,
    seed: Annotated[int, _run("Of weights, order and augmentation.")] = 0,
    device: Annotated[str, _run("auto, cpu, cuda, cuda:N.")] = "auto",
    precision: Annotated[str, _run("auto, float32, bfloat16.")] = "auto",
    compile: Annotated[
        bool, _run("torch.compile, where the first steps show that it pays; the same weights after --resume only without it.")
    ] = False,
    tensorboard: Annotated[bool, _run("Also write event files to RUN/tensorboard.", "--tensorboard")] = False,
    as_json: Annotated[bool, _run("One JSON object on stdout.", "--json")] = False,
    quiet: Annotated[bool, _run("Results and errors only.", "--quiet", "-q")] = False,
) -> None:
    """Stage two: train a light student on the cached maps. Needs the store alone: no images, no teachers."""
    given = dict(locals())
    from polyp_difom.pipeline.distill import distill as run
    from polyp_difom.pipeline.distributed import leads
    from polyp_difom.pipeline.journal import TensorBoard

    settings = _settings(context, given)
    if stage_dir is not None:
        settings = _staged(settings, stage_dir, quiet)
    name = f"{settings.student}-{settings.objective}-s{settings.seed}".translate({ord(":"): "", ord("/"): "-", ord("@"): "-"})
    folder = out or Path("runs") / name
    with TensorBoard(folder) if tensorboard and leads() else nullcontext() as watch:
        finished = run(settings, folder, Terminal(quiet), resume=resume, overwrite=overwrite, watch=watch)
    _tell(finished, settings, as_json)


def _settings(context: typer.Context, given: dict[str, Any]) -> DistillConfig:
    """Defaults, then the preset, then the file, then the flags that were typed; a run that is resumed goes on under its own."""
    from polyp_difom.pipeline.preset import read_preset
    from polyp_difom.pipeline.recipe import DistillConfig
    from polyp_difom.pipeline.runs import PILOTS, RunFolder

    flags = {name: given[name] for name in DistillConfig.model_fields if name in given}
    preset, file, out = given["preset"], given["config"], given["out"]
    if given["resume"] and out is not None and file is None:
        run = RunFolder(out)
        begun = run.resume_state.is_file() or run.last.is_file()
        held = [out / "config.yaml", out / PILOTS / "config.yaml"]
        file = next((path for path in (held if begun else held[::-1]) if path.is_file()), None)
    values = flags | ({} if preset is None else read_preset(preset)) | options.merged(context, file, {})
    values |= (typed := options.typed(context, flags))
    if typed.keys() & {"objective", "distill_weight", "weight_schedule"} and not given["resume"]:
        values.pop("auto", None)  # it chose another one
    for name in ("teachers", "scales"):
        if isinstance(values[name], str):
            place = f"--{name}" if file is None or name in typed else f"{file}: {name}"
            values[name] = options.names(values[name], place)
    return options.validated(DistillConfig, file, typed, **values)


def _staged(settings: DistillConfig, stage_dir: Path, quiet: bool) -> DistillConfig:
    """The settings with a local copy of their store."""
    from polyp_difom.cache.staging import staged
    from polyp_difom.pipeline.distributed import leads

    copy = staged(settings.cache, stage_dir, Terminal(quiet or not leads()).say)
    return settings.model_copy(update={"cache": str(copy)})


def _tell(run: RunFolder, settings: DistillConfig, as_json: bool) -> None:
    """The result, from the process that leads."""
    from polyp_difom.pipeline.distributed import leads

    if not leads():
        return
    best, chose = max(run.history(), key=lambda record: record["val_dice"]), run.config()["auto"]
    if as_json:
        result = {"run": str(run.path), "best_val_dice": best["val_dice"], "epoch": best["epoch"], "epochs": settings.epochs}
        print_json(result | ({"auto": chose} if chose else {}))
        return
    if chose:
        typer.echo(chose)
    typer.echo(
        f"{run.path}: best validation Dice {best['val_dice']:.4f} at epoch {best['epoch']}, in {run.best.relative_to(run.path)}"
    )
    typer.echo(f"next: polyp-difom evaluate {run.path} --data DIR")
