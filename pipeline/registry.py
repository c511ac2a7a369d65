"""Named families found by their files: dropping one module into a package is all it takes to join."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar

from polyp_difom.cache.errors import UsageError

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to entries that the modules of one package register through a decorator.

    Args:
        kind: what the entries are called in messages ("teacher", "student", ...).
        package: dotted name of the package whose modules register entries; imported on first look-up.
        also: names that a user may give in an entry's place, for messages.
    """

    def __init__(self, kind: str, package: str, also: tuple[str, ...] = ()):
        self.kind = kind
        self._also = also
        self._package = package
        self._entries: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files its subject under `name`; a name taken twice is a programming error."""

        def join(entry: T) -> T:
            if name in self._entries:
                raise RuntimeError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return join

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._load()
        return sorted(self._entries)

    def get(self, name: str) -> T:
        """The entry called `name`.

        Raises:
            UsageError: no such name; the message lists close matches.
        """
        self._load()
        if name in self._entries:
            return self._entries[name]
        choices = [*self.names(), *self._also]
        close = difflib.get_close_matches(name, choices, n=3, cutoff=0.4)
        raise UsageError(
            f"unknown {self.kind} {name!r}",
            wanted=f"one of: {', '.join(choices)}",
            remedy=f"did you mean {' or '.join(close)}?" if close else None,
        )

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        self._loaded = True
