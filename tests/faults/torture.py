"""`make torture`: every kind of fault on every command, as many as asked for, and a table of what became of them.

Ends with 1 where anything was lost, corrupt or silent, or left a user without a way on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from errno import ENOSPC, EROFS
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path
from typing import cast

import numpy as np
import torch

from . import corruptions
from .fuse import Moment, Strike
from .kills import Bench, Outcome
from .others import clock_backwards, full_disk, may_mount, read_only, stopped, two_copies, worker_events, worker_killed

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOMENTS = ("before", "inside", "after")
COLUMNS = ("tried", "detected", "recovered", "lost", "corrupt", "silent")
OF_COMMANDS, OF_BYTES = ("kills", "workers", "others", "disks"), ("files", "damages", "folders")
Fault = Callable[[], Outcome]


def kills(bench: Bench, rng: np.random.Generator, count: int) -> Iterator[Fault]:
    """`count` kills, the same number for each command: at events spread over all it does, and some at any time."""
    names = list(bench.commands)
    each = -(-count // len(names))
    for number in range(count):
        name, turn = names[number % len(names)], number // len(names)
        at = 1 + int((turn + rng.random()) / each * bench.events[name])
        signed = SIGNALS[turn % 3]
        moment = cast(Moment, MOMENTS[turn // 3 % 3])
        if turn % 10 == 9:
            seconds = float(rng.uniform(0.05, 1.0))
            yield lambda name=name, seconds=seconds: bench.follow(name, "kill at any time", Strike(), seconds)
        else:
            strike = Strike(at, moment, signed)
            yield lambda name=name, strike=strike: bench.follow(name, f"kill {strike.moment} a write", strike)


def disks(bench: Bench, rng: np.random.Generator, count: int) -> Iterator[Fault]:
    """`count` writes after which the disk refuses."""
    names = list(bench.commands)
    for number in range(count):
        name, error = names[number % len(names)], (ENOSPC, EROFS)[number // len(names) % 2]
        at, moment = 1 + int(rng.integers(bench.events[name])), cast(Moment, MOMENTS[int(rng.integers(2))])
        kind = "disk full from a write on" if error == ENOSPC else "disk read-only from a write on"
        strike = Strike(at, moment, error=error)
        yield lambda name=name, kind=kind, strike=strike: bench.follow(name, kind, strike)


def others(bench: Bench, rng: np.random.Generator, rounds: int) -> Iterator[Fault]:
    """Every other kind on every command, `rounds` times."""
    mounts = may_mount(bench.folder / "mount")
    if not mounts:
        print("no file systems can be mounted here: full and read-only ones are left out", file=sys.stderr)
    for number in range(rounds):
        for name in bench.commands:
            at = 1 + int(rng.integers(bench.events[name]))
            strike, share = Strike(at, "before", signal.SIGKILL), float(rng.uniform(0.1, 0.9))
            yield lambda name=name: two_copies(bench, name)
            yield lambda name=name, at=at, killed=bool(number % 2): stopped(bench, name, at, killed)
            yield lambda name=name, strike=strike: clock_backwards(bench, name, strike)
            if mounts:
                yield lambda name=name, share=share: full_disk(bench, name, share)
                yield lambda name=name, strike=strike: read_only(bench, name, strike)


def workers(bench: Bench, rng: np.random.Generator, count: int) -> Iterator[Fault]:
    """`count` kills of a sweep's own worker processes."""
    for number in range(count):
        at = 1 + int((number + rng.random()) / count * worker_events(bench))
        moment, signed = cast(Moment, MOMENTS[number // 3 % 3]), SIGNALS[number % 3]
        yield lambda at=at, moment=moment, signed=signed: worker_killed(bench, at, moment, signed)


def strangers(folder: Path, seed: int, share: float) -> Iterator[Fault]:
    """Every command that reads a stranger's run or sweep, on hostile ones, as they come."""
    folder.mkdir()
    call = [sys.executable, "-m", "tests.hostile.visit", str(folder), str(share), str(seed)]
    process = subprocess.Popen(call, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            yield lambda case=json.loads(line): _of_stranger(case)
        if code := process.wait():
            note = f"ended with {code}"
            yield lambda: Outcome(
                "hostile folders", "all readers", "", "", detected=False, recovered=False, lost=True, note=note
            )
    finally:
        process.kill()
        process.wait()


def _of_stranger(case: dict) -> Outcome:
    wrong = case["wrong"]
    return Outcome(
        f"hostile {case['kind']}", case["command"], case["name"], "", detected=not wrong, recovered=not wrong, silent=bool(wrong),
        note=str(case) if wrong else "",
    )  # fmt: skip


def damaged_stores(seed: int, count: int, folder: Path, data: Sequence[Path] = ()) -> Iterator[Fault]:
    """Faults of the catalogue of damage to stores."""
    folder.mkdir()
    bench = corruptions.Bench(folder, data)
    for number, fault in enumerate(corruptions.chosen(bench, seed, count)):
        yield lambda fault=fault, number=number: _of_damage(bench, fault, folder / f"hurt-{number}.zarr")


def _of_damage(bench: corruptions.Bench, fault: corruptions.Fault, place: Path) -> Outcome:
    try:
        found = corruptions.follow(bench, fault, place)
    except Exception:  # one that cannot be put right must not hide what became of the others
        note, kind = traceback.format_exc(), f"store: {fault.kind}"
        return Outcome(kind, "verify, repair", fault.place, "", detected=True, recovered=False, lost=True, note=note)
    harmless = not found.detected_by and not found.silent
    return Outcome(
        f"store: {found.kind}", "verify, repair", found.place, "", detected=bool(found.detected_by) or harmless,
        recovered=found.is_good, lost=not found.repaired or found.recomputed > found.limit, silent=found.silent or found.unread,
        note="" if found.is_good else str(found), told=found.detected_by or "harmless",
    )  # fmt: skip


def hostile_files(folder: Path) -> Iterator[Fault]:
    """Every file of the hostile corpus: read as it is, or refused with a message."""
    call = f"from tests.hostile.driver import main; main({str(folder)!r})"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", call], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        note = done.stderr[-600:]
        yield lambda: Outcome("hostile files", "all readers", "", "", detected=False, recovered=False, lost=True, note=note)
        return
    for line in done.stdout.splitlines()[1:-1]:
        yield lambda case=json.loads(line): _of_case(case)


def _of_case(case: dict) -> Outcome:
    right = case["got"] in ("read", "refused") and (
        case["expected"] in ("either", case["got"]) or (case["reader"] == "read_map" and case["expected"] == "read")
    )
    silent = case["got"] == "read wrongly" or (case["expected"] == "refused" and case["got"] == "read")
    return Outcome(
        f"hostile: {case['kind']}", "any reader", case["path"], "", detected=right, recovered=right,
        lost=case["got"] in ("crashes", "hangs"), silent=silent, note="" if right else str(case),
    )  # fmt: skip


def table(outcomes: list[Outcome]) -> str:
    """Counts by kind and command, and of all."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.kind, outcome.command), []).append(outcome)
    lines = [f"{'fault':34}{'command':16}" + "".join(f"{name:>10}" for name in COLUMNS)]
    for (kind, command), found in [*sorted(groups.items()), (("all", ""), outcomes)]:
        counts = [len(found), *(sum(getattr(one, name) for one in found) for name in COLUMNS[1:])]
        lines.append(f"{kind:34}{command:16}" + "".join(f"{count:10}" for count in counts))
    return "\n".join(lines)


def product(outcomes: list[Outcome]) -> str:
    """Every class of a store's bytes with every damage to it: tried, and of those how many reading or opening told.

    What else was told was told by `cache verify`, or by the count of complete shards; = for what harms no reader.
    """
    cells: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.kind.startswith("store: "):
            cells.setdefault((outcome.moment.split(" ")[0], outcome.kind.removeprefix("store: ")), []).append(outcome)
    kinds = sorted({kind for _, kind in cells})
    lines = [f"{'bytes of a store':34}" + "".join(f"{kind:>12}" for kind in kinds)]
    for what in sorted({what for what, _ in cells}):
        row = ""
        for kind in kinds:
            found = cells.get((what, kind), [])
            read = sum("read" in one.told or "open" in one.told for one in found)
            harmless = sum(one.told == "harmless" for one in found)
            row += f"{f'{len(found)} ({read})' + '=' * (harmless > 0) if found else '-':>12}"
        lines.append(f"{what:34}{row}")
    return "\n".join(lines)


def tried(faults: Iterable[Fault], until: float) -> list[Outcome]:
    """What became of each, as far as the time goes; what is not good is told at once."""
    outcomes: list[Outcome] = []
    for fault in faults:
        if time.monotonic() > until:
            print("the time is over before all faults were tried", file=sys.stderr)
            break
        try:
            outcome = fault()
        except Exception:  # one that breaks the harness must not hide what became of the others
            note = traceback.format_exc()
            outcome = Outcome("harness broke", "", "", "", detected=False, recovered=False, lost=True, note=note)
        outcomes.append(outcome)
        if not outcome.is_good or outcome.note:
            print(outcome, file=sys.stderr, flush=True)
        if len(outcomes) % 25 == 0:
            print(f"{len(outcomes)} faults, {sum(not one.is_good for one in outcomes)} not good", file=sys.stderr, flush=True)
    return outcomes


def bytes_and_files(folder: Path, asked: argparse.Namespace, until: float) -> list[Outcome]:
    """All hostile files, three damages to stores for each kill, and hostile folders, all from 300 kills on; in turn."""
    torch.set_num_threads(1)
    parts = {
        "files": hostile_files(folder / "hostile"),
        "damages": damaged_stores(asked.seed, 3 * asked.count, folder / "damage", asked.data),
        "folders": strangers(folder / "strangers", asked.seed, min(1.0, asked.count / 300)),
    }
    rows = zip_longest(*(part for name, part in parts.items() if name in asked.only))
    return tried((fault for row in rows for fault in row if fault is not None), until)


def commands(folder: Path, job: int, asked: argparse.Namespace, until: float) -> list[Outcome]:
    """One job's part of the kills, of a fifth as many writes that the disk refuses, and of all else, in no order."""
    torch.set_num_threads(1)
    if not set(OF_COMMANDS) & set(asked.only):
        return []
    folder.mkdir()
    rng, bench, count = np.random.default_rng(asked.seed), Bench(folder, asked.data), asked.count
    parts = {
        "kills": kills(bench, rng, count), "workers": workers(bench, rng, max(3, count // 10)),
        "others": others(bench, rng, max(1, count // 150)), "disks": disks(bench, rng, count // 5),
    }  # fmt: skip
    faults = [fault for name, part in parts.items() if name in asked.only for fault in part]
    return tried([faults[number] for number in rng.permutation(len(faults))[job :: asked.jobs]], until)


def _paths(text: str) -> list[Path]:
    return [Path(name) for name in text.split(",")]


def _kinds(text: str) -> list[str]:
    if unknown := set(names := text.split(",")) - {*OF_COMMANDS, *OF_BYTES}:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return names


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="kills; the other faults follow from it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side, beside the one that damages stores")
    parser.add_argument(
        "--data", type=_paths, default=[], help="data sets whose frames are taken, not drawn ones, between commas"
    )
    every = ",".join((*OF_COMMANDS, *OF_BYTES))
    parser.add_argument("--only", type=_kinds, default=every, help=f"which faults, between commas, of {every}")
    asked = parser.parse_args()
    stdout = os.dup(1)
    os.dup2(2, 1)  # what commands print is no result
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    until = time.monotonic() + 60 * asked.minutes
    with ProcessPoolExecutor(asked.jobs + 1, get_context("fork")) as processes:
        parts = [processes.submit(bytes_and_files, folder, asked, until)]
        parts += [processes.submit(commands, folder / f"bench-{job}", job, asked, until) for job in range(asked.jobs)]
        outcomes = [outcome for part in parts for outcome in part.result()]
    os.dup2(stdout, 1)
    print(f"{table(outcomes)}\n\n{product(outcomes)}")
    bad = [outcome for outcome in outcomes if not outcome.is_good]
    print(f"\n{len(outcomes)} faults: {sum(one.lost for one in outcomes)} lost, {sum(one.corrupt for one in outcomes)} corrupt, "
          f"{sum(one.silent for one in outcomes)} silent, {sum(not one.detected for one in outcomes)} not told")  # fmt: skip
    if not bad:
        shutil.rmtree(folder)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
