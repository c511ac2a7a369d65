"""Faults beside kills: disks that are really full or read-only, a stopped process, two copies, a clock that goes backwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .commands import Files, compare, snapshot
from .fuse import Moment, Strike
from .kills import Bench, Ended, Outcome, attempt, begin, is_right_end, wait

HELPERS = {"sweep": ["--join"], "extract": []}
"""Commands of which several processes may be at work in one place, and what is added to say so."""
PATIENCE = 1.5
"""Seconds that a second process has to be refused, or to begin to wait."""
DAY = 86_400


def may_mount(folder: Path) -> bool:
    """Whether small file systems can be made here."""
    folder.mkdir(exist_ok=True)
    try:
        with _disk(folder, 1 << 20):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def full_disk(bench: Bench, name: str, share: float) -> Outcome:
    """A file system with room for `share` of what the command writes; it grows before the command is typed again."""
    place = bench.new_place(name)
    held = _blocks(snapshot(place, bench.commands[name]))
    needed = _blocks(bench.sound[name]) - held
    with _disk(place, held + max(1 << 14, int(needed * share))):
        bench.commands[name].begin(place)
        ended = attempt(bench.commands[name].words(place), place, Strike())
        _remount(place, "size=64m")
        return _judged(bench, name, place, "full file system", f"{share:.0%} of what it needs", [ended])


def _blocks(files: Files) -> int:
    """Bytes of whole blocks."""
    return sum(max(4096, -(-len(raw) // 4096) * 4096) for raw in files.values())


def read_only(bench: Bench, name: str, strike: Strike) -> Outcome:
    """Killed half-way; then the file system is read-only when the command is typed again, then writable."""
    place = bench.new_place(name)
    with _disk(place, 64 << 20):
        command = bench.commands[name]
        command.begin(place)
        attempt(command.words(place), place, strike)
        _remount(place, "ro")
        ended = attempt([*command.words(place), *command.again], place, Strike())
        _remount(place, "rw")
        return _judged(bench, name, place, "read-only remount", f"after event {strike.at}", [ended])


def stopped(bench: Bench, name: str, at: int, killed: bool) -> Outcome:
    """One process is stopped at an event, a second one comes; then the first goes on, or is killed."""
    place, words = bench.new_place(name), bench.commands[name].words
    given = [*words(place), *HELPERS.get(name, [])]
    first = begin(given, place, Strike(at, "before", signal.SIGSTOP))
    until = time.monotonic() + 60
    while time.monotonic() < until and _state(first) not in "TZ":
        time.sleep(0.01)
    second = begin(given, place, Strike(), copy=1)
    time.sleep(PATIENCE)
    os.kill(first, signal.SIGKILL if killed else signal.SIGCONT)
    ends = [wait(first, place), wait(second, place, copy=1)]
    if killed and ends[0].code == -signal.SIGKILL:
        ends = ends[1:]
    return _judged(bench, name, place, "stopped, then killed" if killed else "stopped, then on", f"before event {at}", ends)


def two_copies(bench: Bench, name: str) -> Outcome:
    """Two processes of one command start at once."""
    place = bench.new_place(name)
    given = [*bench.commands[name].words(place), *HELPERS.get(name, [])]
    children = [begin(given, place, Strike(), copy) for copy in range(2)]
    ends = [wait(child, place, copy=copy) for copy, child in enumerate(children)]
    notes = "" if any(ended.code == 0 for ended in ends) else "neither came to its end; "
    notes += "; ".join(compare(snapshot(place, bench.commands[name]), bench.sound[name])[:6])
    return _judged(bench, name, place, "two copies", "at once", ends, notes)


def clock_backwards(bench: Bench, name: str, strike: Strike) -> Outcome:
    """Killed; then every file there is of tomorrow, as after a clock that went back by a day."""

    def tomorrow(place: Path) -> None:
        for path in place.rglob("*"):
            os.utime(path, (time.time() + DAY, time.time() + DAY))

    return bench.follow(name, "clock went back", strike, between=tomorrow)


def _judged(
    bench: Bench, name: str, place: Path, kind: str, moment: str, ends: list[Ended], problem: str = ""
) -> Outcome:  # fmt: skip
    """Whether all ended well or with a message, and the same command leads to the whole result."""
    sound = bench.sound[name]
    strange = [
        ended for ended in ends if not (ended.code == 0 and "Traceback" not in ended.text) and not is_right_end(ended, None)
    ]
    here = snapshot(place, bench.commands[name])  # what a killed one left aside is cleared away by the next
    silent = len(ends) == 1 and ends[0].code == 0 and any(here.get(file) != raw for file, raw in sound.items())
    notes = [f"ended with {ended.code}: {ended.text[-600:]}" for ended in strange] + ([problem] if problem else [])
    final = bench.restart(name, place)
    whole = final.code == 0 and not final.differing and not final.again_wrong
    if not whole:
        notes.append(f"code {final.code}, differs {final.differing[:6]}, {final.again_wrong} {final.text[-500:]}")
    outcome = Outcome(
        kind, name, moment, "", detected=not strange, recovered=whole and not problem, lost=not whole,
        corrupt=bool(problem), silent=silent or (final.code == 0 and bool(final.differing)), note="; ".join(notes),
    )  # fmt: skip
    if not notes and not os.path.ismount(place):
        shutil.rmtree(place)
    return outcome


def worker_killed(bench: Bench, at: int, moment: Moment, signed: signal.Signals) -> Outcome:
    """One of a sweep's own worker processes is hit; the sweep itself goes on, to the result of a plain one."""
    place = bench.new_place("sweep")
    struck = place.with_name(f"{place.name}.struck")
    ended = attempt(bench.commands["sweep"].words(place), place, Strike(at, moment, signed, once=struck))
    differing = compare(snapshot(place, bench.commands["sweep"]), bench.sound["sweep"])
    notes = [] if ended.code == 0 and "Traceback" not in ended.text else [f"ended with {ended.code}: {ended.text[-600:]}"]
    notes += [f"differs: {differing[:6]}"] if differing else []
    notes += [] if struck.exists() else ["no worker came so far"]
    if not notes:
        shutil.rmtree(place)
    return Outcome(
        "worker killed", "sweep", f"{moment} event {at}", signed.name, detected=not notes, recovered=not differing,
        lost=bool(differing), silent=ended.code == 0 and bool(differing), note="; ".join(notes),
    )  # fmt: skip


def worker_events(bench: Bench) -> int:
    """How many changes of files a sweep's workers make."""
    return sum("/sweep/trials/" in path or "/sweep/runs/" in path for path in bench.paths["sweep"])


@contextmanager
def _disk(place: Path, size: int) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def _remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


def _state(process: int) -> str:
    """T for stopped, Z for ended."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
