"""Where the time goes: seconds by section, and the pace of the last frames."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
_RECENT = 30  # frames that the running pace looks back on


class Clock:
    """A stopwatch with sections.

    Attributes:
        seconds: time spent, by section.
        pictures: how many are done.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.pictures = 0
        self._start = time.perf_counter()
        self._recent: deque[float] = deque([self._start], maxlen=_RECENT + 1)

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Books the time of a block under `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def timed(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The same items; the time of making each is booked under `name`."""
        iterator = iter(items)
        while True:
            with self.section(name):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def tick(self) -> None:
        """One more picture is done."""
        self.pictures += 1
        self._recent.append(time.perf_counter())

    def pace(self) -> float:
        """Pictures a second over the last ones, everything included."""
        return (len(self._recent) - 1) / max(self._recent[-1] - self._recent[0], 1e-9)

    def rates(self) -> dict[str, float]:
        """Pictures a second of each section by itself, and of the "whole"."""
        whole = {**self.seconds, "whole": time.perf_counter() - self._start}
        return {name: round(self.pictures / max(seconds, 1e-9), 2) for name, seconds in whole.items()} if self.pictures else {}
