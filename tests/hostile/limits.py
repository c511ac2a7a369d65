"""How long one reader may take: of its own work, so that a loaded machine is no hang, and much longer where it only waits."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

WORK, WAIT = 60.0, 300.0
"""Seconds of processor time, and of any time."""


class Hang(BaseException):
    """The time is over."""


@contextmanager
def patience(work: float = WORK, wait: float = WAIT) -> Iterator[None]:
    """Raises `Hang` in the main thread of a block that works or waits too long."""
    timers = ((signal.ITIMER_PROF, signal.SIGPROF, work), (signal.ITIMER_REAL, signal.SIGALRM, wait))
    before = [signal.signal(number, _ring) for _, number, _ in timers]
    try:
        for timer, _, seconds in timers:
            signal.setitimer(timer, seconds)
        yield
    finally:
        for (timer, number, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def _ring(signum: int, frame: FrameType | None) -> None:
    raise Hang
