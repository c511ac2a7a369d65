"""A sweep's trials in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyp_difom.cli.console import echo, print_table

if TYPE_CHECKING:
    from polyp_difom.pipeline.sweep.forecast import Forecast
    from polyp_difom.pipeline.sweep.results import Row

COLUMNS = ["trial", "state", "epoch", "val Dice", "M parameters", "GMACs", "ms a frame", "seconds"]


def cells(row: Row) -> list[str]:
    """One trial as text."""

    def number(value: float | None, digits: int, unit: float = 1) -> str:
        return "" if value is None else f"{value / unit:.{digits}f}"

    state = row.state if row.same_as is None else f"same as {row.same_as:03d}"
    return [
        row.name, state, f"{row.epoch}/{row.epochs}", number(row.val_dice, 4), number(row.parameters, 2, 1e6),
        number(row.gmacs, 2), number(row.latency_ms, 1), number(row.seconds, 1),
    ]  # fmt: skip


def print_rows(found: list[Row]) -> None:
    """All trials on stdout, and the errors of those that failed."""
    print_table(COLUMNS, [cells(row) for row in found])
    for row in found:
        if row.error:
            echo(f"{row.name} failed: {row.error}")


def print_forecast(predicted: Forecast) -> None:
    """What a sweep would take, on stdout."""

    def number(value: float | None, unit: float = 1) -> str:
        return "" if value is None else f"{value / unit:,.1f}"

    table = [[row.name, number(row.minutes), number(row.bytes, 2**20), row.note] for row in predicted.trials]
    print_table(["trial", "minutes", "MiB", "note"], table)
    echo(
        f"{len(table)} trials, about {predicted.minutes:,.1f} minutes, {predicted.bytes / 2**20:,.1f} MiB of "
        f"{predicted.free_bytes / 2**20:,.0f} free, {predicted.store_bytes / 2**20:,.0f} MiB of the store in memory"
    )
    echo(predicted.reason)
    if predicted.note:
        echo(predicted.note)
