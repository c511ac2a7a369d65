"""How fast students answer on this machine: each network in each runtime, at each batch size, side by side.

Timed is `Model.logits`, what prediction and evaluation call: squared uint8 frames in host memory to float32 logits in host
memory. All candidates of a batch size take turns. Shapes: b batch, s frame side.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from polyp_difom.cache.errors import MissingDependencyError, UsageError, first_line
from polyp_difom.pipeline.bench.complexity import complexity
from polyp_difom.pipeline.bench.latency import Latency, in_turn
from polyp_difom.pipeline.bench.machine import Machine, torch_threads
from polyp_difom.pipeline.device import pick_device
from polyp_difom.pipeline.export.describe import describe
from polyp_difom.pipeline.export.formats import FORMATS, Job
from polyp_difom.pipeline.files import write_text
from polyp_difom.pipeline.models.loading import load_model
from polyp_difom.pipeline.models.network import NetworkModel
from polyp_difom.pipeline.models.protocol import Model
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.runs import write_checkpoint
from polyp_difom.pipeline.students.protocol import STUDENTS, build_student

RUNTIMES = ("eager", "compiled", "onnx", "openvino")
EXPORTED = ("onnx", "openvino")
CHECKPOINT = ".safetensors"
SIZES = ("size", "parameters", "macs", "flops")
SIZE = 352
"""Frame side at which a student that was never trained is measured."""
REPEATS, SECONDS = 30, 10.0
"""By default: timed calls a candidate, and the seconds after which it gets no further turn."""
BUSY = 0.25
"""Load, as a share of the cores, above which other programs are at work."""


@dataclass(frozen=True)
class Subject:
    """A network to be measured.

    Attributes:
        name: as the user typed it.
        path: what `load_model` opens: a checkpoint of frame side `size`, or an exported file.
        run: the run folder that it came from, if any.
        runtimes: that it can be measured in; an exported file has its own alone.
        macs, flops: of one frame, see `Complexity`; None for exported files.
    """

    name: str
    path: Path
    run: Path | None
    size: int
    runtimes: tuple[str, ...]
    parameters: int | None
    macs: int | None = None
    flops: int | None = None


@dataclass(frozen=True)
class Row:
    """One network in one runtime at one batch size.

    Attributes:
        runtime: "eager", "compiled" (with "-bfloat16" where they ran so), "onnx", "openvino" or "torchscript".
        device: that it ran on, and in which precision.
        median_ms, p95_ms, best_ms: a batch, milliseconds; None where nothing was measured.
        fps: frames a second, from the median.
        speedup: over "eager" of the same network and batch size.
        note: why nothing was measured.
    """

    model: str
    runtime: str
    batch: int
    device: str = ""
    median_ms: float | None = None
    p95_ms: float | None = None
    best_ms: float | None = None
    fps: float | None = None
    speedup: float | None = None
    repeats: int = 0
    note: str = ""


@dataclass(frozen=True)
class StudentBench:
    """All figures of one measurement.

    Attributes:
        written: the bench.json of each run folder among the networks.
    """

    machine: Machine
    subjects: list[Subject]
    rows: list[Row]
    written: list[Path]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        models = [{key: getattr(subject, key) for key in ("name", *SIZES)} for subject in self.subjects]
        rows, written = [asdict(row) for row in self.rows], [str(path) for path in self.written]
        return {**asdict(self.machine), "models": models, "rows": rows, "written": written}


def bench_students(
    models: Sequence[str],
    *,
    size: int | None = None,
    batches: Sequence[int] = (1, 16),
    runtimes: Sequence[str] | None = None,
    threads: int | None = None,
    device: str = "auto",
    repeats: int | None = None,
    progress: Progress | None = None,
) -> StudentBench:
    """Time networks in every runtime; a run folder gets its figures as bench.json.

    Args:
        models: run folders, model files, or names of students, which get random weights.
        size: frame side; by default that of the model, 352 for a name.
        runtimes: some of `RUNTIMES`; all that are installed by default.
        threads: CPU threads of every runtime; by default as many as torch takes.
        repeats: timed calls; by default 30, or as many fives as fit into ten seconds.

    Raises:
        UsageError: an unknown student or runtime, or a side that does not fit.
        MissingDependencyError: a runtime that was asked for by name is not installed.
    """
    progress = progress or Progress()
    if strangers := sorted(set(runtimes or ()) - set(RUNTIMES)):
        raise UsageError(f"unknown runtime {strangers[0]!r}", where="--runtimes", wanted=f"some of: {', '.join(RUNTIMES)}")
    chosen = pick_device(device)
    with TemporaryDirectory() as scratch, torch_threads(threads) as used:
        machine = Machine.here(chosen, used)
        if machine.load > BUSY * machine.cores:
            progress.say(f"the machine is busy (load {machine.load}): measure again when it is quiet, ratios suffer too")
        named = enumerate(dict.fromkeys(models))
        subjects = [_subject(text, size, runtimes or RUNTIMES, Path(scratch) / str(number)) for number, text in named]
        timing = _Timing(str(chosen), used, repeats, runtimes is not None, progress)
        rows = [row for batch in batches for row in timing.rows(subjects, batch)]
    written = [_write(subject, machine, rows) for subject in subjects if subject.run is not None]
    return StudentBench(machine, subjects, rows, written)


def _subject(text: str, size: int | None, runtimes: Sequence[str], folder: Path) -> Subject:
    """What a user's word stands for; networks in torch become checkpoints of the wanted side in `folder`."""
    path, run = Path(text), None
    known = text.partition(":")[0] in STUDENTS.names()
    if not known and (path.exists() or path.suffix or "/" in text):
        model = load_model(text, "cpu")
        if not isinstance(model, NetworkModel):
            own = model.info.frame_size
            if size not in (None, own):
                raise UsageError("the exported file has another frame side", where=path, got=f"--size {size}", wanted=own)
            return Subject(text, path, None, own, (model.info.kind,), model.info.parameters)
        student, header, side = model.student, model.info.header, size or model.info.frame_size
        run = path if (model.info.kind, model.info.frame_size) == ("run", side) else None  # bench.json is of its own side
    else:
        student, header, side = build_student(text), {"student": text}, size or SIZE
    counted = complexity(student, side)
    checkpoint = folder / f"model{CHECKPOINT}"
    write_checkpoint(checkpoint, student.state_dict(), {**header, "frame_size": side})
    return Subject(text, checkpoint, run, side, tuple(runtimes), **asdict(counted))


@dataclass(frozen=True)
class _Timing:
    """How to time: where, with how many threads and calls; `strict` where the runtimes were asked for by name."""

    device: str
    threads: int
    repeats: int | None
    strict: bool
    progress: Progress

    def rows(self, subjects: Sequence[Subject], batch: int) -> list[Row]:
        """All networks in all their runtimes at one batch size, in turn."""
        torch.compiler.reset()
        rows: dict[tuple[str, str], Row] = {}
        calls: dict[tuple[str, str], Callable[[], object]] = {}
        for subject in subjects:
            frames = np.random.default_rng(0).integers(0, 256, (batch, 3, subject.size, subject.size), dtype=np.uint8)
            for runtime, precision in self._candidates(subject):
                reasons = torch.OutOfMemoryError if runtime == "eager" else RuntimeError
                key = subject.name, runtime if precision == "float32" else f"{runtime}-{precision}"
                self.progress.say(f"warming up {subject.name} in {key[1]}, batch {batch}")
                try:
                    model = self._open(subject, runtime, precision)
                    call = partial(model.logits, frames)
                    call()  # compiles, allocates, chooses kernels
                    calls[key], rows[key] = call, Row(*key, batch, model.info.device)
                except MissingDependencyError as error:
                    if self.strict:
                        raise
                    rows[key] = Row(*key, batch, note=f"not installed: {error.details['next']}")
                except reasons as error:
                    rows[key] = Row(*key, batch, note=f"failed: {first_line(error)}")
        seconds = SECONDS if self.repeats is None else float("inf")
        taken = in_turn(calls, repeats=self.repeats or REPEATS, seconds=seconds, progress=self.progress)
        return [_filled(row, taken.get(key), taken.get((row.model, "eager"))) for key, row in rows.items()]

    def _candidates(self, subject: Subject) -> Iterator[tuple[str, str]]:
        """(runtime, precision): torch on a GPU in float32 and in bfloat16, everything else in its own precision."""
        for runtime in subject.runtimes:
            yield runtime, "float32"
            if runtime in ("eager", "compiled") and self.device.startswith("cuda"):
                yield runtime, "bfloat16"

    def _open(self, subject: Subject, runtime: str, precision: str) -> Model:
        path = subject.path
        if runtime in EXPORTED and path.suffix == CHECKPOINT:
            path = _exported(path, runtime)
        model = load_model(path, self.device, precision, self.threads)
        if runtime == "compiled":
            assert isinstance(model, NetworkModel)  # noqa: S101
            model.student.compile(fullgraph=True, dynamic=False)
        return model


def _filled(row: Row, latency: Latency | None, eager: Latency | None) -> Row:
    if latency is None:
        return row
    return replace(
        row, median_ms=latency.median_ms, p95_ms=latency.p95_ms, best_ms=latency.best_ms, repeats=latency.repeats,
        fps=row.batch * 1e3 / latency.median_ms, speedup=latency.speedup_over(eager) if eager else None,
    )  # fmt: skip


def _write(subject: Subject, machine: Machine, rows: Sequence[Row]) -> Path:
    """bench.json of a run folder, in place of an older one."""
    assert subject.run is not None  # noqa: S101
    kept = ("runtime", "batch", "device", "median_ms", "p95_ms", "best_ms", "fps", "repeats")
    own = [{key: getattr(row, key) for key in kept} for row in rows if row.model == subject.name and row.repeats]
    record = {**asdict(machine), **{key: getattr(subject, key) for key in SIZES}}
    path = subject.run / "bench.json"
    write_text(path, json.dumps({**record, "rows": own}, indent=2) + "\n")
    return path


def _exported(checkpoint: Path, runtime: str) -> Path:
    """The checkpoint as a float32 file of that runtime beside it, made once."""
    kind = FORMATS.get(runtime)
    path = checkpoint.with_suffix(kind.suffix)
    if not path.exists():
        model = load_model(checkpoint, "cpu")
        assert isinstance(model, NetworkModel)  # noqa: S101
        info = model.info
        about = describe(info.name, info.header, info.parameters or 0, "float32", False, ())
        kind(Job(model.student, info.frame_size, "float32", False)).write(path, about)
    return path
