"""What a sweep over one store saves: against separate `distill` calls, and against runs that each extract for themselves.

Every command runs in a process of its own, as a user would start it.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from polyp_difom.cache.errors import RunError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.bench.machine import Machine
from polyp_difom.pipeline.bench.random_teacher import random_weights
from polyp_difom.pipeline.costs import cost_line
from polyp_difom.pipeline.data.synthetic import write_dataset
from polyp_difom.pipeline.device import pick_device
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.sweep.folder import SweepFolder
from polyp_difom.pipeline.sweep.forecast import last_end

COMMAND = (sys.executable, "-m", "polyp_difom.cli")
DRAWN_TEACHER, DRAWN_INPUT = "dinov2:small", 112
"""With random weights, where no teacher is named."""
LARGER = (10, 30, 100)
"""Students for which the measured parts are added up."""
SIDE_BY_SIDE = 4
"""Trials of the sweep whose memory is watched."""
MOST_STUDENTS = 10_000
WATCH_SECONDS = 0.1
WAYS = ("one extract, one sweep", "one extract, separate distill calls", "separate extracts and distill calls")


@dataclass(frozen=True)
class Parts:
    """Seconds of what the ways are made of.

    Attributes:
        extract: one extraction. distill: one `distill` call. trial: one training inside the sweep, beside its neighbours.
        around: of a sweep, apart from its trials: starting, reading the store, measuring how many trials are fastest.
        jobs: trials that the sweep ran side by side.
    """

    extract: float
    distill: float
    trial: float
    around: float
    jobs: int

    def seconds(self, students: int) -> tuple[float, float, float]:
        """Of each of the `WAYS` for so many students."""
        sweep = self.around + math.ceil(students / self.jobs) * self.trial
        calls = students * self.distill
        return self.extract + sweep, self.extract + calls, students * self.extract + calls

    def first_cheaper_than(self, way: int) -> int | None:
        """The number of students from which on one extraction and one sweep take less time than another way, if ever."""
        found = None
        for students in range(MOST_STUDENTS, 0, -1):
            seconds = self.seconds(students)
            if seconds[0] >= seconds[way]:
                break
            found = students
        return found


@dataclass(frozen=True)
class Way:
    """All students trained in one way: seconds, how many times those of one sweep, and whether all of it was measured."""

    name: str
    students: int
    seconds: float
    ratio: float
    measured: bool


@dataclass(frozen=True)
class Memory:
    """Peaks of proportional set size, bytes: pages that processes share count once.

    Attributes:
        sweep: of all processes of a sweep with `jobs` trials side by side. one: of one `distill` call, its own copy of the
            store's arrays included. store: of the store's arrays on disk.
    """

    jobs: int
    sweep: int
    one: int
    store: int


@dataclass(frozen=True)
class SweepBench:
    """All figures of one measurement.

    Attributes:
        break_even: students from which on one extraction and one sweep are faster than runs that each extract.
        sweep_pays: students from which on a sweep is faster than separate `distill` calls over the same store.
        ledger: what the store's ledger says of teachers that would run beside the student.
    """

    machine: Machine
    parts: Parts
    ways: list[Way]
    break_even: int | None
    sweep_pays: int | None
    ledger: str
    memory: Memory

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def bench_sweep(
    *,
    store: str | None = None,
    data: Path | None = None,
    teacher: str | None = None,
    frames: int = 24,
    size: int = 64,
    students: int = 3,
    student: str = "unet:8",
    epochs: int = 20,
    jobs: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> SweepBench:
    """Trains one student with several seeds in each of the `WAYS`, and watches the memory of four trials side by side.

    Args:
        store: complete; its ledger then stands for the extraction. By default one is made of `data`, or of drawn frames.
        teacher: whose weights are at hand; by default a DINOv2-S with random ones.
        jobs: of the sweep; None lets it measure how many are fastest, and counts the seconds of that.

    Raises:
        UsageError: both a store and data. RunError: one of the commands failed.
    """
    if store and data:
        raise UsageError("--store and --data exclude each other", remedy="give one of them")
    progress, chosen = progress or Progress(), pick_device(device)
    machine = Machine.here(chosen, torch.get_num_threads())
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bench = _Bench(folder, student, epochs, str(chosen), progress)
        if store is None:
            make = _extraction(folder, data, teacher, frames, size, str(chosen))
            extract = bench.timed("extract", make(0))
            cache, repeats = str(folder / "0.zarr"), [bench.timed("extract again", make(n)) for n in range(1, students)]
            extracts: list[float] | None = [extract, *repeats]
        else:
            cache, extracts = store, None
        opened = FeatureStore.open(cache)
        opened.require_complete()
        return bench.compared(machine, opened, extracts, students, jobs)


def _extraction(
    folder: Path, data: Path | None, teacher: str | None, frames: int, size: int, device: str
) -> Callable[[int], list[str]]:
    """The command that makes the n-th store."""
    if data is None:
        data = folder / "drawn"
        write_dataset(data, count=frames, size=size)
    chosen = ["--teachers", teacher or DRAWN_TEACHER]
    if teacher is None:
        weights = random_weights(DRAWN_TEACHER, folder)
        chosen += ["--weights", f"{DRAWN_TEACHER}={weights}", "--input-size", f"{DRAWN_TEACHER}={DRAWN_INPUT}"]
    shape = ["--size", str(size), "--limit", str(frames), "--views", "2", "--basis-frames", str(frames), "--device", device]
    return lambda n: ["extract", "--data", str(data), "--cache", str(folder / f"{n}.zarr"), *chosen, *shape, "-q"]


@dataclass(frozen=True)
class _Bench:
    folder: Path
    student: str
    epochs: int
    device: str
    progress: Progress

    def compared(
        self, machine: Machine, store: FeatureStore, extracts: list[float] | None, students: int, jobs: int | None
    ) -> SweepBench:
        """Sweep and separate calls over a store that is there; `extracts` None: the ledger tells."""
        cache = str(store.location)
        sweep = self.timed("sweep", self.sweep(cache, students, jobs, "sweep"))
        calls = [self.timed("distill", self.distill(cache, seed, f"run{seed}")) for seed in range(students)]
        done = SweepFolder.open(self.folder / "sweep")
        used, trials = done.config().jobs or 1, [record.seconds for record in done.records()]
        ledger = store.ledger()
        recorded = sum(ledger[f"{part}_seconds"] for part in ("teacher", "decode", "write"))
        parts = Parts(
            sum(extracts) / students if extracts else recorded, sum(calls) / students, sum(trials) / students,
            max(0.0, sweep - last_end(trials, used)), used,
        )  # fmt: skip
        first, every = (extracts[0], sum(extracts)) if extracts else (parts.extract, students * parts.extract)
        seconds = (first + sweep, first + sum(calls), every + sum(calls))
        ways = list(_ways(students, seconds, measured=extracts is not None))
        for larger in (number for number in LARGER if number > students):
            ways += _ways(larger, parts.seconds(larger), measured=False)
        pays = parts.first_cheaper_than(2), parts.first_cheaper_than(1)
        return SweepBench(machine, parts, ways, *pays, cost_line(store), self.memory(store))

    def memory(self, store: FeatureStore) -> Memory:
        """Watched: a sweep of four trials at once, and one `distill` call."""
        cache, size = str(store.location), sum(store.location.sizes().values())
        beside = self.watched("memory of a sweep", self.sweep(cache, SIDE_BY_SIDE, SIDE_BY_SIDE, "watched"))
        return Memory(SIDE_BY_SIDE, beside, self.watched("memory of one run", self.distill(cache, 0, "alone")), size)

    def sweep(self, cache: str, students: int, jobs: int | None, name: str) -> list[str]:
        """The command for a sweep over seeds."""
        factors = f"student={self.student} epochs={self.epochs} batch-size=8 pretrained=false seed=0..{students - 1}"
        side_by_side = ["--jobs", str(jobs)] if jobs else []
        where = ["-o", str(self.folder / name), "--device", self.device]
        return ["sweep", "--cache", cache, "--grid", factors, *side_by_side, *where, "-q"]

    def distill(self, cache: str, seed: int, name: str) -> list[str]:
        """The command for one of its trials alone."""
        settings = ["--student", self.student, "--epochs", str(self.epochs), "--batch-size", "8", "--no-pretrained"]
        where = ["-o", str(self.folder / name), "--device", self.device]
        return ["distill", "--cache", cache, *settings, "--seed", str(seed), *where, "-q"]

    def timed(self, label: str, words: list[str]) -> float:
        """Wall seconds of a command."""
        self.progress.say(label)
        began = time.perf_counter()
        done = subprocess.run(  # noqa: S603  (this program's own commands, without a shell)
            [*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
        )
        _require_success(done.returncode, words[0], done.stderr)
        return time.perf_counter() - began

    def watched(self, label: str, words: list[str]) -> int:
        """Most bytes that a command and its processes held at once."""
        self.progress.say(label)
        with (self.folder / "stderr").open("w+") as errors:
            process = subprocess.Popen(  # noqa: S603  (likewise)
                [*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=errors, text=True
            )
            peak = 0
            try:
                while process.poll() is None:
                    peak = max(peak, sum(_proportional_bytes(number) for number in _family(process.pid)))
                    time.sleep(WATCH_SECONDS)
            finally:
                process.kill()
                process.wait()
            errors.seek(0)
            _require_success(process.returncode, words[0], errors.read())
        return peak


def _ways(students: int, seconds: tuple[float, float, float], *, measured: bool) -> Iterator[Way]:
    for name, each in zip(WAYS, seconds, strict=True):
        yield Way(name, students, each, each / seconds[0], measured)


def _require_success(code: int, name: str, errors: str) -> None:
    if code:
        raise RunError(f"`polyp-difom {name}` failed", got=errors.strip()[-500:] or f"exit code {code}")


def _family(root: int) -> set[int]:
    """A process and all that descend from it."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, more = set[int](), {root}
    while more:
        found |= more
        more = {number for number, parent in parents.items() if parent in found} - found
    return found


def _proportional_bytes(number: int) -> int:
    """0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
