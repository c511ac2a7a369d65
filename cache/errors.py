"""The error family: every error a user can cause says what, where, got, wanted and the next command."""

from __future__ import annotations

import errno

DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Numbers of an OSError by which a disk is full, read-only or broken."""


class PolypDifomError(Exception):
    """Base of all errors meant for a user's eyes; the command line prints it without a traceback.

    Args:
        what: one sentence, lower case, that names the problem.
        where: the file, store or option concerned.
        got: what was found there.
        wanted: what would have been right.
        remedy: the next command or step to take.
    """

    exit_code = 1

    def __init__(
        self, what: str, *, where: object = None, got: object = None, wanted: object = None, remedy: str | None = None
    ):
        self.what = what
        self.details = {"where": where, "got": got, "wanted": wanted, "next": remedy}
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The sentence followed by one indented line per known detail."""
        lines = [f"  {key + ':':<8}{shown(value)}" for key, value in self.details.items() if value is not None]
        return "\n".join([shown(self.what), *lines])


class UsageError(PolypDifomError, ValueError):
    """An option or name that cannot be used as given (exit code 2)."""

    exit_code = 2


class DataError(PolypDifomError, ValueError):
    """Images, masks, splits or folders that cannot be used as found (exit code 3)."""

    exit_code = 3


class CacheError(PolypDifomError, RuntimeError):
    """A feature store that is missing, incomplete, damaged, busy or of another signature (exit code 4)."""

    exit_code = 4


class MissingDependencyError(PolypDifomError, ImportError):
    """A package or a set of weights that is not reachable (exit code 5)."""

    exit_code = 5


class RunError(PolypDifomError, RuntimeError):
    """A run folder that cannot be created, resumed or read (exit code 1)."""


def shown(value: object) -> str:
    """Text for a terminal: control characters, which a file's name may hold, and undecodable bytes are escaped; lines stay."""
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def first_line(error: Exception) -> str:
    """What an exception says, or its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
