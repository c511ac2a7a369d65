"""What a model is: pictures in, lesion probabilities out, whatever runs the network.

Shapes: b batch, s frame side, h w a picture's own size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from polyp_difom.cache.errors import DataError


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model before it runs.

    Attributes:
        kind: "run", "checkpoint", "hub-folder", "onnx", "torchscript" or "openvino".
        path: where it was loaded from.
        frame_size: side s of the squared frames that the network takes, pixels.
        header: what training (and export) wrote into the file: student, objective, teachers, split, seed, signature, ...
        parameters: trained numbers, of the network alone; None where the file format does not tell.
        device: what it runs on, and in which precision, in words.
    """

    kind: str
    path: Path
    frame_size: int
    header: dict[str, Any]
    parameters: int | None
    device: str

    @property
    def name(self) -> str:
        """For tables and file names: the run's folder, or the file without its suffix."""
        return self.path.absolute().name if self.path.is_dir() else self.path.stem


class Model(ABC):
    """Base of all models; a backend gives `logits`."""

    info: ModelInfo

    @abstractmethod
    def logits(self, frames: NDArray[np.uint8]) -> Tensor:
        """Squared RGB frames, uint8 [b, 3, s, s] -> logits, float32 [b, 1, s, s] on the CPU."""

    def probability(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Lesion probability [h, w] in 0..1 of one RGB picture, uint8 [h, w, 3]."""
        return self.probabilities([image])[0]

    def probabilities(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Lesion probabilities [h, w] of RGB pictures of any sizes: squared, segmented at once, logits resized back bilinearly.

        Raises:
            DataError: something that is no RGB picture.
        """
        logits = self.logits(np.stack([squared(image, self.info.frame_size) for image in images]))
        return [resized_back(one, image.shape[:2]) for one, image in zip(logits, images, strict=True)]


def squared(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The whole picture, uint8 [h, w, 3], resized to [3, size, size]: bilinear, antialiased, nothing cropped or padded.

    Raises:
        DataError: not an RGB picture of 8 bits, or an empty one.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise DataError("not an RGB picture", got=f"{image.dtype} {list(image.shape)}", wanted="uint8 [height, width, 3]")
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


def resized_back(logits: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    """Logits [1, s, s] -> probability [h, w] at `size` = (h, w)."""
    resized = F.interpolate(logits[None].float(), size=size, mode="bilinear", align_corners=False)
    return torch.sigmoid(resized)[0, 0].numpy()
