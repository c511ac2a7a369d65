"""A sweep on one self-contained HTML page: what helped on validation, how sure that is, what it costs, what to type next.

The page needs no network and no script; every text in it is escaped.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from polyp_difom.cache.errors import PolypDifomError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.evaluation.scoring import PROTOCOLS
from polyp_difom.pipeline.files import write_text
from polyp_difom.pipeline.reads import kept, lost, of_store, parts, parts_named
from polyp_difom.pipeline.recipe import DistillConfig
from polyp_difom.pipeline.report import sweep_panels as panels
from polyp_difom.pipeline.report.origins import UNKNOWN, cautions
from polyp_difom.pipeline.report.sweep_words import verdicts, word_of
from polyp_difom.pipeline.report.values import CONTROL
from polyp_difom.pipeline.report.verdicts import points
from polyp_difom.pipeline.sweep.analysis import (
    Comparison,
    Group,
    counted,
    groups,
    importance,
    is_control,
    level_text,
    needs_of,
    paired,
    varied,
)
from polyp_difom.pipeline.sweep.folder import ENDED, SweepConfig, SweepFolder
from polyp_difom.pipeline.sweep.results import Row, best_row, reason, rows
from polyp_difom.pipeline.sweep.space import Span, Trial
from polyp_difom.pipeline.sweep.tested import read_tested

OPEN_ROWS = 20
"""Recipes, and trials, that a table shows before the rest is folded away."""


def write_sweep_report(folder: SweepFolder, out: Path | None = None) -> Path:
    """Write the page of a sweep, running or not, and return its place; an existing page is replaced in one step.

    Args:
        out: HTML file; default report.html in the sweep's folder.

    Raises:
        RunError: the sweep's folder is damaged, or the disk refuses.
    """
    out = out or folder.path / "report.html"
    config, trials = folder.config(), rows(folder)
    found = groups(trials, config.factors)
    compared = {name: levels for name in varied(config.factors) if (levels := paired(trials, config.factors, name))}
    facts, teachers = _store_facts(config)
    tests = [one for name in PROTOCOLS if (one := read_tested(folder, trials, config.factors, name))]
    wanted = max(len(trials), config.trials or 0) if config.sampler == "tpe" else len(trials)
    page = (
        _environment()
        .get_template("sweep.html.j2")
        .render(
            title=f"Sweep {folder.path.resolve().name}",
            open_rows=OPEN_ROWS,
            trials=trials,
            states=Counter(row.state for row in trials),
            wanted=wanted,
            over=wanted == sum(row.state in ENDED for row in trials),
            groups=found,
            gains=_gains(found, compared),
            compared=compared,
            word_of=word_of,
            verdicts=verdicts(trials, config.factors),
            cautions=[
                *cautions({"provenance": {"teachers": _used(teachers, trials, config)}}),
                *(line for one in tests for line in one.left_out),
            ],
            tests=[(PROTOCOLS[one.protocol], one, panels.test_gains(one)) for one in tests if one.sets],
            panels=_panels(folder, config, trials, found, compared),
            commands=_commands(folder, config, trials, compared),
            settings=lambda row: _settings(row, config),
            facts=facts | _sweep_facts(config, trials),
        )
    )
    write_text(out, page)
    return out


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (files("polyp_difom.pipeline.report") / name).read_text(encoding="utf-8")),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(score=_score, points=points, level=level_text, reason=reason)
    return environment


def _panels(
    folder: SweepFolder,
    config: SweepConfig,
    trials: Sequence[Row],
    found: Sequence[Group],
    compared: dict[str, list[Comparison]],
) -> dict[str, Any]:
    factors = importance(trials, config.factors)
    courses = [
        panels.course(number, group, [folder.run(Trial(row.number, row.settings, row.name)).history() for row in group.rows])
        for number, group in panels.shown(found)
    ]
    return {
        "differences": panels.differences(one for levels in compared.values() for one in levels),
        "importance": panels.importances(factors) if factors else None,
        "cost": panels.cost(found, config.device),
        "learning": panels.learning(courses) if courses else None,
    }


def _gains(found: Sequence[Group], compared: dict[str, list[Comparison]]) -> list[Comparison | None]:
    """Of every recipe over its own controls; None where it has none."""
    gains = []
    for group in found:
        over = [one.among(group.rows) for one in compared.get("objective", []) if one.reference == CONTROL]
        gains.append(next((one for one in over if one.pairs), None))
    return gains


def _commands(
    folder: SweepFolder, config: SweepConfig, trials: Sequence[Row], compared: dict[str, list[Comparison]]
) -> list[str]:
    """What to type to test all trials, and for the best one beside its control, or the grid that trains both over seeds."""
    best = best_row(counted(trials))
    if best is None:
        return []
    pairs = [pair for one in compared.get("objective", []) if one.reference == CONTROL for pair in one.pairs]
    controls = [other for one, other in pairs if one.number == best.number]
    runs = [str(folder.path / "runs" / row.name) for row in (best, *controls)]
    sweep = shlex.quote(str(folder.path))
    told = [f"polyp-difom evaluate {sweep} --data DIR", f"polyp-difom sweep report {sweep}"]
    if controls:
        return [*told, f"polyp-difom report {shlex.join(runs)}"]
    return told if is_control(best) else [*told, _confirming(config, best)]


def _confirming(config: SweepConfig, best: Row) -> str:
    """A sweep of one trial's settings and its control over five seeds, both as the objective makes its trials train."""
    objective = best.settings.get("objective", DistillConfig.model_fields["objective"].default)
    needs = needs_of(best.settings)
    forced = {**({"affine": "false"} if needs.spectra else {}), **({"latents": "true"} if needs.latents else {})}
    values = {**best.settings, **forced, "objective": f"{CONTROL},{objective}", "seed": "0..4"}
    words = [f"{name.replace('_', '-')}={'null' if value is None else value}" for name, value in values.items()]
    return f"polyp-difom sweep --cache {shlex.quote(config.cache)} --grid {shlex.quote(' '.join(words))} -o NEW"


def _settings(row: Row, config: SweepConfig) -> str:
    names = [name for name, values in config.factors.items() if isinstance(values, Span) or len(values) > 1]
    return ", ".join(level_text(name, row.settings[name]) for name in names if name in row.settings)


def _store_facts(config: SweepConfig) -> tuple[dict[str, str], list[dict[str, str]]]:
    """What the store says of itself, and its teachers' names with what they may have seen."""
    known = {"store": config.cache, "signature": config.signature or UNKNOWN}
    if "://" in config.cache:
        return known | {"teachers, data sets, split": f"{UNKNOWN}: a page opens no connection to where the store lies"}, []
    try:
        manifest = FeatureStore.open(config.cache).manifest
    except PolypDifomError as error:
        return known | {"teachers, data sets, split": f"{UNKNOWN}: the store cannot be read now: {error.what}"}, []
    if lost(kept(dict(config)), of_store(manifest)):
        return known | {"teachers, data sets, split": f"{UNKNOWN}: another store lies there now"}, []
    split, names = manifest.split, parts_named(config.reads or parts(manifest))["teachers"]
    teachers = [entry for entry in manifest.teachers if entry.name in names]
    known |= {
        "teachers": "; ".join(f"{t.name} (licence {t.licence}; weights {t.weights_digest[:16]})" for t in teachers),
        "data sets": ", ".join(f"{entry.name} ({entry.frames} frames)" for entry in manifest.datasets),
        "split": f"{split.policy}, seed {split.seed}, {split.val_fraction:.0%} of train for validation",
        "frame side": f"{manifest.frame_size} pixels",
    }
    return known, [{"name": entry.name, "contamination": entry.contamination} for entry in teachers]


def _used(teachers: Sequence[dict[str, str]], trials: Sequence[Row], config: SweepConfig) -> list[dict[str, str]]:
    """Those of the store that a trial which has begun was taught by."""
    used: set[str] = set()
    for row in trials:
        if row.state != "waiting" and not is_control(row):
            named = Trial(row.number, row.settings, row.name).config(config.cache, config.reads).teachers
            used |= {entry["name"] for entry in teachers} if named is None else set(named)
    return [entry for entry in teachers if entry["name"] in used]


def _sweep_facts(config: SweepConfig, trials: Sequence[Row]) -> dict[str, str]:
    def told(values: Any) -> str:
        listed = [values] if isinstance(values, Span) else values
        return ", ".join("all" if value is None else str(value) for value in listed)

    how = {"grid": "every combination", "random": "random draws", "tpe": "guided by a tree-structured Parzen estimator"}
    return {
        **{f"factor: {name.replace('_', ' ')}": told(values) for name, values in config.factors.items()},
        "trials": f"{how[config.sampler]}, sampler seed {config.sampler_seed}" if config.sampler != "grid" else how["grid"],
        "optimised for": " and ".join(config.optimise),
        "device": f"{config.device}, {config.jobs or UNKNOWN} trials side by side, {config.threads or UNKNOWN} threads each",
        "training in all": f"{sum(row.seconds for row in trials) / 3600:.2f} hours",
    }


def _score(value: float | None, digits: int = 3, unit: float = 1) -> str:
    """A figure with so many digits; a dash where there is none."""
    return "–" if value is None else f"{value / unit:,.{digits}f}"
