"""Exported ONNX files under ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyp_difom.cache.errors import MissingDependencyError, RunError, UsageError, first_line
from polyp_difom.pipeline.models.exported import KEY, Description, ExportedModel, needed

CUDA = "CUDAExecutionProvider"
TYPES = {"float32": "FLOAT", "uint8": "UINT8"}


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
        about = described(path)
        try:
            self.session = runtime.InferenceSession(str(path), options, [(provider, settings)])
        except Exception as error:
            raise _unusable(path, error) from error
        self.names = [about.output.name], about.input.name
        held = self.session.get_providers()  # without CUDA's libraries or driver it has gone on with the CPU, unasked
        if provider not in held and device != "auto":
            raise MissingDependencyError(
                "ONNX Runtime cannot reach CUDA", got=", ".join(held), wanted=provider,
                remedy="install the CUDA and cuDNN that this onnxruntime-gpu was built for, or use --device cpu",
            )  # fmt: skip
        super().__init__("onnx", path, about, f"cuda:{settings['device_id']}" if CUDA in held else "cpu")

    def run(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """See `ExportedModel.run`."""
        outputs, name = self.names
        return self.session.run(outputs, {name: inputs})[0]


def described(path: Path) -> Description:
    """The description in the file, which is read as data: before it is known to be ours, no runtime works on it.

    Raises:
        RunError: damaged, or not an export of this tool.
    """
    onnx = needed("onnx", "export")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise _unusable(path, error) from error
    if elsewhere := next(_names_of_other_files(onnx, model), None):
        raise RunError(
            "the ONNX file takes weights from another file, which may be any", where=path, got=f"{elsewhere!r:.80}",
            wanted="all weights in the file itself", remedy="ask its maker for one file",
        )  # fmt: skip
    constants = {one.name for one in model.graph.initializer}
    inputs = [_port(onnx, one) for one in model.graph.input if one.name not in constants]
    text = {one.key: one.value for one in model.metadata_props}.get(KEY)
    about = Description.parse(text, path) if text is not None else None
    if about is None or [one[:2] for one in inputs] != [(about.input.name, TYPES[about.input.dtype])]:
        raise RunError(
            "not an ONNX file that polyp-difom exported", where=path,
            got="; ".join(f"input {name} {kind} {shape}" for name, kind, shape in inputs),
            wanted=f"metadata {KEY!r} and the one input that it describes", remedy="polyp-difom export RUN --to onnx",
        )  # fmt: skip
    if about.output.name not in [one.name for one in model.graph.output]:
        raise RunError("the ONNX file lacks the output that it describes", where=path, wanted=about.output.name)
    return about


def _names_of_other_files(onnx: Any, message: Any) -> Iterator[str]:
    """Of everything in a graph, and in the graphs within it, that lies outside the file."""
    if isinstance(message, onnx.TensorProto):
        if message.data_location == onnx.TensorProto.EXTERNAL:
            yield {entry.key: entry.value for entry in message.external_data}.get("location", "")
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if isinstance(value, Sequence) else [value]:
                yield from _names_of_other_files(onnx, part)


def _port(onnx: Any, value: Any) -> tuple[str, str, list[int | str]]:
    """(name, element type, shape) of a graph's input."""
    names = {number: name for name, number in onnx.TensorProto.DataType.items()}
    kind = value.type.tensor_type
    return value.name, names.get(kind.elem_type, "unknown"), [dim.dim_param or dim.dim_value for dim in kind.shape.dim]


def _unusable(path: Path, error: Exception) -> RunError:
    got = first_line(error)[:200]
    return RunError("ONNX Runtime cannot load the file", where=path, got=got, wanted="an intact .onnx file",
                    remedy="polyp-difom export RUN --to onnx")  # fmt: skip


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
    return CUDA, {"device_id": number or "0", "use_tf32": "0"}
