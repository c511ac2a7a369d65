"""What all exported files share: the description that travels inside the file, and how pictures go in and maps come out.

Shapes: b batch, s frame side, h w a picture's own size.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from polyp_difom.cache.errors import DataError, MissingDependencyError, RunError
from polyp_difom.pipeline.header import checked
from polyp_difom.pipeline.models.protocol import Model, ModelInfo

Precision = Literal["float32", "float16", "int8"]
KEY = "polyp_difom"
"""Under this name the description stands in ONNX metadata, among TorchScript's extra files and in OpenVINO's rt_info."""
DISCLAIMER = "Research software, not a medical device: not for diagnosis, not for treatment, not cleared by any authority."
FARTHEST = 1e-7
"""Probabilities of embedded exports are held this far from 0 and 1 before their log-odds are taken."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Port(_Record):
    """Input or output of the network: None stands for a dimension that is free."""

    name: str
    dtype: Literal["float32", "uint8"]
    shape: tuple[int | None, ...]
    meaning: str


class Description(_Record):
    """What an exported file says of itself.

    Attributes:
        mean, std: of the network's own normalisation, in 0..1, one a channel.
        header: what training wrote into the checkpoint, without paths of the machine that trained.
        figures: rows of the run's results.csv; each names its data set, split and protocol.
        parity: how far the file's probabilities are from those of the network in torch; None before that is measured.
        licence: terms of teachers and training data that bear on the weights.
    """

    version: Literal[1] = 1
    name: str
    parameters: int = Field(gt=0)
    frame_size: int = Field(ge=16, le=4096)
    classes: tuple[str, ...] = ("polyp",)
    embedded_preprocessing: bool
    input: Port
    output: Port
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    threshold: float = 0.5
    precision: Precision
    header: dict[str, Any]
    figures: tuple[dict[str, Any], ...] = ()
    parity: dict[str, Any] | None = None
    licence: str
    disclaimer: str = DISCLAIMER
    software: dict[str, str]

    @classmethod
    def parse(cls, text: str, path: Path) -> Description:
        """The description that a file holds.

        Raises:
            RunError: it is none, or one of another version.
        """
        try:
            about = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            raise RunError(
                "the export's description of itself cannot be used", where=path,
                got=f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}", wanted="a file of `polyp-difom export`",
                remedy="export the run again",
            ) from error  # fmt: skip
        checked({**about.header, "frame_size": about.frame_size}, path)
        return about


def needed(module: str, extra: str) -> Any:
    """An optional package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"the package {module.partition('.')[0]} is not installed", got=error, remedy=f"pip install 'polyp-difom[{extra}]'"
        ) from error


class ExportedModel(Model):
    """Base of exported models; a format gives `run`.

    Attributes:
        about: the file's description of itself.
    """

    def __init__(self, kind: str, path: Path, about: Description, device: str):
        self.about = about
        header = {**about.header, "export": about.model_dump(mode="json", exclude={"header"})}
        self.info = ModelInfo(kind, path, about.frame_size, header, about.parameters, f"{device}, {about.precision}")

    @abstractmethod
    def run(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """The file's one output for its one input, see `about.input` and `about.output`."""

    def logits(self, frames: NDArray[np.uint8]) -> Tensor:
        """See `Model.logits`; of an embedded export the log-odds of its probabilities, at most 16 on either side of 0."""
        if not self.about.embedded_preprocessing:
            return torch.from_numpy(self.run(frames.astype(np.float32) / 255))
        return torch.from_numpy(self.run(np.ascontiguousarray(frames.transpose(0, 2, 3, 1))))[:, None].logit(eps=FARTHEST)

    def probabilities(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """See `Model.probabilities`."""
        if not self.about.embedded_preprocessing:
            return super().probabilities(images)
        for image in images:
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
                raise DataError(
                    "not an RGB picture", got=f"{image.dtype} {list(image.shape)}", wanted="uint8 [height, width, 3]"
                )
        if len({image.shape for image in images}) == 1:
            return list(self.run(np.stack(images)))
        return [self.run(image[None])[0] for image in images]
