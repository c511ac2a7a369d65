"""Stage one on Ray: one driver that plans, and workers that each load the teachers once and make shard after shard.

A shard is claimed in the store before a worker works on it, as by any worker of `polyp_difom.pipeline.workers`, so workers
of other kinds may help, and what a dead worker had begun is made again by it, restarted, or by another. The store must be
at a path that the driver and all workers reach, and so must the frames and the teachers' weights.
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from polyp_difom.cache.claims import Claims
from polyp_difom.cache.errors import CacheError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.costs import cost_line
from polyp_difom.pipeline.device import enough_memory, keep_freed_memory, pick_device, pick_precision
from polyp_difom.pipeline.engines.ray_cluster import answer, connected
from polyp_difom.pipeline.extract import begin, load_teachers, resolved, runner_of
from polyp_difom.pipeline.fitting import bases_of, note_labellers
from polyp_difom.pipeline.plan import ExtractConfig, Plan, check_options
from polyp_difom.pipeline.progress import Advance, Progress
from polyp_difom.pipeline.runner import Bases, Runner
from polyp_difom.pipeline.workers import WAIT_SECONDS, Part, fill_free, refuse_url

TRIES = 3
"""Workers that may die at one shard before it is given up."""
PATIENCE_SECONDS = 20.0
"""For the first worker, after which it is said that it may take longer."""


@dataclass(frozen=True)
class Crew:
    """How many workers, and what of the cluster each of them is given."""

    workers: int
    cpus: int
    gpus: float

    @property
    def options(self) -> dict[str, float]:
        """For `ray.remote`."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}


class Remembering(Progress):
    """Keeps what a worker says until the driver asks."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """See `Progress.say`."""
        self.lines.append(text)


class ShardWorker:
    """A Ray actor. Loads nothing before its first task, so that what goes wrong there is an answer and not a death."""

    def __init__(self, config: ExtractConfig, workers: int):
        self._config, self._workers = config, workers
        self._ready: tuple[Runner, dict[str, Bases]] | None = None

    @cached_property
    def _store(self) -> FeatureStore:
        return FeatureStore.open(self._config.cache, writable=True)

    @cached_property
    def _device(self) -> torch.device:
        return pick_device(self._config.device)

    def prepare(self, plan: Plan) -> list[str]:
        """Loads the teachers, and fits the bases where that is still to be done; what there was to say."""
        said = Remembering()
        with self._store.sharing() as claims, enough_memory(self._device):
            self._prepared(plan, claims, said)
        return said.lines

    def make(self, plan: Plan, number: int) -> bool:
        """Makes one shard; False where it is not there yet, because another living worker has it."""
        with self._store.sharing() as claims, enough_memory(self._device):
            runner, bases = self._prepared(plan, claims, Progress())
            made = fill_free(self._store, claims, [number], runner, bases, Progress())
        return made > 0 or bool(self._store.done()[number])

    def _prepared(self, plan: Plan, claims: Claims, progress: Progress) -> tuple[Runner, dict[str, Bases]]:
        if self._ready is None:
            keep_freed_memory()
            pick_precision(self._device, plan.manifest.precision)
            teachers = load_teachers(self._config, progress)
            entries = tuple(schema.teacher_entry(teacher, self._config) for teacher in teachers)
            if entries != plan.manifest.teachers:
                raise CacheError(
                    "a worker found other teachers than the driver", where=self._store.location,
                    got="; ".join(f"{entry.name} {entry.weights_digest[:12]}" for entry in entries),
                    wanted="; ".join(f"{entry.name} {entry.weights_digest[:12]}" for entry in plan.manifest.teachers),
                    remedy="give --weights at a path that all machines share",
                )  # fmt: skip
            runner = runner_of(teachers, plan, self._device, self._config.batch_size, progress)
            with claims.alone():
                note_labellers(self._store, plan.labellers_saw)
                bases = {
                    teacher.spec.name: bases_of(self._store, runner, teacher, progress, workers=self._workers)
                    for teacher in teachers
                }
            runner.compile_where_it_pays(len(self._store))
            self._ready = runner, bases
        return self._ready


def extract_on_ray(
    config: ExtractConfig,
    progress: Progress | None = None,
    *,
    address: str | None = None,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
) -> FeatureStore:
    """Runs stage one on a Ray cluster and returns the complete store; its bytes are those of `extract`.

    Args:
        address: of a running cluster, see `connected`; by default this machine makes its own.
        workers: by default as many as the cluster's GPUs hold, without GPUs one a machine.
        gpus_per_worker: 0.5 lets two workers share a GPU, of which one writes while the other's teachers run; by default 1
            where the cluster has GPUs and `config.device` is not the CPU.

    Raises:
        RunError: the cluster does not answer, or workers died at one shard time and again; what was finished is kept.
        UsageError: more workers than the cluster holds, or what `extract` refuses.
        DataError, CacheError, MissingDependencyError: as `extract`, from here or from a worker.
    """
    progress = progress or Progress()
    config = resolved(config)
    check_options(config)
    if config.part_id is not None or config.num_parts is not None:
        raise UsageError("Ray deals the shards out by itself", where="--engine ray", got="--part-id or --num-parts")
    with connected(address, cpus=_local_cpus(workers)) as ray:
        crew = plan_crew(ray.nodes(), config.device, workers, gpus_per_worker)
        progress.say(f"Ray: {crew.workers} workers with {crew.cpus} CPUs and {crew.gpus:g} GPUs each")
        config = config.model_copy(update={"device": "cpu"} if not crew.gpus and config.device == "auto" else {})
        asked = ray.remote(_look).options(**crew.options).remote(config.device, config.precision)
        device, precision, reason = _patiently(ray, asked, progress)
        progress.say(f"teachers run on {device} in {precision}: {reason}")
        _, plan, store = begin(config, precision, progress)
        refuse_url(store, Part(count=crew.workers))
        with store.sharing():
            if store.is_complete:
                progress.say(f"{config.cache} is complete already, nothing to do")
                return store
            _run(ray, crew, *_anywhere(config, plan, store), store, progress)
    progress.say(cost_line(store))
    return store


def plan_crew(nodes: list[dict[str, Any]], device: str, workers: int | None, gpus_per_worker: float | None) -> Crew:
    """What each worker gets, from the list of the cluster's machines.

    A worker on a GPU needs one CPU; workers without one share a machine's CPUs.

    Raises:
        UsageError: the cluster, as large as it is now, does not hold them.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    all_cpus, all_gpus = (sum(held.get(kind, 0) for held in resources) for kind in ("CPU", "GPU"))
    gpus = gpus_per_worker if gpus_per_worker is not None else float(all_gpus > 0 and device != "cpu")
    if gpus > 1 and not gpus.is_integer():
        raise UsageError("no such share of GPUs", where="--gpus-per-worker", got=gpus, wanted="0 to 1, or whole GPUs")
    count = workers or (int(all_gpus / gpus) if gpus else len(resources))
    if not count or count * gpus > all_gpus or count > all_cpus:
        raise UsageError(
            "the Ray cluster does not hold these workers", where="--workers and --gpus-per-worker",
            got=f"{all_cpus:g} CPUs and {all_gpus:g} GPUs on {len(resources)} machines",
            wanted=f"{max(1, count)} workers with 1 CPU and {gpus:g} GPUs each",
        )  # fmt: skip
    if gpus:
        return Crew(count, 1, gpus)
    smallest, a_machine = min(held.get("CPU", 0) for held in resources), -(-count // len(resources))
    return Crew(count, max(1, int(smallest // a_machine)), 0.0)


def _local_cpus(workers: int | None) -> int | None:
    return max(workers, os.cpu_count() or 1) if workers else None


def _look(device: str, precision: str) -> tuple[str, str, str]:
    """What a worker's machine says to these options: (device, precision, reason)."""
    found = pick_device(device)
    return (str(found), *pick_precision(found, precision))


def _patiently(ray: ModuleType, asked: Any, progress: Progress) -> tuple[str, str, str]:
    if not ray.wait([asked], timeout=PATIENCE_SECONDS)[0]:
        progress.say("waiting for the first worker: the cluster may have no room yet")
    return answer(ray, asked, "its first task", "--engine ray")


def _anywhere(config: ExtractConfig, plan: Plan, store: FeatureStore) -> tuple[ExtractConfig, Plan]:
    """Both with absolute paths: a worker's current folder is not the driver's."""
    weights = {
        name: str(Path(source).absolute()) if Path(source).exists() else source for name, source in config.weights.items()
    }
    pairs = [replace(pair, image=pair.image.absolute(), mask=pair.mask.absolute()) for pair in plan.pairs]
    return config.model_copy(update={"cache": str(store.location), "weights": weights}), replace(plan, pairs=pairs)


def _run(ray: ModuleType, crew: Crew, config: ExtractConfig, plan: Plan, store: FeatureStore, progress: Progress) -> None:
    """Workers come, make all shards, and go, whatever happens."""
    worker = ray.remote(ShardWorker).options(**crew.options, max_restarts=-1, max_task_retries=TRIES)
    shared = ray.put(plan)
    workers = [worker.remote(config, crew.workers) for _ in range(crew.workers)]
    try:
        for line in answer(ray, workers[0].prepare.remote(shared), "the teachers' bases", store.location):
            progress.say(line)
        frames = sum(len(store.shards[number]) for number in store.pending())
        with progress.task("extracting", frames) as advance:
            _deal(ray, workers, shared, store, advance)
    finally:
        for each in workers:
            ray.kill(each)


def _deal(ray: ModuleType, workers: list[Any], plan: Any, store: FeatureStore, advance: Advance) -> None:
    """One shard to each idle worker until all are there. The last ones are offered to idle workers too: claims keep them
    from those that are being made, and hand them those whose worker is dead and cannot be restarted.
    """
    idle, running, queue, made = deque(workers), dict[Any, tuple[Any, int]](), deque[int](), set[int]()
    while queue := queue or deque(store.pending()):
        while idle and queue:
            worker, number = idle.popleft(), queue.popleft()
            running[worker.make.remote(plan, number)] = worker, number
        (first, *_), _ = ray.wait(list(running), num_returns=1)
        worker, number = running.pop(first)
        if not answer(ray, first, f"shard {number}", store.location):
            time.sleep(WAIT_SECONDS)
        elif number not in made:
            made.add(number)
            advance(len(store.shards[number]))
        idle.append(worker)
