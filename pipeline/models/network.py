"""Students in torch: a run's best checkpoint, or any checkpoint file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyp_difom.cache.errors import RunError, UsageError
from polyp_difom.pipeline.device import autocast, enough_memory, keep_freed_memory, pick_device, pick_precision
from polyp_difom.pipeline.header import checked
from polyp_difom.pipeline.models.protocol import Model, ModelInfo
from polyp_difom.pipeline.models.strangers import require_closed, require_header
from polyp_difom.pipeline.runs import RunFolder, read_checkpoint
from polyp_difom.pipeline.students.protocol import Student, build_student, parameter_count

NO_META = "meta tensor"
"""Stands in the error of students that read values while they are built, and so cannot be built on the meta device: smp's
Mix Transformers (`mit_*`) take their drop-path rates out of a tensor."""


class NetworkModel(Model):
    """A student in torch.

    Attributes:
        student: in evaluation mode, on its device.
    """

    def __init__(
        self, kind: str, path: Path, tensors: Mapping[str, Tensor], header: dict[str, Any], device: str, precision: str
    ):
        header = checked(header, path)
        keep_freed_memory()
        self.device = pick_device(device)
        self.precision, _ = pick_precision(self.device, precision)
        self.student = student_of(tensors, header, path).to(self.device).to(memory_format=torch.channels_last).eval()
        self.info = ModelInfo(
            kind, path, header["frame_size"], header, parameter_count(self.student), f"{self.device}, {self.precision}"
        )

    @torch.inference_mode()
    def logits(self, frames: NDArray[np.uint8]) -> Tensor:
        """See `Model.logits`."""
        inputs = (torch.from_numpy(frames).to(self.device).float() / 255).contiguous(memory_format=torch.channels_last)
        with enough_memory(self.device, len(frames)), autocast(self.device, self.precision):
            return self.student(inputs).float().cpu()


def student_of(tensors: Mapping[str, Tensor], header: Mapping[str, Any], path: Path) -> Student:
    """The student that a checked header names, with the checkpoint's weights, on the CPU.

    Names and shapes are compared on the meta device first: a network that a stranger's header names costs no memory before
    the weights are known to be its own.

    Raises:
        RunError: a student that is not known, or the weights are another's.
    """
    name, latents = header["student"], any(key.startswith("latents.") for key in tensors)
    try:
        try:
            with torch.device("meta"):
                _require_fit(tensors, build_student(name, latents), name, path)
        except UsageError as error:
            if NO_META not in str(error):
                raise
        student = build_student(name, latents)
    except UsageError as error:
        known = error.details["wanted"]
        raise RunError("the file names a student that cannot be built", where=path, got=error.what, wanted=known) from error
    _require_fit(tensors, student, name, path)
    student.load_state_dict(dict(tensors))
    return student


def _require_fit(tensors: Mapping[str, Tensor], student: Student, name: str, path: Path) -> None:
    got = {key: list(tensor.shape) for key, tensor in tensors.items()}
    wanted = {key: list(tensor.shape) for key, tensor in student.state_dict().items()}
    if differing := [key for key in {**wanted, **got} if got.get(key) != wanted.get(key)]:
        key = differing[0]
        raise RunError(
            "the weights are not those of the student that the file names", where=path,
            got=f"{key} {got.get(key, 'missing')}", wanted=f"{name}, with {key} {wanted.get(key, 'absent')}",
        )  # fmt: skip


def load_run(path: Path, device: str, precision: str) -> NetworkModel:
    """The best checkpoint of a run folder."""
    require_closed(path)
    best = RunFolder.open(path).best
    require_header(best)
    return NetworkModel("run", path, *read_checkpoint(best), device, precision)


def load_checkpoint(path: Path, device: str, precision: str) -> NetworkModel:
    """A checkpoint file, safetensors."""
    require_header(path)
    return NetworkModel("checkpoint", path, *read_checkpoint(path), device, precision)
