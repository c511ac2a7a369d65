"""Polyp-DiFoM's two latents (arXiv 2512.09307), L1 and L2, between encoder and decoder of any student.

The encoder's last map reaches the decoder through them alone: L1 and L2 side by side, 512 channels. The decoders of `unet`,
`unetpp` and `light` take these; the published ones of `pranet`, `emcad` and `smp` stay as they are: a 1x1 convolution brings
the 512 back to the channels of the encoder's last map. Shapes: b batch, c channels, h w grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyp_difom.pipeline.students.protocol import Tap

LATENT_CHANNELS = 256
"""Channels of L1, and of L2."""
NAMES = ("latent1", "latent2")


class Latents(nn.Module):
    """L1, a 1x1 convolution of the encoder's last map, and L2, a 3x3 convolution of L1; both go on to the decoder.

    Args:
        channels: of the encoder's last map.
        restores: whether the decoder is to get as many as these.
    """

    def __init__(self, channels: int, *, restores: bool = False):
        super().__init__()
        self.first = nn.Conv2d(channels, LATENT_CHANNELS, 1)
        self.second = nn.Conv2d(LATENT_CHANNELS, LATENT_CHANNELS, 3, padding=1)
        self.onward = nn.Conv2d(2 * LATENT_CHANNELS, channels, 1) if restores else nn.Identity()

    def forward(self, maps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Encoder's last map [b, c, h, w] -> what the decoder gets, [b, 512 or c, h, w], and both latents [b, 256, h, w]."""
        first = self.first(maps)
        both = first, self.second(first)
        return self.onward(torch.cat(both, 1)), dict(zip(NAMES, both, strict=True))


def latent_taps(stride: int) -> tuple[Tap, ...]:
    """The taps of both latents, at the stride of the encoder's last map."""
    return tuple(Tap(name, LATENT_CHANNELS, stride, "latent") for name in NAMES)
