"""A sweep on Ray: tasks that each take one free trial after another, as the local engine's worker processes do.

Trials are claimed in the sweep's folder, so a trial whose worker is killed goes on at its last epoch, in another task or in
any process that joins. The folder, and the store or its URL, must be reached by the same path from the driver and all workers.
"""

from __future__ import annotations

import shutil
import socket
import warnings
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from polyp_difom.cache.errors import CacheError, RunError, UsageError
from polyp_difom.cache.location import Location
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.engines.ray_cluster import OBJECT_STORE_BYTES, answer, connected
from polyp_difom.pipeline.engines.ray_extract import Crew
from polyp_difom.pipeline.memory import free_memory
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.shelf import DEVICE_SHARE, Shelf
from polyp_difom.pipeline.sweep.arrays import SHARED_MEMORY, arrays_read
from polyp_difom.pipeline.sweep.folder import SweepConfig, SweepFolder
from polyp_difom.pipeline.sweep.local import LOOK_SECONDS, MOST_DEATHS, Look
from polyp_difom.pipeline.sweep.probe import cores, student_facts
from polyp_difom.pipeline.sweep.run import sweep
from polyp_difom.pipeline.sweep.worker import Arrays, work

OBJECT_STORE_SHARE = 0.8
"""Of the smallest machine's object store that the arrays may take."""
Held = dict[tuple[str, str], Any]
"""References to numpy arrays in Ray's object store, by (split, key of the array)."""


def sweep_on_ray(
    config: SweepConfig | None,
    path: Path,
    progress: Progress | None = None,
    *,
    address: str | None = None,
    gpus_per_trial: float | None = None,
    resume: bool = False,
    join: bool = False,
    overwrite: bool = False,
    retry_failed: bool = False,
    look: Look = lambda: None,
) -> SweepFolder:
    """`sweep` on a Ray cluster: the same folder, the same weights.

    Args:
        address: of a running cluster, see `connected`; by default this machine makes its own.
        gpus_per_trial: 0.5 lets two trials share a GPU; by default 1 where the cluster has GPUs and the device may be one.

    Raises:
        UsageError: more trials side by side than the cluster holds, or what `sweep` refuses.
        RunError: the cluster does not answer, a machine of it does not see the folder, or workers die again and again.
        CacheError, MissingDependencyError: as `sweep`, from here or from a worker.
    """
    if config is None:
        config = SweepFolder.open(path).config().model_copy(update={"jobs": None})
    with ExitStack() as stack:
        return sweep(
            config, path.absolute(), progress, resume=resume, join=join, overwrite=overwrite,
            retry_failed=retry_failed, look=look, engine=OnRay(stack, address, gpus_per_trial),
        )  # fmt: skip


class OnRay:
    """The engine, see `polyp_difom.pipeline.sweep.run.Engine`; connects in `ready`, until the stack is closed."""

    def __init__(self, stack: ExitStack, address: str | None, gpus_per_trial: float | None):
        self._stack, self._address, self._gpus = stack, address, gpus_per_trial
        self.ray: ModuleType
        self.crew: Crew
        self.held: Held = {}

    def device(self, name: str) -> str:
        """As it is named: the cluster decides, this machine need not have it."""
        return name

    def ready(self, config: SweepConfig, store: FeatureStore, progress: Progress) -> tuple[SweepConfig, None]:
        """Connects, and shares the cluster out; nothing is timed. The arrays go to the object store, once a machine."""
        trials = len(config.planned()) or config.trials or 1
        wanted, size = arrays_read(store, config)
        cpus = max((config.jobs or 1) * (config.threads or 1), cores())
        self.ray = self._stack.enter_context(connected(self._address, cpus, _object_store(size)))
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        self.crew = crew = plan_trials(nodes, config, trials, self._gpus)
        progress.say(
            f"Ray: {crew.workers} trials side by side with {crew.cpus} CPUs and {crew.gpus:g} GPUs each, "
            + ("as asked" if config.jobs else "as many as there are trials or the cluster holds; nothing was timed")
        )
        if self.ray.available_resources().get("CPU", 0) < crew.cpus:
            progress.say("the cluster is busy: trials begin when it has room")
        if size > OBJECT_STORE_SHARE * min(held.get("object_store_memory", 0) for held in nodes):
            progress.say(f"each trial reads the store for itself: {size / 2**20:,.0f} MiB are too many for Ray's object store")
        else:
            self.held = self._placed(store, wanted, progress)
        device = "cuda" if crew.gpus else "cpu"
        return config.model_copy(update={"threads": config.threads or crew.cpus, "device": device}), None

    def facts(
        self, names: tuple[str, ...], config: SweepConfig, store: FeatureStore, progress: Progress
    ) -> dict[str, dict[str, Any]]:
        """Measured where trials will run."""
        task = self.ray.remote(_facts).options(**self.crew.options)
        return answer(self.ray, task.remote(names, _anywhere(config)), "measuring the students", store.location)

    def run(
        self, folder: SweepFolder, config: SweepConfig, arrays: Arrays | None, progress: Progress, look: Look = lambda: None
    ) -> None:
        """As `run_local`: a task for each trial side by side, and a new one for each whose worker dies.

        Deaths count only while no trial begins: one that kills its workers is given up by itself, and a cluster may lose
        machines for as long as the sweep goes on.
        """
        settings = (folder.path / "sweep.yaml").read_text()
        task = self.ray.remote(run_trials).options(**self.crew.options, max_retries=0)

        def start() -> Any:
            return task.remote(folder.path, settings, _anywhere(config), self.held, self.crew.gpus)

        running, deaths, begun = [start() for _ in range(self.crew.workers)], 0, 0
        try:
            while running:
                ended, running = self.ray.wait(running, timeout=LOOK_SECONDS)
                for each in ended:
                    if self._died(each, folder):
                        before, begun = begun, sum(len(record.starts) for record in folder.records())
                        deaths = 1 if begun > before else deaths + 1
                        if deaths > MOST_DEATHS * self.crew.workers:
                            raise RunError("Ray workers die again and again", where=folder.path, got=f"{deaths} deaths",
                                           wanted="memory for all of them", remedy="give fewer --jobs")  # fmt: skip
                        progress.say("a Ray worker died; another one takes over its trial")
                        running.append(start())
                look()
        finally:
            for each in running:
                self.ray.cancel(each, force=True)

    def _died(self, task: Any, folder: SweepFolder) -> bool:
        """Whether the task's worker or machine is gone; an error that the task reported is raised."""
        deaths = self.ray.exceptions
        try:
            answer(self.ray, task, "its trials", folder.path)
        except RunError as error:
            gone = (deaths.WorkerCrashedError, deaths.OutOfMemoryError, deaths.NodeDiedError, deaths.LocalRayletDiedError)
            if not isinstance(error.__cause__, gone):
                raise
            return True
        return False

    def _placed(self, store: FeatureStore, wanted: dict[str, list[str]], progress: Progress) -> Held:
        shelf, held = Shelf(store, torch.device("cpu"), progress), Held()
        for split, keys in wanted.items():
            for key in keys:
                array = shelf.take(split, [key])[key]
                if not isinstance(array, torch.Tensor):  # too large for memory: the trials read from the disk too
                    return {}
                held[split, key] = self.ray.put(array.numpy())
                shelf.held.clear()
        return held


def plan_trials(nodes: list[dict[str, float]], config: SweepConfig, trials: int, gpus_per_trial: float | None) -> Crew:
    """How many trials side by side, and what of the cluster each is given, from the resources of its machines.

    As many as there are trials or the cluster holds, then as many CPUs each as it holds so often. Threads that the sweep was
    begun with on a larger machine stay, on the CPUs that there are.

    Raises:
        UsageError: the cluster, as large as it is now, does not hold them.
    """
    gpus = gpus_per_trial
    if gpus is None:
        gpus = float(config.device != "cpu" and (config.device != "auto" or any(node.get("GPU") for node in nodes)))
    if gpus > 1 or (gpus > 0 if config.device == "cpu" else gpus == 0 and config.device != "auto"):
        raise UsageError(
            "no such share of GPUs", where="--gpus-per-trial", got=f"{gpus:g}, with --device {config.device}",
            wanted="above 0 up to 1 on GPUs, 0 on CPUs",
        )  # fmt: skip

    def capacity(cpus: int) -> int:
        return sum(_holds(node, cpus, gpus) for node in nodes)

    most_cpus = max(1, *(int(node.get("CPU", 0)) for node in nodes))
    cpus = min(config.threads, most_cpus) if config.threads else 1
    if not config.threads:
        count = min(config.jobs or trials, capacity(1))
        cpus = max(each for each in range(1, most_cpus + 1) if each == 1 or capacity(each) >= count)
    workers = config.jobs or min(trials, capacity(cpus))
    if not 1 <= workers <= capacity(cpus):
        held = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
        raise UsageError(
            "the Ray cluster does not hold these trials", where="--jobs, --threads and --gpus-per-trial",
            got="{:g} CPUs and {:g} GPUs on {} machines".format(*held, len(nodes)),
            wanted=f"{max(1, workers)} trials side by side with {cpus} CPUs and {gpus:g} GPUs each",
        )  # fmt: skip
    return Crew(workers, cpus, gpus)


def _holds(node: dict[str, float], cpus: int, gpus: float) -> int:
    by_cpu = int(node.get("CPU", 0) // cpus)
    return min(by_cpu, int(node.get("GPU", 0)) * int(1 / gpus + 1e-9)) if gpus else by_cpu


def run_trials(path: Path, settings: str, config: SweepConfig, held: Held, gpus: float) -> None:
    """A Ray task: runs trials until none is left.

    Args:
        settings: what the driver reads in the folder's sweep.yaml; another one's folder may lie at the same path here.
        gpus: this task's share of one.

    Raises:
        RunError, CacheError: this machine does not see the folder or the store, or what `work` raises.
    """
    file = path / "sweep.yaml"
    if not file.is_file() or file.read_text() != settings:
        raise RunError(
            "a machine of the cluster does not see the sweep's folder", where=path, got=f"machine {socket.gethostname()}",
            wanted="a folder that all machines reach by this path", remedy="give -o on a file system that they share",
        )  # fmt: skip
    _seen(config)
    torch.set_num_threads(config.threads or 1)
    work(SweepFolder(path), config, _tensors(held, gpus) if held else None)


def _seen(config: SweepConfig) -> FeatureStore:
    try:
        return FeatureStore.open(config.here().cache)
    except CacheError as error:
        raise CacheError(
            "a machine of the cluster does not see the store", where=config.cache,
            got=f"machine {socket.gethostname()}: {error.what}", wanted="a store that all machines reach by this path",
            remedy="give --cache on a file system that they share, or a URL",
        ) from error  # fmt: skip


def _tensors(held: Held, gpus: float) -> Arrays:
    """The arrays without a copy, or on the GPU where they fit into this task's share of it."""
    import ray

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is all tasks': nothing writes to it
        arrays = {key: torch.from_numpy(ray.get(reference)) for key, reference in held.items()}
    size = sum(array.nbytes for array in arrays.values())
    if not gpus or size > DEVICE_SHARE * gpus * free_memory(torch.device("cuda")):
        return arrays
    return {key: array.to("cuda") for key, array in arrays.items()}


def _facts(names: tuple[str, ...], config: SweepConfig) -> dict[str, dict[str, Any]]:
    store = _seen(config)
    return student_facts(names, store, torch.device(config.device), config.threads or 1, Progress())


def _anywhere(config: SweepConfig) -> SweepConfig:
    """With absolute paths: a worker's current folder is not the driver's."""
    stage_dir = config.stage_dir and str(Path(config.stage_dir).expanduser().absolute())
    return config.model_copy(update={"cache": str(Location.parse(config.cache)), "stage_dir": stage_dir})


def _object_store(size: int) -> int:
    """Bytes of a local cluster's object store: for arrays of this size, where the machine's shared memory holds them."""
    wanted = max(OBJECT_STORE_BYTES, int(size / OBJECT_STORE_SHARE) + 2**20)
    return wanted if wanted < shutil.disk_usage(SHARED_MEMORY).free else OBJECT_STORE_BYTES
