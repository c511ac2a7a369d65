"""A Ray cluster: one that is running, or one of this machine's own for as long as the work lasts."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from types import ModuleType
from typing import Any

from polyp_difom.cache.errors import MissingDependencyError, PolypDifomError, RunError, UsageError, first_line

PORT_SECONDS = 5.0
ANSWER_SECONDS = 30.0
OBJECT_STORE_BYTES = 256 * 2**20
"""Of a cluster of our own: plans and results are small, frames and maps go through the store."""
ASK = """
import logging, os, sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
ray.nodes()
os._exit(0)
"""


def ray_module() -> ModuleType:
    """Ray, with its usage statistics off.

    Raises:
        MissingDependencyError: it is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError("Ray is not installed", got=error, remedy="pip install 'polyp-difom[ray]'") from error
    return ray


@contextmanager
def connected(address: str | None, cpus: int | None = None, object_store: int = OBJECT_STORE_BYTES) -> Iterator[ModuleType]:
    """Ray, connected: to the cluster at `address`, to the one this process is connected to already, or to a new local one.

    In the block, stdout goes to stderr. A connection that was there before stays; a local cluster ends with the block. A
    worker's OMP_NUM_THREADS is its task's `num_cpus`, unless the environment that the cluster was started in sets it. A
    cluster that wants a token gets what Ray finds in the environment: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN.

    Args:
        address: HOST:PORT of a running cluster's head, or "auto" for the one that this machine is part of.
        cpus: that a local cluster is to have, as Ray counts them; by default this machine's.
        object_store: bytes of a local cluster's.

    Raises:
        MissingDependencyError: Ray is not installed.
        RunError: nothing answers at the address, or something that this Ray cannot work with.
        UsageError: no such form of address, or this process is connected to another cluster.
    """
    ray = ray_module()
    if ray.is_initialized():
        present = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", present):
            raise UsageError("this process is connected to another Ray cluster", where="--address", got=address, wanted=present)
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        own = {"include_dashboard": False, "object_store_memory": object_store}
        ray.init(address="local", num_cpus=cpus, **own, **quiet)
    else:
        _check(address)
        ray.init(address=address, **quiet)
    with redirect_stdout(sys.stderr):  # Ray tells there, unasked, of workers that died, and does so until it is shut down
        try:
            yield ray
        finally:
            ray.shutdown()


def answer(ray: ModuleType, reference: Any, what: str, where: object = None) -> Any:
    """The result of a task or of an actor's method.

    Args:
        what: the worker was doing, for the message: "shard 3".

    Raises:
        PolypDifomError: the very one that the worker raised; RunError where it raised another, or is no more.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PolypDifomError):
            raise error.cause from None
        cause = f"{type(error.cause).__name__}: {first_line(error.cause)}"
        raise RunError(
            f"a Ray worker failed at {what}", where=where, got=cause, remedy="run it without Ray to see more"
        ) from error
    except ray.exceptions.RayError as error:
        raise RunError(
            f"no Ray worker could finish {what}", where=where, got=f"{type(error).__name__}: {first_line(error)}",
            remedy="look at the workers' memory and logs; what was finished is kept",
        ) from error  # fmt: skip


def _check(address: str) -> None:
    """Asks for an answer first, from a process that can be stopped: Ray itself waits for minutes, then ends its process."""
    if address != "auto":
        host, _, port = address.rpartition(":")
        if "://" in address or not host or not port.isdecimal():
            raise UsageError(
                "no address of a Ray cluster", where="--address", got=address, wanted="HOST:PORT of its head, or auto"
            )
        try:
            socket.create_connection((host.strip("[]"), int(port)), PORT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise _silent(address, first_line(error)) from error
    try:
        asked = subprocess.run(  # noqa: S603  (a constant program; the address is one argument of it)
            [sys.executable, "-c", ASK, address], capture_output=True, text=True, timeout=ANSWER_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise _silent(address, f"no answer in {ANSWER_SECONDS:.0f} s") from error
    if asked.returncode:
        last = next(iter(asked.stderr.strip().splitlines()[-1:]), f"exit code {asked.returncode}")
        refused = "InvalidAuthToken" in asked.stderr
        raise _silent(address, "no token, or a wrong one: RAY_AUTH_MODE, RAY_AUTH_TOKEN" if refused else last)


def _silent(address: str, got: str) -> RunError:
    return RunError(
        "no Ray cluster can be used at this address", where=f"--address {address}", got=got,
        wanted=f"a running cluster of Ray {ray_module().__version__}, of which this machine is part",
        remedy="`ray status` on the head, `ray start --address HOST:PORT` here; or leave --address out for a local one",
    )  # fmt: skip
