"""Trials side by side on this machine: worker processes that share one copy of the store, and a new one for each that dies."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.process import BaseProcess

import torch

from polyp_difom.cache.errors import RunError
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.sweep import worker
from polyp_difom.pipeline.sweep.folder import SweepConfig, SweepFolder
from polyp_difom.pipeline.sweep.processes import context

MOST_DEATHS = 3
"""Worker processes that may die for each one asked for, before the sweep gives up."""
LOOK_SECONDS = 1.0
Look = Callable[[], None]
"""Called about once a second while trials run."""


class Workers:
    """Processes that run trials."""

    def __init__(self, folder: SweepFolder, config: SweepConfig, arrays: worker.Arrays | None):
        self.context = context(torch.device(config.device), config.threads or 1)
        self.args = (folder.path, config, arrays)
        self.alive: dict[connection.Connection, BaseProcess] = {}

    def start(self) -> None:
        """One more."""
        receiver, sender = self.context.Pipe(duplex=False)
        process = self.context.Process(target=worker.main, args=(*self.args, sender))
        process.start()
        sender.close()
        self.alive[receiver] = process

    def reap(self, seconds: float) -> tuple[int, Exception | None]:
        """Waits so long for an end; (how many died without a word, the error that one reported)."""
        died, error = 0, None
        for receiver in connection.wait(list(self.alive), seconds):
            assert isinstance(receiver, connection.Connection)  # noqa: S101
            process = self.alive.pop(receiver)
            try:
                error = receiver.recv() or error
            except EOFError:
                died += 1
            process.join()
        return died, error

    def stop(self) -> None:
        """Ends all of them at once; a trial goes on from its last epoch when the sweep is resumed."""
        for process in self.alive.values():
            process.kill()
            process.join()


def run_local(
    folder: SweepFolder, config: SweepConfig, arrays: worker.Arrays | None, progress: Progress, look: Look = lambda: None
) -> None:
    """Works until every trial has ended.

    Raises:
        CacheError, RunError, OSError: what would stop every other trial too. RunError: workers die again and again.
    """
    workers, deaths = Workers(folder, config, arrays), 0
    jobs = config.jobs or 1
    try:
        for _ in range(jobs):
            workers.start()
        while workers.alive:
            died, error = workers.reap(LOOK_SECONDS)
            if error is not None:
                raise error
            deaths += died
            if deaths > MOST_DEATHS * jobs:
                raise RunError("worker processes die again and again", where=folder.path, got=f"{deaths} deaths",
                               wanted="memory for all of them", remedy="give fewer --jobs, with --resume")  # fmt: skip
            for _ in range(died):
                progress.say("a worker process died; another one takes over its trial")
                workers.start()
            look()
    finally:
        workers.stop()
