"""EMCAD (arXiv 2405.06880): a PVTv2 encoder (arXiv 2106.13797) and a decoder of depthwise convolutions and attention.

Top down over the strides 32, 16, 8, 4: the coarser level is upsampled (EUCB), gates the encoder's map (LGAG), the two are added
and refined (MSCAM), and each level has a head. The logits are the finest head's, at stride 4, resized to the frame; the three
coarser ones are side outputs. `emcad:b2` 26.76 M parameters and `emcad:b0` 3.92 M, as published; the paper's 5.6 and 0.84
GFLOPs are multiply-accumulates at 256 x 256, where we count 5.8 and 0.89 with attention's products, 5.5 and 0.79 without.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.students.latents import Latents, latent_taps
from polyp_difom.pipeline.students.protocol import STUDENTS, Student, Tap, unreachable

SIZES = ("b0", "b1", "b2", "b3", "b4", "b5")
"""Of PVTv2."""
KERNELS = (1, 3, 5)
"""Sides of the parallel depthwise convolutions (table 5 of the paper)."""


class ChannelAttention(nn.Module):
    """CAB, equation 7: every channel times a weight from its maximum and its mean, through one shared bottleneck of c / 16."""

    def __init__(self, channels: int):
        super().__init__()
        inner = channels // 16
        self.weigh = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False), nn.ReLU(inplace=True), nn.Conv2d(inner, channels, 1, bias=False)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """[b, c, h, w] -> the same."""
        largest, mean = maps.amax((2, 3), keepdim=True), maps.mean((2, 3), keepdim=True)
        return maps * (self.weigh(largest) + self.weigh(mean)).sigmoid()


class SpatialAttention(nn.Module):
    """SAB, equation 8: every cell times a weight from its maximum and its mean over channels, seen 7 x 7 cells wide."""

    def __init__(self) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """[b, c, h, w] -> the same."""
        seen = torch.cat([maps.amax(1, keepdim=True), maps.mean(1, keepdim=True)], 1)
        return maps * self.weigh(seen).sigmoid()


class MultiScaleBlock(nn.Module):
    """MSCB, equations 4 and 5: an inverted residual block, twice as wide inside, with depthwise kernels of several sizes.

    The shuffle stands as published; before a dense 1x1 convolution it only renames that convolution's inputs.
    """

    def __init__(self, channels: int):
        super().__init__()
        wide = 2 * channels
        self.expand = nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True))
        self.scales = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(wide, wide, side, padding=side // 2, groups=wide, bias=False),
                nn.BatchNorm2d(wide),
                nn.ReLU6(inplace=True),
            )
            for side in KERNELS
        )
        self.project = nn.Sequential(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """[b, c, h, w] -> the same."""
        wide = self.expand(maps)
        small, middle, large = (scale(wide) for scale in self.scales)
        shuffled = (small + middle + large).unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
        return maps + self.project(shuffled)


class AttentionGate(nn.Module):
    """LGAG, equations 1 and 2: the encoder's map times a weight a cell, from grouped 3x3 convolutions of it and of its gate."""

    def __init__(self, channels: int):
        super().__init__()
        inner = channels // 2
        self.gate, self.skip = (
            nn.Sequential(nn.Conv2d(channels, inner, 3, padding=1, groups=inner), nn.BatchNorm2d(inner)) for _ in range(2)
        )
        self.weigh = nn.Sequential(nn.Conv2d(inner, 1, 1), nn.BatchNorm2d(1))

    def forward(self, gate: Tensor, skip: Tensor) -> Tensor:
        """Upsampled coarser level and encoder's map, both [b, c, h, w] -> the same shape."""
        return skip * self.weigh(F.relu(self.gate(gate) + self.skip(skip))).sigmoid()


class UpConvolution(nn.Sequential):
    """EUCB, equation 9: twice the side, depthwise 3x3, the next level's channels; [b, c_in, h, w] -> [b, c_out, 2h, 2w]."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__(
            nn.Upsample(scale_factor=2), nn.Conv2d(c_in, c_in, 3, padding=1, groups=c_in, bias=False),
            nn.BatchNorm2d(c_in), nn.ReLU(inplace=True), nn.Conv2d(c_in, c_out, 1),
        )  # fmt: skip


class Emcad(Student):
    """Taps: `encoder8`, `encoder16`, `bottleneck` at stride 32, the refined levels `decoder8` and `decoder16`, and `latent1`,
    `latent2` if asked for."""

    stride = 32
    sides = ("side32", "side16", "side8")

    def __init__(self, size: str = "b2", pretrained: bool = False, latents: bool = False):
        super().__init__()
        import timm  # not at import: the other students do without

        self.pretraining = f"PVTv2-{size.upper()}, ImageNet-1k (timm pvt_v2_{size})"
        try:
            encoder: Any = timm.create_model(f"pvt_v2_{size}", pretrained=pretrained, features_only=True)
        except OSError as error:
            raise unreachable(f"emcad:{size}", error) from error
        self.encoder = encoder
        widths = encoder.feature_info.channels()[::-1]
        self.ups = nn.ModuleList(UpConvolution(a, b) for a, b in pairwise(widths))
        self.gates = nn.ModuleList(AttentionGate(width) for width in widths[1:])
        self.refinements = nn.ModuleList(
            nn.Sequential(ChannelAttention(width), SpatialAttention(), MultiScaleBlock(width)) for width in widths
        )
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in widths)
        self.latents = Latents(widths[0], restores=True) if latents else None
        self.taps = (
            Tap("encoder8", widths[2], 8, "encoder"),
            Tap("encoder16", widths[1], 16, "encoder"),
            Tap("bottleneck", widths[0], 32, "bottleneck"),
            Tap("decoder8", widths[2], 8, "decoder"),
            Tap("decoder16", widths[1], 16, "decoder"),
            *(latent_taps(32) if latents else ()),
        )

    def segment(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Student.segment`."""
        skips = self.encoder(inputs)[::-1]
        maps = dict(zip(("bottleneck", "encoder16", "encoder8"), skips, strict=False))
        deepest = skips[0]
        if self.latents is not None:
            deepest, seen = self.latents(deepest)
            maps |= seen
        levels = [self.refinements[0](deepest)]
        for up, gate, refine, skip in zip(self.ups, self.gates, self.refinements[1:], skips[1:], strict=True):
            upper = up(levels[-1])
            levels.append(refine(upper + gate(upper, skip)))
        maps |= {"decoder16": levels[1], "decoder8": levels[2]}
        if self.training:
            maps |= {name: head(level) for name, head, level in zip(self.sides, self.heads, levels, strict=False)}
        logits = F.interpolate(self.heads[3](levels[3]), scale_factor=4.0, mode="bilinear", align_corners=False)
        return logits, maps


@STUDENTS.register("emcad")
def build_emcad(variant: str | None, latents: bool, pretrained: bool) -> Emcad:
    """`emcad` (on PVTv2-B2) or `emcad:bN` on PVTv2-BN."""
    if variant not in (None, *SIZES):
        wanted = f"one of: {', '.join(f'emcad:{size}' for size in SIZES)}"
        raise UsageError(f"emcad has no variant {variant!r}", wanted=wanted, remedy="give --student emcad:b2")
    return Emcad(variant or "b2", pretrained, latents)
