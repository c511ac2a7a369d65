"""How fast a teacher runs on this machine: one frame at a time, in batches as `extract` runs it, and against the peak.

Both ways go from squared 8-bit frames in host memory to maps in host memory. One at a time is float32 and, for SAM, the
package's own attention. Shapes: b batch, s frame side, n side of a matrix.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.bench.latency import Latency, in_turn
from polyp_difom.pipeline.bench.machine import Machine
from polyp_difom.pipeline.bench.random_teacher import random_weights
from polyp_difom.pipeline.data.sources import Source
from polyp_difom.pipeline.data.synthetic import draw, write_dataset
from polyp_difom.pipeline.device import autocast, enough_memory, keep_freed_memory, pick_device, pick_precision, synchronise
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.plan import ExtractConfig
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.teachers.attention import restore_attention
from polyp_difom.pipeline.teachers.compiling import compiled
from polyp_difom.pipeline.teachers.protocol import Teacher, load_teacher

REPEATS, SECONDS = 10, 20.0
PEAK_SECONDS = 1.0
LEAST_FRAMES = 10
"""Of an extraction: fewer leave no frame to train on."""


@dataclass(frozen=True)
class Way:
    """One way to run the teacher.

    Attributes:
        name: "one at a time", "batched" or "compiled".
        fps: frames a second, from the median call; a view counts as a frame.
        speedup: over one at a time, from calls taken in turn.
        gflops: a second, of the arithmetic that the model needs.
        share_of_peak: over the matrix product's of that precision on this device.
        first_seconds: of the first call, which compiles and chooses kernels.
    """

    name: str
    batch: int
    precision: str
    fps: float
    speedup: float
    gflops: float
    share_of_peak: float
    first_seconds: float
    repeats: int


@dataclass(frozen=True)
class Extraction:
    """A small extraction of drawn frames with identity views: seconds that each part took, from the store's ledger.

    Attributes:
        seconds: of all of it, with checking the frames, fitting the basis and measuring flips.
    """

    frames: int
    decode_seconds: float
    teacher_seconds: float
    write_seconds: float
    seconds: float

    @property
    def shares(self) -> dict[str, float]:
        """Of the time of decode, teacher and write together."""
        parts = {"decode": self.decode_seconds, "teacher": self.teacher_seconds, "write": self.write_seconds}
        return {name: part / sum(parts.values()) for name, part in parts.items()}


@dataclass(frozen=True)
class TeacherBench:
    """All figures of one measurement.

    Attributes:
        gflop: of one frame (2 x multiply-accumulates), as the model defines it; what a faster kernel adds is not counted.
        peaks: GFLOP/s of a large matrix product, by precision.
        random: whether the weights are random numbers: speed alone means something then.
    """

    machine: Machine
    teacher: str
    size: int
    gflop: float
    peaks: dict[str, float]
    random: bool
    ways: list[Way]
    extraction: Extraction | None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        found = asdict(self)
        if self.extraction:
            found["extraction"]["shares"] = self.extraction.shares
        return {**found.pop("machine"), **found}


def bench_teacher(
    name: str,
    *,
    weights: str | None = None,
    random: bool = False,
    batch: int = 8,
    frames: int = 16,
    size: int = 352,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,
    progress: Progress | None = None,
) -> TeacherBench:
    """Time a teacher.

    Args:
        random: random weights in place of those that cannot be reached.
        frames: of the small extraction; 0 leaves it out.
        compile: time `torch.compile` too.

    Raises:
        UsageError: an unknown teacher, one without random weights, too few frames. MissingDependencyError: no weights.
    """
    progress = progress or Progress()
    if random and weights:
        raise UsageError("weights are either given or random", where="--random-weights", got=f"--weights {weights}")
    if 0 < frames < LEAST_FRAMES:
        raise UsageError(
            "too few frames for an extraction", where="--frames", got=frames, wanted=f"0, or {LEAST_FRAMES} or more"
        )
    keep_freed_memory()
    chosen = pick_device(device)
    resolved, reason = pick_precision(chosen, precision)
    progress.say(f"{chosen} in {resolved}: {reason}")
    with TemporaryDirectory() as scratch, enough_memory(chosen):
        source = random_weights(name, Path(scratch)) if random else weights
        teacher = load_teacher(name, source, say=progress.say, frame_size=size)
        machine = Machine.here(chosen, torch.get_num_threads())
        kind = "float32" if teacher.exact else resolved
        kinds = dict.fromkeys(("float32", kind))
        before = {each: peak(chosen, each) for each in kinds}
        plain = _plain(teacher)
        flops = count_flops(plain, size)
        shots = np.stack([draw(seed, size)[0].transpose(2, 0, 1) for seed in range(batch)])
        ways = _ways(plain, teacher, shots, chosen, kind, compile)
        taken = _timed(ways, progress)
        peaks = {each: max(before[each], peak(chosen, each)) for each in kinds}
        rows = [_row(way, *taken[way.name], taken[ways[0].name][1], flops / 1e9, peaks[way.precision]) for way in ways]
        del plain, ways, teacher
        done = _extraction(name, source, frames, size, batch, chosen, resolved, Path(scratch), progress) if frames else None
    return TeacherBench(machine, name, size, flops / 1e9, peaks, random, rows, done)


def _plain(teacher: Teacher) -> Teacher:
    """A copy as its package computes it."""
    plain = deepcopy(teacher)
    restore_attention(plain)
    return plain


def count_flops(teacher: Teacher, size: int) -> int:
    """Of one frame of that side; attention counts as its two matrix products."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        teacher(torch.zeros(1, 3, size, size))
    return counter.get_total_flops()


def peak(device: torch.device, precision: str) -> float:
    """GFLOP/s of the best of several products of square matrices, as large as the device likes them."""
    n = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn(n, n, device=device, dtype=getattr(torch, precision))
    best, until = float("inf"), time.perf_counter() + PEAK_SECONDS
    while best == float("inf") or time.perf_counter() < until:
        synchronise(device)
        began = time.perf_counter()
        matrix @ matrix
        synchronise(device)
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best / 1e9


@dataclass(frozen=True)
class _Candidate:
    name: str
    batch: int
    precision: str
    call: Callable[[], object]


def _ways(
    plain: Teacher, teacher: Teacher, shots: NDArray[np.uint8], device: torch.device, precision: str, compile: bool
) -> list[_Candidate]:
    """One at a time, batched, and compiled; each answers when its maps are in host memory."""
    batch = len(shots)

    def embed(runs: Teacher, images: NDArray[np.uint8], kind: str) -> list[NDArray]:
        frames = torch.from_numpy(images).to(device).float() / 255
        with autocast(device, kind):
            maps = runs(frames.contiguous(memory_format=torch.channels_last))
        return [_half(values) for values in maps]

    plain, teacher = plain.to(device), teacher.to(device).to(memory_format=torch.channels_last)
    found = [
        _Candidate("one at a time", 1, "float32", partial(embed, plain, shots[:1], "float32")),
        _Candidate("batched", batch, precision, partial(embed, teacher, shots, precision)),
    ]
    if compile:
        fast = compiled(deepcopy(teacher), batch)
        found.append(_Candidate("compiled", batch, precision, partial(embed, fast, shots, precision)))
    return found


def _half(maps: Tensor) -> NDArray:
    return maps.half().cpu().numpy()


def _timed(candidates: list[_Candidate], progress: Progress) -> dict[str, tuple[float, Latency]]:
    """By name: seconds of the first call, and the calls after it, in turn."""
    first: dict[str, float] = {}
    for candidate in candidates:
        progress.say(f"warming up: {candidate.name}")
        began = time.perf_counter()
        candidate.call()
        first[candidate.name] = time.perf_counter() - began
    taken = in_turn({c.name: c.call for c in candidates}, repeats=REPEATS, seconds=SECONDS, progress=progress)
    return {name: (first[name], latency) for name, latency in taken.items()}


def _row(one: _Candidate, first: float, latency: Latency, loop: Latency, gflop: float, most: float) -> Way:
    fps = one.batch * 1e3 / latency.median_ms
    ratio = latency.speedup_over(loop) * one.batch
    speed = fps * gflop
    return Way(one.name, one.batch, one.precision, fps, ratio, speed, speed / most, first, latency.repeats)


def _extraction(
    name: str, weights: str | None, frames: int, size: int, batch: int, device: torch.device, precision: str, scratch: Path,
    progress: Progress,
) -> Extraction:  # fmt: skip
    progress.say(f"extracting {frames} drawn frames")
    data = scratch / "frames"
    write_dataset(data, count=frames, size=size)
    values: dict[str, Any] = {
        "sources": (Source(data),), "teachers": (name,), "weights": {name: weights} if weights else {},
        "cache": str(scratch / "bench.zarr"), "size": size, "views": 1, "basis_frames": frames, "batch_size": batch,
        "device": str(device), "precision": precision,
    }  # fmt: skip
    began = time.perf_counter()
    store = extract(ExtractConfig(**values))
    seconds = time.perf_counter() - began
    ledger = store.summary()["ledger"]
    return Extraction(len(store), ledger["decode_seconds"], ledger["teacher_seconds"], ledger["write_seconds"], seconds)
