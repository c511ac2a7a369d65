"""Many workers on one store: each claims a shard before it works on it, and no living worker's shard can be taken.

Within a host, and across hosts whose file system carries record locks, a claim is a lock on the shard's byte of `.lock`: it
ends with its process. For file systems whose locks stay within a host there is also a file `.claims/<shard>` that names the
owner and is touched every minute: a claim from another host counts until it has not been touched for a quarter of an hour.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from polyp_difom.cache.location import is_alive
from polyp_difom.cache.lock import DOOR, FIRST_SHARD, SETUP, STORE, RecordLocks, name_of_this_process, opened

TOUCH_SECONDS = 60.0
EXPIRY_SECONDS = 900.0
"""Age at which a claim from another host is void; hosts' clocks must agree much better than that."""


class Claims:
    """What this process has claimed of one store; made by `joined`."""

    def __init__(self, folder: Path, locks: RecordLocks):
        self._folder = folder / ".claims"
        self._locks = locks
        self._held: set[int] = set()
        self._seen: dict[tuple[str, int], float] = {}

    def take(self, shard: int) -> bool:
        """Claims a shard; False where a living worker has it."""
        if shard in self._held or not self._locks.take(FIRST_SHARD + shard):
            return False
        file = self._folder / str(shard)
        if is_foreign(file) and not self._is_stale(file):
            self._locks.release(FIRST_SHARD + shard)
            return False
        self._folder.mkdir(exist_ok=True)
        partial = self._folder / f"{shard}.{os.getpid()}.partial"
        partial.write_text(name_of_this_process())
        partial.replace(file)  # whole or not at all: a claim without a name would be nobody's
        self._held.add(shard)
        return True

    def _is_stale(self, file: Path) -> bool:
        """Nobody has touched a claim for as long as claims last by this process's own clock, whatever the date is."""
        with suppress(FileNotFoundError):
            seen = self._seen.setdefault((file.name, file.stat().st_mtime_ns), time.monotonic())
            return time.monotonic() - seen > EXPIRY_SECONDS
        return False

    def release(self, shard: int) -> None:
        """Gives a claim back, whether its shard is done or not."""
        self._held.discard(shard)
        (self._folder / str(shard)).unlink(missing_ok=True)
        self._locks.release(FIRST_SHARD + shard)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One worker at a time in this block; the others wait."""
        self._locks.take(SETUP, wait=True)
        try:
            yield
        finally:
            self._locks.release(SETUP)

    def _keep_alive(self, over: threading.Event) -> None:
        while not over.wait(TOUCH_SECONDS):
            for shard in tuple(self._held):
                with suppress(FileNotFoundError):  # released meanwhile
                    os.utime(self._folder / str(shard))

    def _release_all(self) -> None:
        for shard in tuple(self._held):
            self.release(shard)


class NoClaims(Claims):
    """For a store at a URL, which one process alone may fill: everything is free."""

    def __init__(self) -> None:
        pass

    def take(self, shard: int) -> bool:
        """Always."""
        return True

    def release(self, shard: int) -> None:
        """Nothing to give back."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """At once."""
        yield


@contextmanager
def joined(folder: Path) -> Iterator[Claims]:
    """Takes part in filling the store in `folder`, beside other workers but beside no exclusive writer.

    Whoever comes first, and whoever leaves last, removes what killed writes left behind.

    Raises:
        CacheError: an exclusive writer holds the store, or this process works on it already.
    """
    with opened(folder / ".lock") as locks:
        _sweep_if_alone(folder, locks)
        if not locks.take(STORE, shared=True):
            raise locks.busy()
        locks.release(DOOR)
        locks.sign()
        claims, over = Claims(folder, locks), threading.Event()
        keeper = threading.Thread(target=claims._keep_alive, args=(over,), daemon=True)
        keeper.start()
        try:
            yield claims
        finally:
            over.set()
            keeper.join()
            claims._release_all()
            locks.release(STORE)
            _sweep_if_alone(folder, locks)


def is_foreign(claim: Path) -> bool:
    """A process on another host, which locks may not reach, has touched the claim lately; one without a name is nobody's."""
    try:
        owner, touched = claim.read_text(), claim.stat().st_mtime
    except FileNotFoundError:
        return False
    host, ours = (name.partition(" on ")[2] for name in (owner, name_of_this_process()))
    return host not in ("", ours) and time.time() - touched < EXPIRY_SECONDS


def living_owner(folder: Path, shard: int) -> str | None:
    """Process and host that hold a claim, for those who only look; None where it is free or its process is gone."""
    file = folder / ".claims" / str(shard)
    try:
        owner = file.read_text()
    except FileNotFoundError:
        return None
    process, _, host = owner.removeprefix("process ").partition(" on ")
    if host == socket.gethostname():
        return owner if process.isdecimal() and is_alive(int(process)) else None
    return owner if is_foreign(file) else None


def sweep(folder: Path) -> None:
    """Removes what killed writers left: Zarr's partial files, and claims. Only for one who has the store alone."""
    for stray in folder.rglob("*.partial"):
        stray.unlink()
    claims = folder / ".claims"
    if claims.exists():
        for claim in claims.iterdir():
            if not is_foreign(claim):
                claim.unlink()
        with suppress(OSError):  # not empty: another host is at work
            claims.rmdir()


def _sweep_if_alone(folder: Path, locks: RecordLocks) -> None:
    """Sweeps behind the shut door, so that no newcomer meets the exclusive lock that this takes."""
    locks.take(DOOR, wait=True)
    if locks.take(STORE):
        sweep(folder)
