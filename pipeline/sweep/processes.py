"""How a sweep's processes are started, so that they share what they can."""

from __future__ import annotations

import importlib
import os
import signal
import threading
from multiprocessing import connection, parent_process
from multiprocessing.context import ForkContext, ForkServerContext

import torch
import torch.multiprocessing

WARM = "polyp_difom.pipeline.sweep.warm"


def context(device: torch.device, threads: int) -> ForkContext | ForkServerContext:
    """Forks this process where its children compute with one thread on a machine without GPU, else a clean server.

    Either has imported everything once. A child of more threads may not be forked: it would wait for ever for the pool of
    threads that this process may have, and a fork has not. Nor on a machine with a GPU: whoever has only asked for it leaves
    its forks unable to, and an optimiser asks at every step, on the CPU too.
    """
    if device.type == "cpu" and threads == 1 and not torch.cuda.is_available():
        importlib.import_module(WARM)
        return torch.multiprocessing.get_context("fork")
    server = torch.multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([WARM])
    return server


def end_with_parent() -> None:
    """From now on this process ends when the one that started it is gone, killed or not."""
    threading.Thread(target=_outlive_nobody, daemon=True).start()


def _outlive_nobody() -> None:
    if parent := parent_process():
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)
