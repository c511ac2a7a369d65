"""What is measured before a sweep begins: its students' size and latency, and how many trials are fastest side by side."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from polyp_difom.cache.errors import CacheError, PolypDifomError, RunError, UsageError, first_line
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.bench.complexity import complexity
from polyp_difom.pipeline.bench.latency import measure
from polyp_difom.pipeline.bench.machine import torch_threads
from polyp_difom.pipeline.device import keep_freed_memory, pick_precision
from polyp_difom.pipeline.distill import DistillConfig
from polyp_difom.pipeline.memory import free_memory
from polyp_difom.pipeline.models.network import NO_META
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.recipe import WITH_LATENTS
from polyp_difom.pipeline.students.protocol import Student, build_student, parameter_count
from polyp_difom.pipeline.sweep.pace import side_by_side
from polyp_difom.pipeline.sweep.worker import Arrays

BYTES_A_PARAMETER = 16
"""Of a training in float32: weight, gradient and AdamW's two moments."""
LATENCY_SECONDS, MOST_CALLS, LEAST_CALLS = 1.0, 15, 2
"""Of timing one student."""
SECONDS = 2.0
"""Of timed steps at each number of trials."""
GAIN = 1.05
"""More trials side by side must be faster by this factor."""
MEMORY_SHARE = 0.9
"""Share of the free memory that trials may take."""
ON_GPU = (1, 2, 3, 4)
UNPRICED = (
    *("epochs", "learning_rate", "schedule", "weight_decay", "clip", "patience", "distill_weight", "weight_schedule"),
    *("seed", "pretrained", "encoder_weights", "signature", "reads", "views", "flips", "auto"),
)
"""Settings that do not change what a step costs."""


def student_facts(
    names: Iterable[str], store: FeatureStore, device: torch.device, threads: int, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Size and speed of each network (see `DistillConfig.network`) with random weights, by its name.

    parameters; gmacs and latency_ms (median, float32, eager) of one frame of the store's side; device; threads; error: why a
    student cannot be built, or not be trained in the device's free memory, None otherwise. It then has no figures.
    """
    found = {}
    names = list(dict.fromkeys(names))
    keep_freed_memory()
    pick_precision(device, "float32")
    with torch_threads(threads), progress.task("measuring students", len(names)) as advance:
        for name in names:
            figures: dict[str, Any] = {"parameters": None, "gmacs": None, "latency_ms": None}
            error = None
            try:
                figures = _figures(name, store.manifest.frame_size, device)
            except (PolypDifomError, RuntimeError) as problem:
                error = problem.message if isinstance(problem, PolypDifomError) else first_line(problem)
            found[name] = {**figures, "device": str(device), "threads": threads, "error": error}
            advance(1)
    return found


def _figures(name: str, size: int, device: torch.device) -> dict[str, Any]:
    shapes = _shapes(name, device)
    counted = complexity(shapes, size)
    student = _built(name).to(device).to(memory_format=torch.channels_last).eval()
    frame = torch.rand(1, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def call() -> None:
        student(frame).cpu()

    call()
    began = perf_counter()
    call()
    calls = int(LATENCY_SECONDS / (perf_counter() - began))
    latency = measure(call, warmup=0, repeats=min(max(calls, LEAST_CALLS), MOST_CALLS))
    return {"parameters": counted.parameters, "gmacs": counted.macs / 1e9, "latency_ms": latency.median_ms}


def _built(network: str) -> Student:
    return build_student(network.removesuffix(WITH_LATENTS), network.endswith(WITH_LATENTS))


def _shapes(name: str, device: torch.device) -> Student:
    """The student without values, where it can be built so.

    Raises:
        UsageError: it cannot be built. RunError: it cannot be trained in the device's free memory.
    """
    try:
        with torch.device("meta"):
            student = _built(name)
    except UsageError as error:
        if NO_META not in str(error):
            raise
        student = _built(name)
    needed, free = parameter_count(student) * BYTES_A_PARAMETER, free_memory(device)
    if needed > free:
        raise RunError(
            "the student is too large for the device", where=name, got=f"{free / 2**20:,.0f} MiB free on {device}",
            wanted=f"{needed / 2**20:,.0f} MiB for its weights, gradients and moments", remedy="choose a smaller student",
        )  # fmt: skip
    return student


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class _Measured:
    """So many trials side by side: steps a second of all of them, and memory of one (of all, on a GPU)."""

    jobs: int
    threads: int
    rate: float
    memory: int

    @property
    def who(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"one trial at a time with {threads}" if self.jobs == 1 else f"{self.jobs} side by side with {threads} each"


def choose_jobs(
    configs: Sequence[DistillConfig], arrays: Arrays | None, store: FeatureStore, device: torch.device, progress: Progress
) -> tuple[int, int, str]:
    """(trials side by side, CPU threads of each, the reason in words), from real training steps of the dearest settings.

    On the CPU the cores are shared out evenly, unless the settings name their threads. It stops at the first number that is
    not at least 5 % faster than the one before, or for which memory would not do.

    Raises:
        CacheError: the store cannot be read.
    """
    if len(configs) < 2:
        threads = configs[0].threads if configs and configs[0].threads else cores()
        return 1, threads, f"there is one trial: it has all {threads} threads"
    free = free_memory(device)
    for config in _dearest_first(configs, store, device):
        tried: list[_Measured] = []
        limit = ""
        with progress.task(f"timing trials of {config.student} side by side", len(ON_GPU)) as advance:
            for jobs, threads in _candidates(len(configs), config.threads, device):
                if tried and jobs * tried[0].memory > MEMORY_SHARE * free:
                    limit = f"; memory would not hold {jobs}"
                    break
                try:
                    tried.append(_measure(config, jobs, threads, device, arrays))
                except CacheError:
                    raise
                except PolypDifomError as error:
                    limit = f"; {jobs} did not run: {error.what}"
                    break
                advance(1)
                if len(tried) > 1 and tried[-1].rate < GAIN * tried[-2].rate:
                    break
        if tried:
            return _chosen(tried, limit)
    return 1, cores(), "one trial at a time: none of the settings could be timed"


def _measure(config: DistillConfig, jobs: int, threads: int, device: torch.device, arrays: Arrays | None) -> _Measured:
    one = config.model_copy(update={"threads": threads, "device": str(device)})
    paces = side_by_side([one] * jobs, SECONDS, arrays)
    return _Measured(jobs, threads, sum(1 / pace.step_seconds for pace in paces), max(pace.memory for pace in paces))


def _chosen(tried: list[_Measured], limit: str) -> tuple[int, int, str]:
    best = tried[-2] if len(tried) > 1 and tried[-1].rate < GAIN * tried[-2].rate else tried[-1]
    others = ", ".join(f"{other.rate:.3g} of {other.who}" for other in tried if other is not best)
    return best.jobs, best.threads, f"{best.who}: {best.rate:.3g} steps/s" + (f" against {others}" if others else "") + limit


def _candidates(trials: int, threads: int | None, device: torch.device) -> Iterator[tuple[int, int]]:
    """(jobs, threads of each), fewest first, as far as there are trials, and on the CPU cores, for them."""
    own = cores()
    on_cpu = (2**power for power in range(own.bit_length()))
    for jobs in ON_GPU if device.type == "cuda" else on_cpu:
        each = threads or max(1, own // jobs)
        if jobs == 1 or (jobs <= trials and (device.type == "cuda" or jobs * each <= own)):
            yield jobs, each


def priced(config: DistillConfig) -> DistillConfig:
    """The settings without those that do not change what a step costs, to tell apart what must be timed."""
    fields = DistillConfig.model_fields
    return config.model_copy(update={name: fields[name].default for name in UNPRICED})


def _dearest_first(configs: Sequence[DistillConfig], store: FeatureStore, device: torch.device) -> list[DistillConfig]:
    """Distinct settings by the arithmetic of a step, taught ones before controls; without students that cannot be trained."""
    costs: dict[str, int] = {}
    for name in {config.network for config in configs}:
        try:
            costs[name] = complexity(_shapes(name, device), store.manifest.frame_size).macs
        except (PolypDifomError, RuntimeError):
            continue
    distinct = dict.fromkeys(priced(config) for config in configs if config.network in costs)

    def cost(config: DistillConfig) -> tuple[int, bool]:
        return costs[config.network] * config.batch_size, config.objective != "none"

    return sorted(distinct, key=cost, reverse=True)
