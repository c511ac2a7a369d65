"""`polyp-difom sweep`: many students over one store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polyp_difom.cache.errors import RunError, UsageError
from polyp_difom.cli import options
from polyp_difom.cli.console import Terminal, guarded, print_json
from polyp_difom.cli.extract import check_engine
from polyp_difom.cli.sweep_table import COLUMNS, cells, print_rows

if TYPE_CHECKING:
    from polyp_difom.pipeline.sweep.folder import SweepConfig, SweepFolder

app = typer.Typer(help="Train many students over one store, and see what came out.", invoke_without_command=True)
Folder = Annotated[Path, typer.Argument(help="Folder of a sweep, running or not.")]
LIVE_ROWS = 24
"""Trials in the table that is shown while a sweep runs."""
REST = 20
"""Times as long as a look at all trials took, before the next one: the cores are the trials'."""


@app.callback()
@guarded
def sweep(
    context: typer.Context,
    cache: Annotated[str | None, typer.Option(help="Store that `polyp-difom extract` made.")] = None,
    grid: Annotated[
        str | None,
        typer.Option(help="'student=unet,light objective=none,multiscale teachers=sam,sam+dinov2 seed=0..2'."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of these options, with `factors`; flags win over it.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Base settings: those of `distill --preset`, where no factor varies.")
    ] = None,
    sampler: Annotated[str, typer.Option(help="grid (every combination), random, or tpe (guided, by Optuna).")] = "grid",
    trials: Annotated[int | None, typer.Option(help="How many, for random and tpe.")] = None,
    optimise: Annotated[str, typer.Option(help="Goals of tpe: dice, or dice,latency for the front of both.")] = "dice",
    prune: Annotated[bool, typer.Option(help="tpe ends trials that are worse than the median at their epoch.")] = True,
    sampler_seed: Annotated[int, typer.Option(help="Seed of what random and tpe draw.")] = 0,
    jobs: Annotated[int | None, typer.Option(help="Trials side by side; default: what is measured to be fastest.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads a trial; default: an equal share of the cores.")] = None,
    device: options.Device = "auto",
    engine: Annotated[str, typer.Option(help="local, or ray: trials as tasks of a Ray cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="HOST:PORT of a running Ray cluster, or auto; else a local one.")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(min=0, help="GPUs of a trial on Ray; 0.5: two share one.")] = None,
    stage_dir: options.StageDir = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder; default sweeps/<store>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a sweep: finished trials stay, others go on.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="With --resume: failed trials go on too.")] = False,
    join: Annotated[bool, typer.Option("--join", help="Help a sweep, from any machine, or begin it.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing sweep.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list trials, with predicted minutes and bytes.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train every trial of a grid, of random draws or of a guided search, side by side over one store in memory.

    A trial is an ordinary run folder. Killed at any moment, the same command with --resume goes on: finished trials stay,
    running ones go on at their last epoch, failed ones are listed and stop nothing.
    """
    if context.invoked_subcommand:
        return
    check_engine(engine, {"--address": address, "--gpus-per-trial": gpus_per_trial})
    goes_on = resume and grid is None and config is None and preset is None
    if goes_on and out is None:
        raise UsageError("which sweep?", where="--resume", wanted="--resume -o FOLDER")
    settings = _settings(context, config, dict(  # noqa: C408
        cache=cache, grid=grid, preset=preset, sampler=sampler, trials=trials, optimise=optimise, prune=prune,
        sampler_seed=sampler_seed, jobs=jobs, threads=threads, device=device, stage_dir=str(stage_dir) if stage_dir else None,
    ), begun=out if goes_on else None)  # fmt: skip
    folder = out or Path("sweeps") / Path((settings.cache if settings else "").rstrip("/")).stem
    if dry_run:
        if engine != "local":
            raise UsageError("a cluster is not timed beforehand", where="--dry-run", got="--engine ray", remedy="leave one out")
        _forecast(settings, folder, quiet, as_json)
        return
    terminal = Terminal(quiet)
    with _live(folder, terminal) as look:
        how: dict[str, Any] = {"resume": resume, "join": join, "overwrite": overwrite, "look": look}
        how["retry_failed"] = retry_failed
        if engine == "ray":
            from polyp_difom.pipeline.engines.ray_sweep import sweep_on_ray

            done = sweep_on_ray(settings, folder, terminal, address=address, gpus_per_trial=gpus_per_trial, **how)
        else:
            from polyp_difom.pipeline.sweep import run

            done = run.sweep(settings, folder, terminal, **how)
    _finish(done, as_json)


@app.command()
@guarded
def show(folder: Folder, as_json: options.Json = False) -> None:
    """The table of a sweep's trials as they stand."""
    from dataclasses import asdict

    from polyp_difom.pipeline.sweep.folder import SweepFolder
    from polyp_difom.pipeline.sweep.results import rows

    found = rows(SweepFolder.open(folder))
    if as_json:
        print_json({"sweep": str(folder), "trials": [asdict(row) for row in found]})
    else:
        print_rows(found)


@app.command()
@guarded
def report(
    folder: Folder,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="HTML file; default report.html in the folder.")] = None,
) -> None:
    """A page with means over seeds, paired differences, the importance of each factor, Dice against latency, test figures."""
    from polyp_difom.pipeline.report.sweep_page import write_sweep_report
    from polyp_difom.pipeline.sweep.folder import SweepFolder

    typer.echo(write_sweep_report(SweepFolder.open(folder), out))


def _settings(context: typer.Context, file: Path | None, flags: dict[str, Any], *, begun: Path | None) -> SweepConfig | None:
    """Defaults, then the file, then the flags that were typed.

    Args:
        begun: folder of a sweep that goes on as it was begun, but for flags that were typed; None where there are none.
    """
    from polyp_difom.pipeline.preset import read_preset
    from polyp_difom.pipeline.sweep.folder import SweepConfig, SweepFolder
    from polyp_difom.pipeline.sweep.space import from_yaml, parse_grid

    if begun:
        given = options.typed(context, flags)
        if "optimise" in given:
            given["optimise"] = options.names(given["optimise"], "--optimise")
        return options.validated(SweepConfig, **(dict(SweepFolder.open(begun).config()) | given)) if given else None
    values = options.merged(context, file, flags)
    grid, factors, preset = values.pop("grid"), values.pop("factors", None), values.pop("preset")
    values["factors"] = (from_yaml(factors, file) if factors else {}) | (parse_grid(grid) if grid else {})
    if not values["factors"]:
        wanted = "`factors:` in the file, or for instance --grid 'objective=none,multiscale seed=0..2'"
        raise UsageError("nothing to sweep", where=file or "--grid", wanted=wanted)
    if preset is not None:
        values["factors"] = from_yaml(read_preset(preset)) | values["factors"]
    if isinstance(values["optimise"], str):
        values["optimise"] = options.names(values["optimise"], "--optimise")
    return options.validated(SweepConfig, file, options.typed(context, flags), **values)


def _forecast(settings: SweepConfig | None, folder: Path, quiet: bool, as_json: bool) -> None:
    from dataclasses import asdict

    from polyp_difom.cache.store import FeatureStore
    from polyp_difom.cli.sweep_table import print_forecast
    from polyp_difom.pipeline.sweep.folder import SweepFolder
    from polyp_difom.pipeline.sweep.forecast import forecast
    from polyp_difom.pipeline.sweep.run import resolved

    asked = settings or SweepFolder.open(folder).config()
    store = FeatureStore.open(asked.cache)
    predicted = forecast(resolved(asked, store), store, folder, Terminal(quiet))
    if as_json:
        print_json(asdict(predicted))
    else:
        print_forecast(predicted)


@contextmanager
def _live(path: Path, terminal: Terminal) -> Iterator[Callable[[], None]]:
    """The function that shows how the sweep stands: a table that is drawn anew, or a line for each trial that has ended."""
    from rich.live import Live
    from rich.table import Table

    from polyp_difom.pipeline.sweep.folder import ENDED, SweepFolder
    from polyp_difom.pipeline.sweep.results import Row, best_row, reason, rows

    folder, told, rest = SweepFolder(path), set[int](), 0.0

    def drawn(found: list[Row]) -> Table:
        ended, best = [row for row in found if row.state in ENDED], best_row(found)
        lead = f", best {best.val_dice:.4f} ({best.name})" if best else ""
        table = Table(title=f"{len(ended)} of {len(found)} trials have ended{lead}", box=None, title_justify="left")
        for name in COLUMNS:
            table.add_column(name)
        order = {"running": 0, "interrupted": 1, "failed": 2, "finished": 3, "pruned": 4, "waiting": 5}
        for row in sorted(found, key=lambda row: (order[row.state], -(row.val_dice or 0)))[:LIVE_ROWS]:
            table.add_row(*cells(row))
        return table

    def tell() -> None:
        for row in rows(folder):
            if row.state in ENDED and row.number not in told:
                told.add(row.number)
                dice = f" val Dice {row.val_dice:.4f}" if row.val_dice is not None else ""
                why = f": {reason(row)}" if row.error else ""
                terminal.say(f"{row.name} {row.state}{dice} ({row.seconds:.1f} s){why}")

    live = Live(console=terminal.console, auto_refresh=False, transient=True)

    def draw() -> None:
        live.start()  # not before trials run: what is measured first has bars of its own
        live.update(drawn(rows(folder)), refresh=True)

    def look() -> None:
        nonlocal rest
        began = perf_counter()
        if not terminal.quiet and began > rest:
            (draw if terminal.console.is_terminal else tell)()
            rest = perf_counter() + REST * (perf_counter() - began)

    try:
        yield look
    finally:
        live.stop()
    if not (terminal.quiet or terminal.console.is_terminal):
        tell()


def _finish(folder: SweepFolder, as_json: bool) -> None:
    """The whole table, the best trial, and the next command; exit code 1 where a trial failed."""
    from dataclasses import asdict

    from polyp_difom.pipeline.sweep.results import best_row, reason, rows

    found = rows(folder)
    best, failed = best_row(found), [row for row in found if row.state == "failed"]
    if as_json:
        print_json({"sweep": str(folder.path), "best": best.name if best else None, "trials": [asdict(row) for row in found]})
    else:
        print_rows(found)
        if best:
            typer.echo(f"best on validation: {best.name}, Dice {best.val_dice:.4f}; table: {folder.results}")
            typer.echo(f"next: polyp-difom evaluate {folder.path} --data DIR")
            typer.echo(f"      polyp-difom sweep report {folder.path}")
    if failed:
        first = failed[0]
        raise RunError(
            f"{len(failed)} of {len(found)} trials failed", where=folder.path / "runs" / first.name, got=reason(first)
        )
