"""A network that takes pictures as they are: resizing, normalisation and resizing back inside its graph.

Shapes: b batch, s frame side, h w the pictures' own size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PILLOW_BITS = 22
"""Fixed-point digits of Pillow's resampling weights for 8-bit pictures."""


class Embedded(nn.Module):
    """Pictures uint8 [b, h, w, 3] of any one size, RGB -> lesion probability float32 [b, h, w].

    The resize is written as two matrix products with Pillow's weights instead of a resize operator with antialiasing, since
    runtimes differ there: ONNX Runtime is off by up to 17 of 255 grey levels, and OpenVINO ignores the flag. In float64 the
    products are exact, so that the frame equals Pillow's bit for bit. (Horizontal pass first, as every Pillow did; newer ones
    take the vertical pass first in many pictures that are higher than wide, where a grey level may then differ by one.)

    Args:
        network: frames [b, 3, s, s] in 0..1 -> logits [b, 1, s, s].
        size: s.
    """

    def __init__(self, network: nn.Module, size: int):
        super().__init__()
        self.network = network
        self.size = size

    def forward(self, pictures: Tensor) -> Tensor:
        """See the class."""
        h, w = pictures.shape[1], pictures.shape[2]
        levels = pictures.permute(0, 3, 1, 2).double()
        across, down = (resampling_weights(side, self.size).type_as(levels) for side in (w, h))  # a device that no trace fixes
        frames = (down @ (levels @ across.T + 0.5).floor() + 0.5).floor()
        logits = self.network(frames.float() / 255)
        return F.interpolate(logits, size=(h, w), mode="bilinear", align_corners=False).sigmoid()[:, 0]


def resampling_weights(source: int | Tensor, target: int) -> Tensor:
    """Pillow's antialiased bilinear filter as a matrix, float64 [target, source], every row's sum 1.

    A triangle around each target pixel's centre, as wide as the reduction asks for, in steps of 2 ** -22.
    """
    length = torch.as_tensor(source)  # while it is traced, a size is a tensor
    scale = length.double() / target
    centres = (torch.arange(target, dtype=torch.float64) + 0.5) * scale
    distances = (torch.arange(length, dtype=torch.float64) + 0.5 - centres[:, None]).abs()  # type: ignore[call-overload]
    weights = (1 - distances / scale.clamp(min=1)).clamp(min=0)
    shares = weights / weights.sum(1, keepdim=True)
    return (shares * 2**PILLOW_BITS + 0.5).floor() / 2**PILLOW_BITS
