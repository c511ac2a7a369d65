"""Where the arithmetic runs and in which precision; every automatic choice comes with its reason."""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from polyp_difom.cache.errors import RunError, UsageError, first_line

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
PRECISIONS = ("auto", "float32", "bfloat16")
_NO_MEMORY = re.compile(
    r"DefaultCPUAllocator: can't allocate|CU(BLAS|DNN)_STATUS_(\w+_)?ALLOC(ATION)?_FAILED|CUFFT_ALLOC_FAILED"
    r"|(CUDA (driver )?error|Triton Error \[CUDA\]): out of memory"
)


def pick_device(name: str = "auto") -> torch.device:
    """The named torch device; "auto" takes the first CUDA device if there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {name!r}", wanted="auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"no device {name!r} here", got=f"{torch.cuda.device_count()} CUDA devices", remedy="use --device cpu")
    return device


def pick_precision(device: torch.device, wanted: str = "auto") -> tuple[str, str]:
    """(precision, reason): bfloat16 where the hardware multiplies it natively, else float32."""
    if wanted not in PRECISIONS:
        raise UsageError(f"unknown precision {wanted!r}", wanted=f"one of: {', '.join(PRECISIONS)}")
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32; bfloat16 goes by its own name
    if wanted != "auto":
        return wanted, "as asked"
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bfloat16", "this GPU has it natively") if native else ("float32", "this GPU has no native bfloat16")
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"):
        return "bfloat16", "this CPU multiplies it natively"
    return "float32", "this CPU has no known native bfloat16"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast context of a resolved precision (a no-op in float32)."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


class _WideDepthwise(TorchFunctionMode):
    """Depthwise convolutions of 5 x 5 and wider leave autocast and run in float32; their results go on in bfloat16.

    oneDNN's bfloat16 gradients of them take three to five times as long as its float32 ones, which made `light:lite2` at 256
    pixels spend two thirds of a step there: 1.87 s for 16 frames, 1.34 s without (torch 2.14, one thread).
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is F.conv2d and len(args) > 1 and args[1].shape[1] == 1 and args[1].shape[-1] >= 5:
            with torch.autocast("cpu", enabled=False):
                return func(args[0].float(), *args[1:], **(kwargs or {})).bfloat16()
        return func(*args, **(kwargs or {}))


@contextmanager
def training_autocast(device: torch.device, precision: str) -> Iterator[None]:
    """`autocast` around a forward pass whose backward pass follows."""
    slow = device.type == "cpu" and precision == "bfloat16"
    with autocast(device, precision), _WideDepthwise() if slow else nullcontext():
        yield


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks instead of handing each back to the kernel.

    Tensors of tens of megabytes are otherwise mapped and faulted in anew for every layer: half of LiteMedSAM's CPU time.
    Does nothing where the C library is another one.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether it says that the device's memory is used up; the CPU's allocator, cuBLAS and cuDNN have no error of their own."""
    return isinstance(error, torch.OutOfMemoryError) or bool(_NO_MEMORY.search(str(error)))


@contextmanager
def enough_memory(device: torch.device, batch_size: int | None = None) -> Iterator[None]:
    """Turns the device running out of memory into an error that a user can act on, and that names the batch size.

    Raises:
        RunError: out of memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        where = f"{device}, {batch_size} frames at once" if batch_size else device
        raise RunError("out of memory", where=where, got=first_line(error), remedy="give a smaller --batch-size") from error


def synchronise(device: torch.device) -> None:
    """Wait for queued work, so that a clock read next means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
