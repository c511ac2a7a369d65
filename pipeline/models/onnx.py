"""Exported ONNX files under ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyp_difom.cache.errors import MissingDependencyError, RunError, UsageError
from polyp_difom.pipeline.models.exported import KEY, Description, ExportedModel, needed

CUDA = "CUDAExecutionProvider"
TYPES = {"float32": "tensor(float)", "uint8": "tensor(uint8)"}


class OnnxModel(ExportedModel):
    """An .onnx file of `polyp-difom export`.

    Args:
        device: "auto" takes CUDA where this build of ONNX Runtime has it; see `load_model`.
        threads: CPU threads; ONNX Runtime's choice by default.

    Raises:
        RunError: damaged, or not an export of this tool. MissingDependencyError: no ONNX Runtime, or none with CUDA.
    """

    def __init__(self, path: Path, device: str = "auto", threads: int | None = None):
        runtime = needed("onnxruntime", "export")
        provider, settings = _provider(runtime, device)
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # errors come as exceptions
        options.intra_op_num_threads = threads or 0
        try:
            self.session = runtime.InferenceSession(str(path), options, [(provider, settings)])
        except Exception as error:
            got = str(error).splitlines()[0][:200]
            raise RunError("ONNX Runtime cannot load the file", where=path, got=got, wanted="an intact .onnx file") from error
        about = self._described(path)
        self.names = [about.output.name], about.input.name
        super().__init__("onnx", path, about, "cpu" if provider != CUDA else f"cuda:{settings['device_id']}")

    def _described(self, path: Path) -> Description:
        inputs, outputs = (
            [(p.name, p.type, p.shape) for p in ports()] for ports in (self.session.get_inputs, self.session.get_outputs)
        )
        text = self.session.get_modelmeta().custom_metadata_map.get(KEY)
        about = Description.parse(text, path) if text is not None else None
        if about is None or [one[:2] for one in inputs] != [(about.input.name, TYPES[about.input.dtype])]:
            raise RunError(
                "not an ONNX file that polyp-difom exported", where=path,
                got="; ".join(f"input {name} {kind} {shape}" for name, kind, shape in inputs),
                wanted=f"metadata {KEY!r} and the one input that it describes", remedy="polyp-difom export RUN --to onnx",
            )  # fmt: skip
        if about.output.name not in [one[0] for one in outputs]:
            raise RunError("the ONNX file lacks the output that it describes", where=path, wanted=about.output.name)
        return about

    def run(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """See `ExportedModel.run`."""
        outputs, name = self.names
        return self.session.run(outputs, {name: inputs})[0]


def _provider(runtime: Any, device: str) -> tuple[str, dict[str, str]]:
    """Execution provider and its options."""
    if device == "cpu" or (device == "auto" and CUDA not in runtime.get_available_providers()):
        return "CPUExecutionProvider", {}
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cuda") or (number and not number.isdecimal()):
        raise UsageError(f"unknown device {device!r}", wanted="auto, cpu, cuda or cuda:N")
    if CUDA not in runtime.get_available_providers():
        raise MissingDependencyError(
            "this ONNX Runtime has no CUDA", got=", ".join(runtime.get_available_providers()),
            remedy="pip install onnxruntime-gpu in place of onnxruntime, or use --device cpu",
        )  # fmt: skip
    return CUDA, {"device_id": number or "0"}
