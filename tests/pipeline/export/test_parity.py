"""What is measured between an export and its original."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from polyp_difom.cache.errors import RunError
from polyp_difom.pipeline.export.frames import Frames
from polyp_difom.pipeline.export.parity import BOUNDS, compare, require
from polyp_difom.pipeline.models.protocol import Model, ModelInfo
from polyp_difom.pipeline.progress import Progress


class Fixed(Model):
    """Logits as a function of the frames in 0..1."""

    def __init__(self, answer: Callable[[Tensor], Tensor]):
        self.answer = answer
        self.info = ModelInfo("onnx", Path("x"), 16, {}, None, "cpu")

    def logits(self, frames: np.ndarray) -> Tensor:
        return self.answer(torch.from_numpy(frames[:, :1]).float() / 255)


@pytest.fixture
def ramps() -> Frames:
    """Three frames, black on the left and white on the right, the right half lesion."""
    image = np.repeat(np.linspace(0, 255, 16).astype(np.uint8)[None, :, None], 16, 0).repeat(3, 2)
    mask = np.zeros((16, 16), bool)
    mask[:, 8:] = True
    return Frames("3 ramps", [image] * 3, [mask] * 3, [])


def steep(shift: float) -> Fixed:
    return Fixed(lambda values: 20 * (values - 0.5 + shift))


def test_difference_changed_pixels_and_dice_are_those_counted_by_hand(ramps: Frames) -> None:
    parity = compare(steep(0), steep(1 / 15), ramps, "int8", Progress())  # one column more counts as lesion
    assert parity.changed == pytest.approx(1 / 16)
    assert parity.dice_torch == 1
    assert parity.dice_export == pytest.approx(2 * 8 / (8 + 9))
    assert parity.cost == pytest.approx(100 - 1600 / 17)
    values = np.linspace(0, 255, 16).astype(np.uint8) / 255
    wanted = np.abs(1 / (1 + np.exp(-20 * (values - 0.5))) - 1 / (1 + np.exp(-20 * (values - 0.5 + 1 / 15)))).max()
    assert parity.max_difference == pytest.approx(wanted, abs=1e-6)
    assert "cost of 5.88 points" in parity.words()


@pytest.mark.parametrize("precision", BOUNDS)
def test_nothing_finite_is_never_kept(precision: str, ramps: Frames) -> None:
    parity = compare(steep(0), Fixed(lambda values: values * float("nan")), ramps, precision, Progress())
    with pytest.raises(RunError, match="not kept"):
        require(parity, Path("x.onnx"), precision)


def test_the_same_network_is_kept(ramps: Frames) -> None:
    parity = compare(steep(0), steep(0), ramps, "float32", Progress())
    require(parity, Path("x.onnx"), "float32")
    assert (parity.max_difference, parity.changed) == (0, 0)
