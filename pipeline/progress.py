"""How the work tells its user what it does: one small interface, so that the pipeline knows no terminal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path

from polyp_difom.pipeline.files import append_text

Advance = Callable[[int], None]


class Progress:
    """Silent progress; the command line gives a subclass that draws bars on stderr."""

    def say(self, text: str) -> None:
        """One line for the user: what was chosen, and why."""

    def task(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """A bar with `total` steps; the yielded function advances it by n steps."""
        return nullcontext(lambda n: None)


class Logged(Progress):
    """Says everything to another progress too, and to a file with the time."""

    def __init__(self, inner: Progress, path: Path):
        self._inner, self._path = inner, path

    def say(self, text: str) -> None:
        """See `Progress.say`."""
        self._inner.say(text)
        append_text(self._path, f"{datetime.now().astimezone().isoformat(timespec='seconds')} {text}\n")

    def task(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """See `Progress.task`."""
        return self._inner.task(label, total)
