"""A sweep as a table: one row a trial, from its record, its run folder and what was measured of its student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polyp_difom.cache.errors import RunError
from polyp_difom.pipeline.distill import DistillConfig
from polyp_difom.pipeline.files import write_csv
from polyp_difom.pipeline.sweep.folder import Record, SweepFolder

MEASURED = (
    "state",
    "val_dice",
    "best_epoch",
    "epoch",
    "epochs",
    "parameters",
    "gmacs",
    "latency_ms",
    "seconds",
    "same_as",
    "error",
)


@dataclass(frozen=True)
class Row:
    """One trial.

    Attributes:
        settings: the value of every factor; those that its objective does not read are missing.
        epoch, epochs: done, and wanted. val_dice, best_epoch: the best on validation so far; None before the first epoch.
        parameters, gmacs, latency_ms: of its student, one frame at a time on the sweep's device; None where not measured.
        seconds: of training, over all starts. same_as: number of the trial whose figures these are.
    """

    number: int
    name: str
    settings: dict[str, Any]
    state: str
    epoch: int
    epochs: int
    val_dice: float | None
    best_epoch: int | None
    parameters: int | None
    gmacs: float | None
    latency_ms: float | None
    seconds: float
    same_as: int | None
    error: str | None


def rows(folder: SweepFolder) -> list[Row]:
    """All trials, by number; waiting ones too where they are known beforehand."""
    facts = folder.facts()
    records = folder.all_records()
    by_number = {record.number: record for record in records}
    return [_row(folder, record, by_number, facts) for record in records]


def _row(folder: SweepFolder, record: Record, by_number: dict[int, Record], facts: dict[str, dict[str, Any]]) -> Row:
    source = record if record.same_as is None else by_number.get(record.same_as)
    if source is None:
        raise RunError(
            "a trial takes its figures from one that is not there", where=folder.path / "trials" / f"{record.number}.json",
            got=f"trial {record.same_as}", remedy="delete this file; with --resume the trial is done anew",
        )  # fmt: skip
    history = folder.run(source.trial).history()
    best = max(history, key=lambda epoch: epoch["val_dice"], default=None)
    default = DistillConfig.model_fields
    student = facts.get(record.trial.network, {})
    return Row(
        number=record.number, name=record.name, settings=record.settings, state=record.state,
        epoch=len(history), epochs=record.settings.get("epochs", default["epochs"].default),
        val_dice=best["val_dice"] if best else None, best_epoch=best["epoch"] if best else None,
        parameters=student.get("parameters"), gmacs=student.get("gmacs"), latency_ms=student.get("latency_ms"),
        seconds=max(record.seconds, round(sum(epoch["seconds"] for epoch in history), 1)),
        same_as=record.same_as, error=record.error,
    )  # fmt: skip


def best_row(found: list[Row]) -> Row | None:
    """The finished trial with the highest validation Dice; the earlier of two equal ones."""
    finished = [row for row in found if row.state == "finished" and row.val_dice is not None and row.same_as is None]
    return max(finished, key=lambda row: row.val_dice or 0.0, default=None)


def reason(row: Row) -> str:
    """One line of why a trial failed; of a traceback its last."""
    lines = (row.error or "").strip().splitlines() or [""]
    return lines[-1 if lines[0].startswith("Traceback") else 0]


def write_results(folder: SweepFolder) -> None:
    """results.csv: a row a trial, in place of the last table."""
    found, factors = rows(folder), list(folder.config().factors)
    columns = ["number", "name", *factors, *MEASURED]
    write_csv(folder.results, columns, (
        {"number": row.number, "name": row.name} | {name: row.settings.get(name, "") for name in factors}
        | {name: getattr(row, name) for name in MEASURED} | {"error": reason(row)}
        for row in found
    ))  # fmt: skip
