"""`light`: our own student for CPUs, at most 5 M parameters and 3 GMACs at 352 x 352, easy to export.

EfficientNet-Lite0 (3.03 M, 1.02 GMACs in all), `light:lite1` (3.80, 1.31) or `light:lite2` (4.43, 1.49), and a top-down
decoder: 1x1 laterals to 64 channels, added, then two depthwise-separable convolutions at each of the strides 32, 16, 8, 4;
logits at stride 4. The encoder takes most of the time, so the cheapest decoder that is not worse wins.

CPU milliseconds a frame of 352 x 352 on one thread of ONNX Runtime, timed in turn:

light             20.9   on Lite2        27.0   | same encoder, other decoders of segmentation_models.pytorch:
light:lite1       24.6   .. 96 wide      28.5   | Linknet 22.5, PAN 25.3, DeepLabV3+ 35.3, FPN 61.0, U-Net 66.2
96 channels wide  21.7   .. 128 wide     30.3   | MobileNetV3-Large: PAN 19.2, DeepLabV3+ 31.3
logits at 2       22.2   .. logits at 2  29.3   | others: FPN/mobilenetv3_small 50.7, Segformer/mit_b0 70.4

A mask averaged to stride 4 and interpolated back keeps a Dice of .997 (stride 2 .998, stride 8 .993; 200 Kvasir-SEG masks), so
finer logits have .001 to gain. Concatenated instead of added levels changed test Dice by .003 (162 frames, one short run each).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.students.latents import LATENT_CHANNELS, Latents, latent_taps
from polyp_difom.pipeline.students.lite import LITE_LEVELS, LITE_MEAN, LITE_STD, lite_encoder, lite_weights, load_imagenet
from polyp_difom.pipeline.students.protocol import STUDENTS, Student, Tap, doubled

WIDTH = 64
SIZES = {None: 0, "lite1": 1, "lite2": 2}
"""Which EfficientNet-Lite a variant stands on."""


class Fusion(nn.Sequential):
    """Twice: depthwise 3x3, pointwise, each with batch norm and ReLU6; [b, c, h, w] -> the same."""

    def __init__(self, channels: int = WIDTH):
        layers: list[nn.Module] = []
        for _ in range(2):
            for kernel, groups in ((3, channels), (1, 1)):
                layers += [
                    nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups, bias=False),
                    nn.BatchNorm2d(channels),
                    nn.ReLU6(inplace=True),
                ]
        super().__init__(*layers)


class Light(Student):
    """Taps: `encoder8`, `encoder16`, `bottleneck` at 32, `decoder8`, `decoder16`, and `latent1`, `latent2` if asked for."""

    stride = 32

    def __init__(self, size: int = 0, latents: bool = False):
        super().__init__(LITE_MEAN, LITE_STD)
        levels = LITE_LEVELS[size]
        self.pretraining = lite_weights(size)
        self.encoder = lite_encoder(size)
        self.latents = Latents(levels[3]) if latents else None
        sources = [*levels[:3], 2 * LATENT_CHANNELS if latents else levels[3]]
        self.laterals = nn.ModuleList(nn.Sequential(nn.Conv2d(c, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH)) for c in sources)
        self.fusions = nn.ModuleList(Fusion() for _ in levels)
        self.head = nn.Conv2d(WIDTH, 1, 1)
        self.taps = (
            Tap("encoder8", levels[1], 8, "encoder"),
            Tap("encoder16", levels[2], 16, "encoder"),
            Tap("bottleneck", levels[3], 32, "bottleneck"),
            Tap("decoder8", WIDTH, 8, "decoder"),
            Tap("decoder16", WIDTH, 16, "decoder"),
            *(latent_taps(32) if latents else ()),
        )

    def segment(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Student.segment`."""
        levels = self.encoder(inputs)
        taps = {"encoder8": levels[1], "encoder16": levels[2], "bottleneck": levels[3]}
        if self.latents is not None:
            levels[3], seen = self.latents(levels[3])
            taps |= seen
        decoded = [self.fusions[3](self.laterals[3](levels[3]))]
        for level in (2, 1, 0):
            decoded.append(self.fusions[level](doubled(decoded[-1]) + self.laterals[level](levels[level])))
        logits = F.interpolate(self.head(decoded[3]), scale_factor=4.0, mode="bilinear", align_corners=False)
        return logits, taps | {"decoder16": decoded[1], "decoder8": decoded[2]}


@STUDENTS.register("light")
def build_light(variant: str | None, latents: bool, pretrained: bool) -> Light:
    """`light` on EfficientNet-Lite0, `light:lite1` and `light:lite2` on the larger ones."""
    if variant not in SIZES:
        wanted = ", ".join(f"light:{name}" if name else "light" for name in SIZES)
        raise UsageError(f"light has no variant {variant!r}", wanted=wanted, remedy="give --student light")
    size = SIZES[variant]
    student = Light(size, latents)
    if pretrained:
        load_imagenet(student.encoder, size)
    return student
