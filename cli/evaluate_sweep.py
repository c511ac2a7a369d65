"""`polyp-difom evaluate` of a sweep's folder: every finished trial, then one table of recipes and their paired differences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyp_difom.cache.errors import RunError
from polyp_difom.cli.console import Terminal, echo, print_json, print_table

if TYPE_CHECKING:
    from polyp_difom.pipeline.evaluation.paired import PairedDifference
    from polyp_difom.pipeline.sweep.folder import SweepFolder
    from polyp_difom.pipeline.sweep.tested import Figures, OverSeeds
    from polyp_difom.pipeline.sweep.testing import Outcome


def evaluate_sweep(path: Path, how: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    """Evaluates, then prints; exit code 1 where a trial could not be evaluated.

    Args:
        how: arguments of `evaluate_trials`.
    """
    from polyp_difom.pipeline.sweep.folder import SweepFolder
    from polyp_difom.pipeline.sweep.results import rows
    from polyp_difom.pipeline.sweep.tested import read_tested
    from polyp_difom.pipeline.sweep.testing import evaluate_trials

    folder, terminal = SweepFolder.open(path), Terminal(quiet)
    try:
        outcomes = evaluate_trials(folder, progress=terminal, **how)
    except KeyboardInterrupt:
        terminal.say("trials that were evaluated are kept: the same command goes on with the next one")
        raise
    done = [outcome.evaluation for outcome in outcomes if outcome.evaluation]
    names = {f"{summary.dataset} ({result.split})" for result in done for summary in result.summaries}
    numbers = {outcome.row.number for outcome in outcomes if outcome.evaluation}
    trials = [row for row in rows(folder) if row.number in numbers]
    found = read_tested(folder, trials, folder.config().factors, how["protocol"], names)
    if as_json:
        print_json(_as_json(folder, how, outcomes, found))
    else:
        _print(folder, outcomes, found)
    _finish(folder, outcomes, found)


def _print(folder: SweepFolder, outcomes: list[Outcome], found: Figures | None) -> None:
    for outcome in outcomes:
        if outcome.error:
            echo(f"{outcome.row.name} failed: {outcome.error}")
    if found is None:
        return
    several = len(found.averaged) > 1
    columns = [*found.sets, *([f"mean of the {len(found.averaged)} sets"] if several else [])]
    rows = []
    for recipe in found.recipes:
        scores = [*(recipe.sets.get(name) for name in found.sets), *([recipe.over_sets] if several else [])]
        rows.append([recipe.label, str(recipe.seeds), *map(_dice, scores)])
    echo(f"{folder.path}: mDice, mean ± sd over seeds, protocol {found.protocol}; best on validation first")
    print_table(["recipe", "seeds", *columns], rows)
    if found.gains:
        rows = []
        for gain in found.gains:
            over = [*(gain.sets.get(name) for name in found.sets), *([gain.over_sets] if several else [])]
            by_seed = ", ".join(map(_points, gain.by_seed.values()))
            rows.append([f"{gain.label} − {gain.against}", by_seed, *map(_interval, over), gain.word])
        echo("Paired differences in points of Dice, averaged over seeds image by image, 95 % interval over images")
        print_table(["difference", "by seed", *columns, "verdict"], rows)
    if several:
        echo(f"The mean of the sets is the plain mean over {' and '.join(found.averaged)}, however many images each has.")
    echo("Intervals cover the choice of images, not the luck of training: see the seeds. With zero inside, none is shown.")


def _finish(folder: SweepFolder, outcomes: list[Outcome], found: Figures | None) -> None:
    """What makes the figures less than a test; the next command; an error where trials failed."""
    failed = [outcome for outcome in outcomes if outcome.error]
    for name, count in (found.seen if found else {}).items():
        echo(f"warning: trials have seen up to {count} of the frames of {name}: not a test of them", err=True)
    if failed:
        first = failed[0]
        raise RunError(
            f"{len(failed)} of {len(outcomes)} trials could not be evaluated", where=folder.path / "runs" / first.row.name,
            got=first.error.what if first.error else None, remedy="the same command goes on with these",
        )  # fmt: skip


def _as_json(folder: SweepFolder, how: dict[str, Any], outcomes: list[Outcome], found: Figures | None) -> dict[str, Any]:
    from dataclasses import asdict

    trials = [
        {
            "number": outcome.row.number, "name": outcome.row.name, "settings": outcome.row.settings,
            "scored": bool(result and not result.kept), "error": outcome.error.message if outcome.error else None,
            "seen_in_training": result.seen if result else None,
            "sets": [asdict(summary) for summary in result.summaries] if result else [],
            "sets_without_leaks": [asdict(summary) for summary in result.without_leaks] if result else [],
        }
        for outcome in outcomes
        for result in [outcome.evaluation]
    ]  # fmt: skip
    told = asdict(found) if found else {}
    for gain, held in zip(told.get("gains", ()), found.gains if found else (), strict=True):
        gain["word"] = held.word
    chosen = {"sweep": str(folder.path), "kind": "sweep", "split": how["split"], "protocol": how["protocol"]}
    kept = ("sets", "averaged", "recipes", "gains")
    return {**chosen, "trials": trials, **{name: told.get(name, []) for name in kept}}


def _dice(value: OverSeeds | None) -> str:
    if value is None:
        return "-"
    return f"{value.mean:.4f}" + (f" ± {value.sd:.4f}" if value.sd is not None else "")


def _interval(gain: PairedDifference | None) -> str:
    if gain is None:
        return "-"
    return f"{_points(gain.mean)} ({_points(gain.interval[0])} to {_points(gain.interval[1])})"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"
