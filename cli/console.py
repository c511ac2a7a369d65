"""What the terminal shows: results on stdout, everything else on stderr, errors without tracebacks."""

from __future__ import annotations

import functools
import json
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import typer

from polyp_difom.cache.errors import DISK_FAULTS, PolypDifomError, RunError, shown
from polyp_difom.pipeline.progress import Advance, Progress

INTERRUPTED, TERMINATED = 130, 143
GO_ON = {
    "extract": "; what was finished is kept, the same command goes on from there",
    "distill": "; the last whole epoch is kept, the same command with --resume goes on from there",
    "sweep": "; what was finished is kept, `polyp-difom sweep --resume -o FOLDER` goes on at each trial's last epoch",
    "predict": "; what was predicted until then is kept",
}
"""What a user is told after Ctrl-C or SIGTERM, by command."""
F = TypeVar("F", bound=Callable[..., None])


def guarded(command: F) -> F:
    """Turns errors that a user can cause into their message and exit code; any other is a bug and keeps its traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with terminable():
                command(*args, **kwargs)
        except PolypDifomError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(error.exit_code) from error
        except OSError as error:
            if error.errno not in DISK_FAULTS:
                raise
            refusal = RunError("the disk refuses", where=error.filename, got=error.strerror, remedy="look at `df -h`")
            typer.echo(f"error: {refusal}", err=True)
            raise typer.Exit(refusal.exit_code) from error
        except KeyboardInterrupt as error:
            typer.echo(f"interrupted{GO_ON.get(command.__name__, '')}", err=True)
            raise typer.Exit(TERMINATED if isinstance(error, Terminated) else INTERRUPTED) from error

    return run  # type: ignore[return-value]


class Terminated(KeyboardInterrupt):
    """SIGTERM came: ends a command as Ctrl-C does."""


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM, which SLURM sends before it kills, ends the block in good order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Terminal(Progress):
    """Bars with rate and time left on stderr; `quiet` leaves only results and errors."""

    def __init__(self, quiet: bool = False):
        from rich.console import Console

        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """One plain line."""
        if not self.quiet:
            self.console.print(shown(text), markup=False)

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Advance]:
        """A bar that goes when its task is done; silent where stderr is no terminal."""
        from rich import progress as bars
        from rich.text import Text

        class Rate(bars.ProgressColumn):
            def render(self, task: bars.Task) -> Text:
                return Text(f"{task.speed:.1f}/s" if task.speed else "")

        columns = (
            bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn(), Rate(),
            bars.TimeElapsedColumn(), bars.TimeRemainingColumn(),
        )  # fmt: skip
        hidden = self.quiet or not self.console.is_terminal
        with bars.Progress(*columns, console=self.console, transient=True, disable=hidden) as bar:
            task = bar.add_task(label, total=total)
            yield lambda n: bar.advance(task, n)


def echo(text: object, *, err: bool = False) -> None:
    """A line of result on stdout, or of warning on stderr; names in it are a stranger's."""
    typer.echo(shown(text), err=err)


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def print_table(columns: list[str], rows: list[list[str]], title: str | None = None) -> None:
    """A table on stdout, wide enough for whole cells where stdout is no terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=shown(title) if title else None, box=box.SIMPLE_HEAD, title_justify="left")
    for name, *cells in zip(columns, *rows, strict=True):
        numeric = all(not cell or re.match(r"[+-]?[\d.,]*\d([ /%x]|$)", cell) for cell in cells)
        table.add_column(shown(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(shown, row))
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
    console.print(table)
