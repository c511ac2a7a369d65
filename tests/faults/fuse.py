"""Counts every change that a process makes to files below a folder, and strikes at a chosen one: a signal, or a disk that refuses."""

from __future__ import annotations

import errno
import io
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Moment = Literal["before", "inside", "after"]
REFUSED = {errno.ENOSPC: {"open", "write", "mkdir", "fsync"}, errno.EROFS: {"open", "write", "mkdir", "rename", "unlink"}}
"""Kinds of events that a full disk and a read-only one refuse."""


@dataclass(frozen=True)
class Strike:
    """What happens at an event.

    Args:
        at: number of the event, from 1; 0 for never.
        moment: before it, inside (half of the bytes are written; else as before), or after it.
        signal: sent to the process itself; None for a disk fault.
        error: errno with which this event and every later one that the fault is about fails.
        once: a file that the strike makes: events count in processes that the first one starts, and one of them is hit.
    """

    at: int = 0
    moment: Moment = "before"
    signal: signal.Signals | None = None
    error: int | None = None
    once: Path | None = None


class Fuse:
    """Belongs to a forked child, which it changes for good.

    Args:
        folder: only changes below it count.
        strike: what happens, and at which of them; `paths` are those that were changed.
    """

    def __init__(self, folder: Path, strike: Strike):
        self.folder, self.strike, self.paths = f"{os.path.realpath(folder)}/", strike, list[str]()
        self._lock, self._first = threading.Lock(), os.getpid()

    def event(self, kind: str, path: str, act: Callable[[], Any], half: Callable[[], Any] = lambda: None) -> Any:
        """Does `act`, a change of `path`, unless the strike forbids it."""
        if not path.startswith(self.folder) or (self.strike.once and os.getpid() == self._first):
            return act()
        with self._lock:
            self.paths.append(path)
            number = len(self.paths)
        strike = self.strike
        if strike.error is not None and strike.at and number >= strike.at and kind in REFUSED[strike.error]:
            if number == strike.at and strike.moment == "inside":
                half()
            raise OSError(strike.error, os.strerror(strike.error), path)
        hit = strike.signal is not None and number == strike.at and (strike.once is None or self._is_first(strike.once))
        if hit and strike.moment == "inside":
            half()
        if hit and strike.moment != "after":
            self._kill()
        result = act()
        if hit and strike.moment == "after":
            self._kill()
        return result

    def _is_first(self, marker: Path) -> bool:
        try:
            os.mkdir(marker)
        except FileExistsError:
            return False
        return True

    def _kill(self) -> None:
        assert self.strike.signal is not None
        os.kill(os.getpid(), self.strike.signal)

    def arm(self) -> None:
        """From now on every change that Python makes is an event."""
        for name, kind in (("unlink", "unlink"), ("remove", "unlink"), ("rmdir", "unlink"), ("mkdir", "mkdir")):
            self._wrap(name, kind)
        for name in ("rename", "replace", "link"):
            self._wrap_move(name)
        real_sync, real_write, real_truncate, real_open = os.fsync, os.pwrite, os.ftruncate, os.open
        os.fsync = lambda fd: self.event("fsync", _of(fd), lambda: real_sync(fd))  # type: ignore[assignment]
        os.ftruncate = lambda fd, size: self.event("write", _of(fd), lambda: real_truncate(fd, size))
        os.pwrite = (
            lambda fd, data, at: self.event(  # type: ignore[assignment, misc]
                "write", _of(fd), lambda: real_write(fd, data, at), lambda: real_write(fd, data[: len(data) // 2], at)
            )
        )

        def opened(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            def act() -> int:
                return real_open(path, flags, mode, dir_fd=dir_fd)

            return self.event("open", _full(path, dir_fd), act) if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else act()

        os.open = opened
        self._wrap_open()

    def _wrap(self, name: str, kind: str) -> None:
        real = getattr(os, name)

        def changed(path: Any, *args: Any, dir_fd: int | None = None, **kwargs: Any) -> Any:
            return self.event(kind, _full(path, dir_fd), lambda: real(path, *args, dir_fd=dir_fd, **kwargs))

        setattr(os, name, changed)
        if real in os.supports_dir_fd:  # rmtree asks
            os.supports_dir_fd.add(changed)

    def _wrap_move(self, name: str) -> None:
        real = getattr(os, name)
        setattr(os, name, lambda one, two, **kwargs: self.event("rename", _full(two, None), lambda: real(one, two, **kwargs)))

    def _wrap_open(self) -> None:
        fuse, real = self, io.open

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                whole, done = memoryview(data).cast("B"), [0]
                write, name = super().write, _full(self.name, None)

                def rest() -> int:  # where a signal that struck another thread lets this one go on
                    return done[0] + write(whole[done[0] :])

                def half() -> None:
                    done[0] = write(whole[: len(whole) // 2])

                return fuse.event("write", name, rest, half)

        def opened(
            file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, errors: str | None = None,
            newline: str | None = None, closefd: bool = True, opener: Any = None,
        ) -> Any:  # fmt: skip
            plain = isinstance(file, int) or opener is not None or not set(mode) & set("wax+")
            if plain or not _full(file, None).startswith(fuse.folder):
                return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
            raw = fuse.event("open", _full(file, None), lambda: Raw(file, mode.translate({98: None, 116: None})))
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)

        import builtins

        builtins.open = io.open = opened  # type: ignore[assignment]


def _of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _full(path: Any, dir_fd: int | None) -> str:
    base = os.getcwd() if dir_fd is None else _of(dir_fd)
    text = os.path.join(base, os.fsdecode(path))
    return os.path.join(os.path.realpath(os.path.dirname(text)), os.path.basename(text))
