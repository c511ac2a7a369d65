"""Who may write: record locks on single bytes of one file, which the kernel drops when their process dies."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from polyp_difom.cache.errors import CacheError

STORE, DOOR, SETUP, FIRST_SHARD = range(4)
"""Bytes: the whole store (one exclusive writer, or any number of workers), a worker's coming and going, what is made once
before the first shard, and then one byte a shard.
"""
_HELD: set[str] = set()


class RecordLocks:
    """Locks of this process on bytes of one file.

    POSIX record locks: a kill releases them at once, even while forked children live on (a flock would stay with them), and
    they reach across NFS. They do not exclude their own process, and closing any descriptor of the file drops them all:
    hence one object a file, made by `opened`.
    """

    def __init__(self, path: Path, descriptor: int):
        self.path = path
        self._descriptor = descriptor

    def take(self, byte: int, *, shared: bool = False, wait: bool = False) -> bool:
        """Locks a byte, or turns the lock on it into the other kind; False where another process is in the way."""
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.lockf(self._descriptor, kind if wait else kind | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def release(self, byte: int) -> None:
        """Unlocks a byte."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, byte)

    def is_current(self) -> bool:
        """The file is still under its name: nobody has removed it meanwhile."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        return False

    def sign(self) -> None:
        """Leaves this process's name for those who find the file locked."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, name_of_this_process().encode(), 0)

    def busy(self) -> CacheError:
        """The error for one who found the store locked."""
        return _busy(self.path, os.pread(self._descriptor, 200, 0).decode(errors="replace") or "another process")


@contextmanager
def opened(path: Path) -> Iterator[RecordLocks]:
    """The locks of a file, all dropped at the end.

    Raises:
        CacheError: this process has them open already.
    """
    name = os.path.realpath(path)
    if name in _HELD:
        raise _busy(path, "this process")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    _HELD.add(name)
    try:
        yield RecordLocks(path, descriptor)
    finally:
        _HELD.discard(name)
        os.close(descriptor)


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Holds the store of the lock file `path` for this process alone, without waiting.

    Raises:
        CacheError: another writer or worker holds it; names its process and host.
    """
    with opened(path) as locks:
        if not locks.take(STORE):
            raise locks.busy()
        locks.sign()
        yield


@contextmanager
def passing_lock(path: Path) -> Iterator[None]:
    """`exclusive_lock` whose file is there only while it is held, or after a kill."""
    with opened(path) as locks:
        if not locks.take(STORE) or not locks.is_current():
            raise locks.busy()
        locks.sign()
        try:
            yield
        finally:
            with suppress(OSError):  # a disk that has become read-only
                path.unlink()


def name_of_this_process() -> str:
    """Process and host."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def _busy(path: Path, holder: str) -> CacheError:
    return CacheError(
        "the store has another writer",
        where=path.parent,
        got=holder,
        wanted="one writer at a time",
        remedy="wait for it to end, or stop it",
    )
