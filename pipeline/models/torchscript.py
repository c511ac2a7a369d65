"""Exported TorchScript files. Opening one runs the code in it, see `load_model(..., trust=True)`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polyp_difom.cache.errors import RunError, first_line
from polyp_difom.pipeline.device import pick_device, pick_precision
from polyp_difom.pipeline.models.exported import KEY, Description, ExportedModel


class TorchScriptModel(ExportedModel):
    """A .torchscript file of `polyp-difom export`.

    Raises:
        RunError: damaged, or not an export of this tool.
    """

    def __init__(self, path: Path, device: str = "auto"):
        self.device = pick_device(device)
        pick_precision(self.device, "float32")
        extra = {KEY: ""}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch would rather have another format
                self.network = torch.jit.load(str(path), map_location=self.device, _extra_files=extra)
        except Exception as error:
            raise RunError(
                "torch cannot load the file", where=path, got=first_line(error)[:200], wanted="an intact TorchScript file",
                remedy="polyp-difom export RUN --to torchscript",
            ) from error  # fmt: skip
        if not extra[KEY]:
            raise RunError(
                "not a TorchScript file that polyp-difom exported", where=path, wanted=f"an extra file {KEY!r} in it",
                remedy="polyp-difom export RUN --to torchscript",
            )  # fmt: skip
        text = extra[KEY]
        about = Description.parse(text.decode() if isinstance(text, bytes) else text, path)
        super().__init__("torchscript", path, about, str(self.device))

    @torch.inference_mode()
    def run(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """See `ExportedModel.run`."""
        return self.network(torch.tensor(inputs, device=self.device)).cpu().numpy()
