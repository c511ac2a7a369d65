"""Students in torch: a run's best checkpoint, or any checkpoint file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyp_difom.cache.errors import RunError
from polyp_difom.pipeline.device import autocast, keep_freed_memory, pick_device, pick_precision
from polyp_difom.pipeline.models.protocol import Model, ModelInfo
from polyp_difom.pipeline.runs import RunFolder, read_checkpoint
from polyp_difom.pipeline.students.protocol import Student, build_student, parameter_count


class NetworkModel(Model):
    """A student in torch.

    Attributes:
        student: in evaluation mode, on its device.
    """

    def __init__(
        self, kind: str, path: Path, tensors: Mapping[str, Tensor], header: dict[str, Any], device: str, precision: str
    ):
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
        with autocast(self.device, self.precision):
            return self.student(inputs).float().cpu()


def student_of(tensors: Mapping[str, Tensor], header: Mapping[str, Any], path: Path) -> Student:
    """The student that a checkpoint's header names, with the checkpoint's weights, on the CPU.

    Raises:
        RunError: the header lacks what is needed, or the weights are another student's.
    """
    if lacking := [key for key in ("student", "frame_size") if key not in header]:
        raise RunError("the checkpoint does not say what it is", where=path, got=f"no {lacking[0]!r} in its header")
    student = build_student(header["student"], any(name.startswith("latents.") for name in tensors))
    try:
        student.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise RunError(
            "the weights are not those of the student that the checkpoint names", where=path, wanted=header["student"],
            got=str(error).splitlines()[1].strip()[:160],
        ) from error  # fmt: skip
    return student


def load_run(path: Path, device: str, precision: str) -> NetworkModel:
    """The best checkpoint of a run folder."""
    return NetworkModel("run", path, *read_checkpoint(RunFolder.open(path).best), device, precision)


def load_checkpoint(path: Path, device: str, precision: str) -> NetworkModel:
    """A checkpoint file, safetensors."""
    return NetworkModel("checkpoint", path, *read_checkpoint(path), device, precision)
