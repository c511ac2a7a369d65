"""`polyp-difom evaluate`: figures of a model, or of any tool's maps, on one or several data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polyp_difom.cache.errors import UsageError
from polyp_difom.cli import options
from polyp_difom.cli.console import Terminal, echo, guarded, print_json, print_table
from polyp_difom.cli.evaluate_sweep import evaluate_sweep

if TYPE_CHECKING:
    from polyp_difom.pipeline.evaluation.evaluate import Evaluation
    from polyp_difom.pipeline.evaluation.metrics import Summary

TARGET = "Run folder, sweep folder, checkpoint, exported file, hub folder, or a folder of masks or probability maps."
Target = Annotated[Path, typer.Argument(help=TARGET)]
Split = Annotated[str, typer.Option(help="test, val, train or all.")]
SplitBy = Annotated[str | None, typer.Option(help="As for extract; default: as the model's store was split.")]
SplitSeed = Annotated[int | None, typer.Option(help="Seed of seeded splits; default: the store's.")]
Protocol = Annotated[str, typer.Option(help="per-image, pranet or pooled-6; not comparable.")]
Measures = Annotated[str, typer.Option(help="all, or overlap: Dice, IoU, precision, recall and MAE only.")]
Against = Annotated[Path | None, typer.Option(help="Another run or evaluation folder, scored on the same frames.")]
ExcludeLeaks = Annotated[
    bool, typer.Option("--exclude-leaks", help="Also score without frames that it learned from, or their near twins.")
]
Train = Annotated[list[str] | None, typer.Option(help="Further folder that it learned from, for --exclude-leaks; repeatable.")]
Overlays = Annotated[int, typer.Option(min=0, help="Pictures a data set: worst, middle, best.")]
Out = Annotated[
    Path | None, typer.Option("-o", "--out", help="Folder for the figures; default: the run's own, or evaluations/NAME.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Of a sweep: score trials again that have just these figures already.")
]


@guarded
def evaluate(
    target: Target,
    data: options.Data,
    split: Split = "test",
    split_by: SplitBy = None,
    split_seed: SplitSeed = None,
    protocol: Protocol = "per-image",
    measures: Measures = "all",
    against: Against = None,
    exclude_leaks: ExcludeLeaks = False,
    train: Train = None,
    overlays: Overlays = 6,
    out: Out = None,
    overwrite: Overwrite = False,
    device: options.Device = "auto",
    trust: options.Trust = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Score at the frames' original sizes; writes results.csv, .json and .md, a CSV of all frames and overlays.

    Of a sweep, every finished trial, each into its run folder; then recipes over their seeds, beside their controls.
    """
    from polyp_difom.pipeline.data.sources import parse_source
    from polyp_difom.pipeline.evaluation.evaluate import evaluate as score
    from polyp_difom.pipeline.sweep.folder import SweepFolder

    _check(split, measures, train, exclude_leaks)
    how: dict[str, Any] = {
        "split": split, "split_by": split_by, "seed": split_seed, "protocol": protocol, "measures": measures,
        "overlays": overlays, "exclude_leaks": exclude_leaks, "train": tuple(parse_source(text) for text in train or []),
        "device": device, "trust": trust,
    }  # fmt: skip
    sources = tuple(parse_source(text) for text in data)
    if SweepFolder(target).exists:
        _refuse_for_sweep(target, against, out)
        evaluate_sweep(target, {**how, "sources": sources, "overwrite": overwrite}, as_json=as_json, quiet=quiet)
        return
    if overwrite:
        raise UsageError(
            "a single target is always scored again", where="--overwrite", got=target, wanted="a sweep folder",
            remedy="leave it out",
        )  # fmt: skip
    result = score(target, sources, out=out, against=against, progress=Terminal(quiet), **how)
    if as_json:
        print_json(result.as_json())
    else:
        _print_figures(result)
        _print_comparisons(result, against)
        echo(f"{result.record / 'results.csv'}" + (f"\n{result.record / 'overlays'}" if result.overlays else ""))
    _warn(result)


def _check(split: str, measures: str, train: list[str] | None, exclude_leaks: bool) -> None:
    """UsageError for an option that cannot be used."""
    if split not in ("train", "val", "test", "all"):
        raise UsageError("unknown split", where="--split", got=split, wanted="test, val, train or all")
    if measures not in ("all", "overlap"):
        raise UsageError("unknown measures", where="--measures", got=measures, wanted="all or overlap")
    if train and not exclude_leaks:
        raise UsageError("--train has no use without --exclude-leaks", where="--train", remedy="add --exclude-leaks")


def _refuse_for_sweep(target: Path, against: Path | None, out: Path | None) -> None:
    """UsageError for options that are for a single target."""
    if against:
        raise UsageError(
            "a sweep's trials are set against the controls of the sweep", where="--against", got=against,
            remedy=f"leave it out; or evaluate one trial: polyp-difom evaluate {target / 'runs'}/TRIAL --against {against}",
        )  # fmt: skip
    if out:
        raise UsageError(
            "the figures of a sweep's trials lie in their run folders", where="-o", got=out,
            remedy=f"leave it out; the page of all: polyp-difom sweep report {target} -o FILE.html",
        )  # fmt: skip


def _print_figures(result: Evaluation) -> None:
    """The headline, then every other measure that was computed."""
    from polyp_difom.pipeline.evaluation.tables import number

    lines: list[tuple[str, Summary]] = []
    for summary in result.summaries:
        lines.append((summary.dataset, summary))
        lines += [
            (f"without {summary.images - less.images} leaked", less)
            for less in result.without_leaks
            if less.dataset == summary.dataset
        ]
    columns = ["data set", "images", "mDice", "95 % interval", "mIoU", "precision", "recall", "MAE"]
    rows = [
        [name, str(s.images), f"{s.mdice:.4f}", f"{s.dice_interval[0]:.4f} to {s.dice_interval[1]:.4f}",
         *(f"{value:.4f}" for value in (s.miou, s.precision, s.recall, s.mae))]
        for name, s in lines
    ]  # fmt: skip
    print_table(columns, rows, title=f"{result.target.path}, split {result.split}, protocol {result.protocol}")
    more = ["data set", "wF", "S", "mE", "max E", "HD95 px", "ECE", *(f"Dice {band.name}" for band in lines[0][1].dice_by_size)]
    rows = [
        [name, *(number(value) for value in (s.weighted_f, s.s_measure, s.e_mean, s.e_max)), number(s.hd95, 1),
         number(s.calibration.ece if s.calibration else None),
         *(f"{number(band.mdice)} ({band.images})" for band in s.dice_by_size)]
        for name, s in lines
    ]  # fmt: skip
    empty = [column for column in range(1, len(more)) if all(row[column] == "-" for row in rows)]
    kept = [column for column in range(len(more)) if column not in empty]
    print_table([more[column] for column in kept], [[row[column] for column in kept] for row in rows])


def _print_comparisons(result: Evaluation, against: Path | None) -> None:
    """Paired differences, and what others publish, where it is under the same protocol."""
    if result.differences:
        rows = [
            [name, str(d.images), f"{d.mean:+.4f}", f"{d.interval[0]:+.4f} to {d.interval[1]:+.4f}", f"{d.improved:.0%}"]
            for name, d in result.differences.items()
        ]
        columns = ["data set", "images", "Dice difference", "95 % interval", "images improved"]
        print_table(columns, rows, title=f"{result.target.name} minus {against}, paired")
    theirs = sorted({figure.protocol for figure in result.published})
    if theirs and theirs != [result.protocol]:
        names = ", ".join(dict.fromkeys(figure.dataset for figure in result.published))
        echo(
            f"Published figures for {names} are under protocol {theirs[0]}, not comparable with {result.protocol}: "
            f"add --protocol {theirs[0]} to see them beside these."
        )
    elif theirs:
        _print_published(result)


def _print_published(result: Evaluation) -> None:
    sets = list(dict.fromkeys(figure.dataset for figure in result.published))
    found = {(figure.model, figure.dataset): figure for figure in result.published}
    models = {figure.model: figure for figure in result.published}
    rows = []
    for model, first in models.items():
        scores = [f"{found[model, name].mdice:.3f}" if (model, name) in found else "-" for name in sets]
        parameters = f"{first.parameters / 1e6:.1f} M" if first.parameters else "-"
        rows.append([model, parameters, *scores, first.source])
    ours = {summary.dataset: summary.mdice for summary in result.summaries}
    size = result.target.info.parameters if result.target.info else None
    rows.append(
        [result.target.name, f"{size / 1e6:.1f} M" if size else "-", *(f"{ours[name]:.3f}" for name in sets), "this evaluation"]
    )
    print_table(
        ["model", "parameters", *sets, "source"], rows, title=f"mDice beside published figures, protocol {result.protocol}"
    )


def _warn(result: Evaluation) -> None:
    """What makes the figures less than a test, on stderr, however quiet."""
    if unexpected := {name: number for name, number in result.seen.items() if name != result.split}:
        known = ", ".join(f"{number} {name}" for name, number in unexpected.items())
        count = sum(unexpected.values())
        echo(f"warning: the run has seen {count} of these frames ({known}): not a test of it", err=True)
    if lost := [s.dataset for s in result.summaries if s.mdice == 0]:
        echo(f"warning: no lesion of {', '.join(lost)} was met in any frame: do the maps reach 0.5 at all?", err=True)
    emptied = [s.dataset for s in result.summaries if result.leaks and len(result.leaks.of(s.dataset)) == s.images]
    if emptied:
        echo(f"warning: every scored frame of {', '.join(emptied)} is leaked: nothing is left without them", err=True)
