"""How a sweep's processes are started, so that they share what they can."""

from __future__ import annotations

import importlib
import os
import signal
import threading
from multiprocessing import connection, parent_process
from multiprocessing.context import ForkContext, ForkServerContext

import torch.multiprocessing

WARM = "polyp_difom.pipeline.sweep.warm"


def forks(device: torch.device) -> bool:
    """Whether this process may be forked: on the CPU, while PyTorch has no pool of threads, which no child would have."""
    return device.type == "cpu" and torch.get_num_threads() == 1


def context(device: torch.device) -> ForkContext | ForkServerContext:
    """Forks this process where it may be forked, else a clean server that has imported everything once."""
    if forks(device):
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
