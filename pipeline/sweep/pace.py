"""How fast students train beside one another: the real training, for a moment, in as many processes as there would be."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polyp_difom.cache.errors import PolypDifomError, RunError, first_line
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.device import pick_device, synchronise
from polyp_difom.pipeline.distill import DistillConfig
from polyp_difom.pipeline.feed import Batch
from polyp_difom.pipeline.memory import free_memory, kilobytes
from polyp_difom.pipeline.ondisk import OnDisk
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.shelf import Shelf
from polyp_difom.pipeline.sweep import worker
from polyp_difom.pipeline.sweep.processes import context, end_with_parent
from polyp_difom.pipeline.trainer import Trainer

WARM_UP = 2
"""Untimed steps, or as many as fit into the timed seconds, one at least."""
_READY, _GO = "ready", "go"
_END_SECONDS = 10.0


@dataclass(frozen=True)
class Pace:
    """One training beside its neighbours.

    Attributes:
        start_seconds: until the first step could begin. step_seconds: a step.
        val_seconds: of validating a frame; None where the whole store was read beforehand.
        memory: bytes of its own at most; on a GPU, what all trainings together took.
        checkpoint_bytes, resume_bytes: of a file of the student's weights, and of one that a training goes on from.
        arrays: keys of the store's arrays that it read, with their split.
    """

    start_seconds: float
    step_seconds: float
    val_seconds: float | None
    memory: int
    checkpoint_bytes: int
    resume_bytes: int
    arrays: tuple[tuple[str, str], ...]


class FewFrames(Shelf):
    """The first frames of each split alone, for timing."""

    def __init__(self, store: FeatureStore, device: torch.device, count: int):
        super().__init__(store, device, Progress())
        self.count = count

    def take(self, split: str, keys: Iterable[str], views: int | None = None) -> dict[str, Tensor | OnDisk]:
        """See `Shelf.take`."""
        keys = list(keys)
        rows = np.array([i for i, name in enumerate(self.store.samples.split) if name == split][: self.count], np.int64)
        for key in keys if len(rows) else ():
            if (split, key) not in self.held:
                self.held[split, key] = torch.from_numpy(self.store.read(key, rows)).to(self.device)
        return super().take(split, keys, views)


def side_by_side(configs: Sequence[DistillConfig], seconds: float, arrays: worker.Arrays | None = None) -> list[Pace]:
    """Trains these students at once for a moment, each in a process like a sweep's, and times their steps.

    Args:
        seconds: of timed steps; one step is timed at least.
        arrays: of the store, shared; None for a batch of frames each.

    Raises:
        PolypDifomError: one of them cannot be trained. RunError: its process died, for instance of too little memory.
    """
    device = pick_device(configs[0].device)
    threads = max(config.threads or torch.get_num_threads() for config in configs)
    started, free = context(device, threads), free_memory(device)
    processes: list[BaseProcess] = []
    links: list[connection.Connection] = []
    try:
        for config in configs:
            ours, theirs = started.Pipe()
            untaught = config.model_copy(update={"pretrained": False, "encoder_weights": None})
            processes.append(started.Process(target=_report_pace, args=(untaught, seconds, arrays, free, theirs), daemon=True))
            processes[-1].start()
            theirs.close()
            links.append(ours)
        for link in links:
            _heard(link)
        for link in links:
            link.send(_GO)
        paces = [_heard(link) for link in links]
        for process in processes:
            process.join(_END_SECONDS)
        return paces
    finally:
        for process in processes:
            process.kill()
            process.join()


def _heard(link: connection.Connection) -> Any:
    try:
        said = link.recv()
    except EOFError:
        raise RunError("the training's process died", wanted="more memory") from None
    if isinstance(said, PolypDifomError):
        raise said
    return said


def _report_pace(
    config: DistillConfig, seconds: float, arrays: worker.Arrays | None, free: int, link: connection.Connection
) -> None:
    """Entry point of the process: says when it is ready, waits for the others, and sends a `Pace`, or what kept it from one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork has the command's handler, which raises
    end_with_parent()
    try:
        link.send(_pace(config, seconds, arrays, free, link))
    except torch.OutOfMemoryError:
        link.send(RunError(f"out of memory with batch size {config.batch_size}", where=config.student))
    except PolypDifomError as error:
        link.send(error)
    except Exception as error:
        link.send(RunError("the student cannot be trained", where=config.student, got=first_line(error)))


def _pace(config: DistillConfig, seconds: float, arrays: worker.Arrays | None, free: int, link: connection.Connection) -> Pace:
    began = time.perf_counter()
    store, device = FeatureStore.open(config.cache), pick_device(config.device)
    shelf = FewFrames(store, device, config.batch_size) if arrays is None else Shelf(store, device, Progress(), arrays)
    trainer = Trainer(config, store, Progress(), shelf=shelf)
    start_seconds = time.perf_counter() - began
    batches = _endless(trainer)
    _steps(trainer, itertools.islice(batches, WARM_UP), seconds)
    link.send(_READY)
    link.recv()
    step_seconds = _steps(trainer, batches, seconds)
    val_seconds = None
    if arrays is None:
        began = time.perf_counter()
        trainer.validate()
        val_seconds = (time.perf_counter() - began) / len(trainer.val)
    student, heads = _state_bytes(trainer.student), _state_bytes(trainer.objective)
    trained = sum(p.numel() * p.element_size() for group in trainer.optimizer.param_groups for p in group["params"])
    resume_bytes = student * (2 if trainer.average else 1) + heads + 2 * trained
    return Pace(
        start_seconds, step_seconds, val_seconds, _peak_bytes(device, free), student, resume_bytes,
        tuple(shelf.held),
    )  # fmt: skip


def _endless(trainer: Trainer) -> Iterator[Batch]:
    for number in itertools.count():
        yield from trainer.batches(number)


def _steps(trainer: Trainer, batches: Iterator[Batch], seconds: float) -> float:
    """Seconds a step, of steps from the middle of a training, where every objective teaches."""
    middle = trainer.config.epochs * trainer.steps_per_epoch // 2
    began, count = time.perf_counter(), 0
    for batch in batches:
        trainer.step(batch, middle)
        count += 1
        if time.perf_counter() - began > seconds:
            break
    synchronise(trainer.device)
    return (time.perf_counter() - began) / count


def _state_bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def _peak_bytes(device: torch.device, free_before: int) -> int:
    if device.type == "cuda":
        return max(0, free_before - free_memory(device))
    held = kilobytes(Path("/proc/self/status"))
    return held["VmHWM"] - held["RssFile"] - held["RssShmem"]
