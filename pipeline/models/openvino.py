"""Exported OpenVINO files (.xml with its .bin) on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyp_difom.cache.errors import RunError
from polyp_difom.pipeline.models.exported import KEY, Description, ExportedModel, needed


class OpenVinoModel(ExportedModel):
    """An .xml file of `polyp-difom export`, computed in float32, whatever the CPU would rather use.

    Args:
        threads: CPU threads; OpenVINO's choice by default.

    Raises:
        RunError: damaged, without its .bin, or not an export of this tool. MissingDependencyError: no OpenVINO.
    """

    def __init__(self, path: Path, threads: int | None = None):
        core = needed("openvino", "openvino").Core()
        with path.open("rb") as file:
            start = file.read(512)
        if not start.lstrip().startswith((b"<?xml", b"<net")):  # else OpenVINO tries its readers of other formats
            raise RunError("not an OpenVINO file", where=path, got=f"it begins with {start[:16]!r}", wanted="<?xml or <net")
        try:
            model = core.read_model(path)
        except Exception as error:
            raise _unusable(path, error) from error
        if KEY not in model.get_rt_info():
            raise RunError(
                "not an OpenVINO file that polyp-difom exported", where=path,
                got="; ".join(f"input {port.any_name} {port.element_type} {port.partial_shape}" for port in model.inputs),
                wanted=f"rt_info {KEY!r}", remedy="polyp-difom export RUN --to openvino",
            )  # fmt: skip
        about = Description.parse(model.get_rt_info([KEY]).astype(str), path)
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self.compiled = core.compile_model(model, "CPU", settings)
        except Exception as error:
            raise _unusable(path, error) from error
        super().__init__("openvino", path, about, "cpu")

    def run(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """See `ExportedModel.run`."""
        return np.array(self.compiled(inputs)[0])


def _unusable(path: Path, error: Exception) -> RunError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return RunError(
        "OpenVINO cannot load the file", where=path, got=lines[-1][:200] if lines else error,
        wanted=f"an intact .xml file with {path.stem}.bin beside it", remedy="polyp-difom export RUN --to openvino",
    )  # fmt: skip
