"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Machine:
    """Hardware, threads and software of a measurement.

    Attributes:
        device: name of the GPU, or of the processor.
        threads: CPU threads that every runtime was given.
        load: processes that wanted a core in the minute before, on average; near 0 on a quiet machine.
        versions: of the installed runtimes.
    """

    device: str
    threads: int
    cores: int
    load: float
    versions: dict[str, str]

    @classmethod
    def here(cls, device: torch.device, threads: int) -> Machine:
        """This machine, now."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
        return cls(name, threads, os.cpu_count() or 1, round(os.getloadavg()[0], 2), _versions())

    @property
    def title(self) -> str:
        """All of it in a line."""
        software = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"{self.device}, {self.threads} of {self.cores} CPU threads, load {self.load} before; {software}"


def processor() -> str:
    """Name of the processor, as far as the operating system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def torch_threads(count: int | None) -> Iterator[int]:
    """Gives torch so many CPU threads (as many as it has, by default) until the block ends; yields the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
