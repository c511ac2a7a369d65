"""PraNet (arXiv 2006.11392): a partial decoder guesses where the lesion is, three reverse attentions find its border.

Encoder Res2Net-50 v1b 26w x 4s (arXiv 1904.01169), timm's `res2net50d`. The logits are the last of the
paper's four supervised outputs, at stride 8, resized to the frame; the other three are side outputs. Upsampling is bilinear
without aligned corners throughout.
30.50 M parameters: the published 32.55 M count the encoder's ImageNet classifier (2.05 M), which nothing uses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.students.latents import Latents, latent_taps
from polyp_difom.pipeline.students.protocol import STUDENTS, Student, Tap, unreachable

WIDTH = 32
"""Channels of the receptive-field modules (section 2.1 of the paper)."""


def resized(maps: Tensor, factor: float) -> Tensor:
    """Maps [b, c, h, w] -> [b, c, factor h, factor w], bilinear."""
    return F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)


class ConvNorm(nn.Sequential):
    """Convolution that keeps the size, then batch norm; no activation."""

    def __init__(self, c_in: int, c_out: int, kernel: tuple[int, int] = (1, 1), dilation: int = 1):
        padding = (dilation * (kernel[0] // 2), dilation * (kernel[1] // 2))  # ONNX Runtime refuses "same" with dilation
        super().__init__(nn.Conv2d(c_in, c_out, kernel, padding=padding, dilation=dilation, bias=False), nn.BatchNorm2d(c_out))


class ReceptiveField(nn.Module):
    """Receptive field block (arXiv 1711.07767): branches that see 1, 3, 5 and 7 cells wide, beside a shortcut."""

    def __init__(self, c_in: int):
        super().__init__()
        self.branches = nn.ModuleList([ConvNorm(c_in, WIDTH)])
        for side in (3, 5, 7):
            self.branches.append(
                nn.Sequential(
                    ConvNorm(c_in, WIDTH), ConvNorm(WIDTH, WIDTH, (1, side)), ConvNorm(WIDTH, WIDTH, (side, 1)),
                    ConvNorm(WIDTH, WIDTH, (3, 3), dilation=side),
                )
            )  # fmt: skip
        self.merge = ConvNorm(4 * WIDTH, WIDTH, (3, 3))
        self.shortcut = ConvNorm(c_in, WIDTH)

    def forward(self, maps: Tensor) -> Tensor:
        """[b, c_in, h, w] -> [b, 32, h, w]."""
        merged = self.merge(torch.cat([branch(maps) for branch in self.branches], 1))
        return F.relu(merged + self.shortcut(maps))


class PartialDecoder(nn.Module):
    """Cascaded partial decoder (arXiv 1904.08739): the three deep levels gate each other by products and are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList(ConvNorm(WIDTH, WIDTH, (3, 3)) for _ in range(3))
        self.carries = nn.ModuleList(ConvNorm(width, width, (3, 3)) for width in (WIDTH, 2 * WIDTH))
        self.joins = nn.ModuleList(ConvNorm(width, width, (3, 3)) for width in (2 * WIDTH, 3 * WIDTH, 3 * WIDTH))
        self.head = nn.Conv2d(3 * WIDTH, 1, 1)

    def forward(self, level8: Tensor, level16: Tensor, level32: Tensor) -> tuple[Tensor, Tensor]:
        """[b, 32, h, w] at strides 8, 16, 32 -> (features [b, 96, h, w], global map [b, 1, h, w]), both at stride 8."""
        up32 = resized(level32, 2)
        middle = self.gates[0](up32) * level16
        fine = self.gates[1](resized(up32, 2)) * self.gates[2](resized(level16, 2)) * level8
        joined = self.joins[0](torch.cat([middle, self.carries[0](up32)], 1))
        joined = self.joins[1](torch.cat([fine, self.carries[1](resized(joined, 2))], 1))
        joined = self.joins[2](joined)
        return joined, self.head(joined)


class ReverseAttention(nn.Module):
    """What the coarser map has not found yet: features times 1 - sigmoid(map), convolved to a residual of the map."""

    def __init__(self, c_in: int, width: int, kernel: int, depth: int, head_kernel: int):
        super().__init__()
        self.reduce = ConvNorm(c_in, width)
        self.body = nn.Sequential(
            *(layer for _ in range(depth) for layer in (ConvNorm(width, width, (kernel, kernel)), nn.ReLU()))
        )
        self.head = ConvNorm(width, 1, (head_kernel, head_kernel))

    def forward(self, maps: Tensor, coarser: Tensor) -> Tensor:
        """Features [b, c_in, h, w] and the coarser logits [b, 1, h, w] -> logits [b, 1, h, w]."""
        return self.head(self.body(self.reduce(maps * (1 - coarser.sigmoid())))) + coarser


class PraNet(Student):
    """Taps: `encoder8`, `encoder16`, `bottleneck` at stride 32, `decoder8`, the partial decoder's features, and `latent1`,
    `latent2` if asked for: these come before the receptive fields and the deepest reverse attention."""

    stride = 32
    sides = ("side_global", "side32", "side16")
    pretraining = "Res2Net-50 v1b 26w x 4s, ImageNet-1k (timm res2net50d)"
    taps: tuple[Tap, ...] = (
        Tap("encoder8", 512, 8, "encoder"),
        Tap("encoder16", 1024, 16, "encoder"),
        Tap("bottleneck", 2048, 32, "bottleneck"),
        Tap("decoder8", 3 * WIDTH, 8, "decoder"),
    )

    def __init__(self, pretrained: bool = False, latents: bool = False):
        super().__init__()
        import timm  # not at import: the other students do without

        try:
            self.encoder = timm.create_model("res2net50d", pretrained=pretrained, features_only=True, out_indices=(2, 3, 4))
        except OSError as error:
            raise unreachable("pranet", error) from error
        self.fields = nn.ModuleList(ReceptiveField(width) for width in (512, 1024, 2048))
        self.decoder = PartialDecoder()
        self.attention32 = ReverseAttention(2048, 256, kernel=5, depth=3, head_kernel=1)
        self.attention16 = ReverseAttention(1024, 64, kernel=3, depth=2, head_kernel=3)
        self.attention8 = ReverseAttention(512, 64, kernel=3, depth=2, head_kernel=3)
        self.latents = Latents(2048, restores=True) if latents else None
        if latents:
            self.taps += latent_taps(32)

    def segment(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Student.segment`."""
        level8, level16, level32 = self.encoder(inputs)
        maps = {"encoder8": level8, "encoder16": level16, "bottleneck": level32}
        if self.latents is not None:
            level32, seen = self.latents(level32)
            maps |= seen
        reduced = [field(maps) for field, maps in zip(self.fields, (level8, level16, level32), strict=True)]
        features, coarse = self.decoder(*reduced)
        side32 = self.attention32(level32, resized(coarse, 0.25))
        side16 = self.attention16(level16, resized(side32, 2))
        logits = self.attention8(level8, resized(side16, 2))
        maps["decoder8"] = features
        if self.training:
            maps |= dict(zip(self.sides, (coarse, side32, side16), strict=True))
        return resized(logits, 8), maps


@STUDENTS.register("pranet")
def build_pranet(variant: str | None, latents: bool, pretrained: bool) -> PraNet:
    """`pranet`, without variants."""
    if variant:
        raise UsageError(f"pranet has no variant {variant!r}", remedy="give --student pranet")
    return PraNet(pretrained, latents)
