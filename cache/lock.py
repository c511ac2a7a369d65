"""One writer a store: an exclusive lock that dies with its process."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polyp_difom.cache.errors import CacheError

_HELD: set[str] = set()


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Holds `path` for this process, without waiting.

    A POSIX record lock: a kill releases it at once, even while forked children live on (a flock would stay with them), and it
    reaches across NFS. It does not exclude its own process, hence the set of held paths.

    Raises:
        CacheError: another writer holds the lock; names its process and host.
    """
    name = os.path.realpath(path)
    descriptor = -1
    if name not in _HELD:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if descriptor < 0:
            raise BlockingIOError
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        holder = (
            "this process" if descriptor < 0 else os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
        )
        if descriptor >= 0:
            os.close(descriptor)
        raise CacheError(
            "the store has another writer",
            where=path.parent,
            got=holder,
            wanted="one writer at a time",
            remedy="wait for it to end, or stop it",
        ) from error
    _HELD.add(name)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        _HELD.discard(name)
        os.close(descriptor)
