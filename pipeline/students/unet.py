"""U-Net (arXiv 1505.04597) with batch normalisation and bilinear upsampling; optionally Polyp-DiFoM's two latents.

Five levels; `unet` is 32-64-128-256-512 channels wide, `unet:B` B-2B-4B-8B-16B (`unet:64` is the original width).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.students.latents import LATENT_CHANNELS, Latents, latent_taps
from polyp_difom.pipeline.students.protocol import STUDENTS, Student, Tap, doubled


class ConvBlock(nn.Sequential):
    """Twice: 3x3 convolution, batch norm, ReLU; [b, c_in, h, w] -> [b, c_out, h, w]."""

    def __init__(self, c_in: int, c_out: int):
        layers: list[nn.Module] = []
        for channels in (c_in, c_out):
            layers += [nn.Conv2d(channels, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class UNet(Student):
    """Taps: `encoder8` and `decoder8` at stride 8, `bottleneck` at stride 16, and `latent1`, `latent2` if asked for."""

    stride = 16

    def __init__(self, base: int = 32, latents: bool = False):
        super().__init__()
        widths = [base << level for level in range(5)]
        self.encoder: nn.ModuleList = nn.ModuleList(ConvBlock(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.latents = Latents(widths[4]) if latents else None
        deepest = 2 * LATENT_CHANNELS if latents else widths[4]
        sources = [deepest, *widths[3:0:-1]]
        self.decoder = nn.ModuleList(ConvBlock(a + b, b) for a, b in zip(sources, widths[3::-1], strict=True))
        self.head = nn.Conv2d(base, 1, 1)
        self.taps = taps_of(widths, latents)

    def segment(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Student.segment`."""
        skips = [self.encoder[0](inputs)]
        for block in self.encoder[1:]:
            skips.append(block(F.max_pool2d(skips[-1], 2)))
        maps = skips.pop()
        taps = {"encoder8": skips[3], "bottleneck": maps}
        if self.latents is not None:
            maps, seen = self.latents(maps)
            taps |= seen
        for block in self.decoder:
            maps = block(torch.cat([doubled(maps), skips.pop()], 1))
            taps.setdefault("decoder8", maps)
        return self.head(maps), taps


def taps_of(widths: Sequence[int], latents: bool) -> tuple[Tap, ...]:
    """What a U-Net with these channels a level, finest first, lets objectives read."""
    return (
        Tap("encoder8", widths[3], 8, "encoder"),
        Tap("bottleneck", widths[4], 16, "bottleneck"),
        Tap("decoder8", widths[3], 8, "decoder"),
        *(latent_taps(16) if latents else ()),
    )


@STUDENTS.register("unet")
def build_unet(variant: str | None, latents: bool, pretrained: bool) -> UNet:
    """`unet` (base width 32) or `unet:B` with B channels at full resolution; nothing is pretrained."""
    return UNet(base_width("U-Net", "unet", variant), latents)


def base_width(title: str, family: str, variant: str | None) -> int:
    """Channels at full resolution that a variant asks for, 32 by default.

    Raises:
        UsageError: not a number from 4 to 128.
    """
    if variant is not None and not (variant.isdecimal() and 4 <= int(variant) <= 128):
        wanted = f"{family}:B with B from 4 to 128, for instance {family}:16" + (
            f"; {family}:deep or {family}:B-deep" if family == "unetpp" else ""
        )
        raise UsageError(f"unknown {title} width {variant!r}", wanted=wanted, remedy=f"give --student {family}:32")
    return int(variant or 32)
