"""Several processes train one student: each takes its share of every batch, all sums are those of the whole batch.

`torchrun` starts the processes. Without it there is no group, one process has it all and nothing is sent.
Shapes: b batch, c channels, h w grid.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm
from torch.overrides import TorchFunctionMode

from polyp_difom.cache.errors import RunError, UsageError, first_line

PATIENCE = timedelta(minutes=10)
"""A process that does not answer for so long is given up."""


def world() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, 0 to `world()` - 1."""
    return dist.get_rank() if world() > 1 else 0


def leads() -> bool:
    """Whether this process writes, logs and prints; one of them does."""
    return rank() == 0


def own(b: int) -> slice:
    """The rows of a batch of b that are this process's."""
    share = b // world()
    return slice(rank() * share, (rank() + 1) * share)


def refuse_uneven(b: int) -> None:
    """UsageError where a batch of b cannot be shared out evenly."""
    if b % world():
        raise UsageError(
            "the batch cannot be shared out evenly", where="--batch-size", got=f"{b} frames a step, {world()} processes",
            wanted=f"a multiple of {world()}", remedy=f"--batch-size {max(b // world(), 1) * world()}",
        )  # fmt: skip


def own_device(device: torch.device) -> torch.device:
    """Of several processes on one machine, each has its own GPU.

    Raises:
        UsageError: fewer GPUs than processes.
    """
    if world() == 1 or device.type != "cuda":
        return device
    index = int(os.environ.get("LOCAL_RANK", rank()))
    if index >= torch.cuda.device_count():
        raise UsageError(
            "more processes than GPUs on this machine", got=f"process {index} of {torch.cuda.device_count()} GPUs, from 0 on",
            remedy=f"torchrun --nproc-per-node {torch.cuda.device_count()}, or --device cpu",
        )  # fmt: skip
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


# Sums


def average(tensor: Tensor) -> Tensor:
    """Mean over the processes, on each of them the same bits; carries no gradient.

    Raises:
        RunError: another process is gone, or does not answer.
    """
    tensor = tensor.detach()
    if world() == 1:
        return tensor
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    try:
        dist.all_reduce(tensor)
    except RuntimeError as error:
        raise RunError(
            "another process of this training is gone", where=f"process {rank()} of {world()}", got=_reason(error),
            remedy="see what it said; then the same command with --resume",
        ) from error  # fmt: skip
    return tensor / world()


def meet(device: torch.device) -> None:
    """Wait until all processes are here.

    Raises:
        RunError: one is gone.
    """
    average(torch.zeros(1, device=device)).item()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Gradients of the whole batch's mean loss, from those of each process's share; one message for all of them.

    A parameter without gradient has none in any process, and keeps none: a zero would let weight decay move it.
    """
    if world() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    averaged = average(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, averaged.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view(gradient.shape))


def moments(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [c] of each channel over all frames and cells of the whole batch's maps [b, c, h, w]."""
    c = maps.shape[1]
    none, one = torch.zeros(c, device=maps.device), torch.ones(c, device=maps.device)
    mean, variance = torch.batch_norm_update_stats(maps.detach(), none, one, 0.0)  # float32 also where the maps are bfloat16
    if world() == 1:
        return mean, variance
    mean, variance = mean.double(), variance.double()  # the difference of squares below cancels
    mean, square = average(torch.stack([mean, variance + mean.square()]))
    return mean.float(), (square - mean.square()).clamp_min(0).float()


# Batch normalisation


def synchronised() -> AbstractContextManager[object]:
    """Within it, batch norms that train take the statistics of the whole batch, whatever module calls them."""
    return nullcontext() if world() == 1 else _Synchronised()


class _Synchronised(TorchFunctionMode):
    """The modules stay what they are, so checkpoints do too, and layers that add an activation keep it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    maps: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """As `F.batch_norm`, which is called with these names."""
    if not training:
        return F.batch_norm(maps, running_mean, running_var, weight, bias, False, momentum, eps)
    if maps.is_cuda:
        group = dist.group.WORLD
        return SyncBatchNorm.apply(maps, weight, bias, running_mean, running_var, eps, momentum, group, world())
    mean, variance = moments(maps)
    n = world() * maps.numel() // maps.shape[1]
    with torch.no_grad():
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * (n / (n - 1)), momentum)
    return _Normalise.apply(maps, weight, bias, mean, variance, eps)


class _Normalise(torch.autograd.Function):
    """Batch norm on the CPU, where torch has none over processes: the usual kernels around two sums for each channel."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(maps, weight, mean, variance)
        ctx.eps = eps
        return F.batch_norm(maps, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight, mean, variance = ctx.saved_tensors
        direct, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            slope, maps, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        cells = maps.numel() // maps.shape[1]
        scatter, shift = average(torch.stack([of_weight, of_bias])) / cells  # means of slope * normalised maps, of slope
        inverse = torch.rsqrt(variance + ctx.eps)
        linear = weight * inverse.square() * scatter
        constant = weight * inverse * shift - linear * mean
        through = torch.addcmul(direct - constant[:, None, None], maps, linear[:, None, None], value=-1)
        return through.to(maps.dtype), of_weight, of_bias, None, None, None


# The group


@contextmanager
def group(environment: Mapping[str, str]) -> Iterator[None]:
    """Within it, the processes that torchrun started (RANK, WORLD_SIZE, ... in the environment) train together.

    An error in one of them ends all; the first to fail raises it, the others end without a word and with its kind of exit code.

    Raises:
        UsageError: variables that are no numbers. RunError: the others cannot be reached.
    """
    if "RANK" not in environment or environment.get("WORLD_SIZE", "1") == "1":
        yield
        return
    store = _join(environment)
    try:
        yield
    except BaseException as error:
        if not _fails_first(store):
            raise SystemExit(getattr(error, "exit_code", 1)) from error
        raise
    finally:
        dist.destroy_process_group()


def _join(environment: Mapping[str, str]) -> dist.Store:
    number, count = ranks(environment)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, number, count = next(iter(dist.rendezvous("env://", number, count, timeout=PATIENCE)))
        dist.init_process_group(
            backend, store=dist.PrefixStore("group", store), rank=number, world_size=count, timeout=PATIENCE
        )
    except (RuntimeError, ValueError) as error:
        raise RunError(
            "the processes of this training cannot reach each other", where=f"process {number} of {count}",
            got=_reason(error), remedy="start them with torchrun, which sets MASTER_ADDR and MASTER_PORT",
        ) from error  # fmt: skip
    return store


def ranks(environment: Mapping[str, str]) -> tuple[int, int]:
    """Number of this process and count of all, as torchrun tells them.

    Raises:
        UsageError: they are no numbers.
    """
    try:
        return int(environment["RANK"]), int(environment["WORLD_SIZE"])
    except ValueError as error:
        raise UsageError("RANK and WORLD_SIZE are no numbers", got=first_line(error), remedy="start with torchrun") from error


def _reason(error: Exception) -> str:
    """What the library says, without the place in its source."""
    line = first_line(error)
    return (line.partition("] ")[2] or line)[:160]


def _fails_first(store: dist.Store) -> bool:
    """Whether no other process of the group has failed before; who cannot ask speaks up."""
    own_mark = str(rank())
    try:
        return store.compare_set("failed", "", own_mark).decode() == own_mark
    except RuntimeError:
        return True
