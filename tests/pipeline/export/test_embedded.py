"""The resize inside the graph is Pillow's, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from polyp_difom.pipeline.export.embedded import Embedded, resampling_weights
from polyp_difom.pipeline.models.protocol import resized_back, squared


class Keep(nn.Module):
    """Gives its input's first channel as logits, and keeps the input."""

    def forward(self, frames: Tensor) -> Tensor:
        self.frames = frames
        return frames[:, :1] * 6 - 3


@pytest.mark.parametrize("size", [(64, 64), (150, 97), (288, 384), (65, 1000), (1, 1), (40, 20), (63, 5)])
def test_frames_are_those_of_pillow_bit_for_bit(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    narrowed = np.asarray(Image.fromarray(picture).resize((64, size[0]), Image.Resampling.BILINEAR))  # fixes the passes' order
    keep = Keep()
    Embedded(keep, 64)(torch.from_numpy(picture)[None])
    np.testing.assert_array_equal((keep.frames[0] * 255).round().numpy().astype(np.uint8), squared(narrowed, 64))


def test_logits_are_resized_back_like_those_of_a_run() -> None:
    picture = np.array(Image.radial_gradient("L").convert("RGB").resize((75, 91)))
    keep = Keep()
    got = Embedded(keep, 64)(torch.from_numpy(picture)[None])[0].numpy()
    np.testing.assert_allclose(got, resized_back(keep.frames[0, :1] * 6 - 3, (91, 75)), atol=1e-6)


@pytest.mark.parametrize(("source", "target"), [(200, 64), (64, 64), (10, 64)])
def test_weights_of_a_pixel_sum_to_one(source: int, target: int) -> None:
    weights = resampling_weights(source, target)
    assert weights.shape == (target, source)
    torch.testing.assert_close(weights.sum(1), torch.ones(target, dtype=torch.float64), atol=1e-5, rtol=0)
