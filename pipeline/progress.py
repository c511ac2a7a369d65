"""How the work tells its user what it does: one small interface, so that the pipeline knows no terminal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Advance = Callable[[int], None]


class Progress:
    """Silent progress; the command line gives a subclass that draws bars on stderr."""

    def say(self, text: str) -> None:
        """One line for the user: what was chosen, and why."""

    def task(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """A bar with `total` steps; the yielded function advances it by n steps."""
        return nullcontext(lambda n: None)
