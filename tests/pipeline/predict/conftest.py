"""A model that calls bright red lesion, and films to show it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from polyp_difom.pipeline.models.protocol import Model, ModelInfo
from polyp_difom.pipeline.predict.inputs import find_sources
from polyp_difom.pipeline.predict.run import PredictConfig, Totals, predict

Write = Callable[..., Path]


class RedModel(Model):
    """Lesion where red is above 128; on frames of 32 pixels; remembers how many it saw at once."""

    def __init__(self) -> None:
        self.info = ModelInfo("run", Path("runs/red"), 32, {"student": "none"}, 0, "cpu, float32")
        self.batches: list[int] = []

    def logits(self, frames: NDArray[np.uint8]) -> torch.Tensor:
        self.batches.append(len(frames))
        return (torch.from_numpy(frames[:, :1].astype(np.float32)) - 128) / 10


def scene(height: int, width: int, box: tuple[int, int, int, int] | None = None) -> NDArray[np.uint8]:
    """A dark picture with a red box (top, bottom, left, right)."""
    image = np.full((height, width, 3), 30, np.uint8)
    if box:
        image[box[0] : box[1], box[2] : box[3]] = (230, 40, 40)
    return image


@pytest.fixture
def model() -> RedModel:
    return RedModel()


@pytest.fixture
def predicted(model: RedModel, tmp_path: Path) -> Callable[..., Totals]:
    """`predicted(inputs, save=("mask",))`: predicts into tmp_path / "out"."""

    def run(*inputs: Path | str, **settings: object) -> Totals:
        return predict(model, find_sources([str(one) for one in inputs]), tmp_path / "out", PredictConfig(**settings))

    return run


@pytest.fixture(scope="session")
def write_film() -> Write:
    """Writes a film of RGB frames; `times` in seconds, else 25 a second."""
    av = pytest.importorskip("av")

    def write(
        path: Path, frames: Sequence[NDArray[np.uint8]], times: Sequence[float] | None = None, codec: str = "libx264"
    ) -> Path:
        with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
            stream = container.add_stream(codec, rate=25)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = Fraction(1, 1000)
            for number, image in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = round(1000 * (times[number] if times else number / 25)), Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return write
