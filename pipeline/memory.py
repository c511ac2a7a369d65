"""How much memory is left."""

from __future__ import annotations

from pathlib import Path

import torch

_CGROUPS = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that the device has left; on the CPU also within the limit that a batch system has set."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = kilobytes(Path("/proc/meminfo"))["MemAvailable"]
    group = _CGROUPS / Path("/proc/self/cgroup").read_text().partition("0::/")[2].strip()
    for folder in (group, *group.parents):
        limit = folder / "memory.max"
        if limit.is_file() and (most := limit.read_text().strip()).isdecimal():
            cached = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())["inactive_file"]
            free = min(free, int(most) - int((folder / "memory.current").read_text()) + int(cached))
    return max(0, free)


def kilobytes(path: Path) -> dict[str, int]:
    """The sizes in a file of /proc, in bytes."""
    words = (line.split() for line in path.read_text().splitlines())
    return {word[0].rstrip(":"): int(word[1]) * 1024 for word in words if word[-1] == "kB"}
