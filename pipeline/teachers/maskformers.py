"""Mask2Former (arXiv 2112.01527) and OneFormer (arXiv 2211.06220) through transformers: the pixel decoder's maps.

The pixel decoder comes before the queries, and OneFormer's task token conditions the queries alone, so its maps are
those of every task; queries, text and task encoder are left out.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from polyp_difom.pipeline.teachers import hub
from polyp_difom.pipeline.teachers.protocol import DEFAULTS, OWN_WEIGHTS, TEACHERS, Request, Teacher, TeacherSpec

DEFAULTS["oneformer"], DEFAULTS["mask2former"] = "ade20k_swin_tiny", "swin-tiny-ade-semantic"
for _name in ("ade20k_swin_tiny", "ade20k_swin_large", "coco_swin_large", "cityscapes_swin_large"):
    hub.PUBLISHED[f"oneformer:{_name}"] = f"shi-labs/oneformer_{_name}"
for _size in ("tiny", "small", "base", "large"):
    for _task in ("ade-semantic", "coco-panoptic"):
        hub.PUBLISHED[f"mask2former:swin-{_size}-{_task}"] = f"facebook/mask2former-swin-{_size}-{_task}"
SIDE = 640
"""The training crop of both papers on ADE20K, in pixels."""
STRIDES = (4, 8, 16, 32)
LICENCE = "MIT (the model's card may say more)"
DATA = "COCO, ADE20K or Cityscapes after ImageNet: polyp sets not expected"


class PixelDecoderTeacher(Teacher):
    """The per-pixel embedding at stride 4, and the deformable encoder's maps at 8, 16 and 32."""

    def embed(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs [b, 3, s, s] -> four maps [b, c, s / stride, s / stride]."""
        features: Any = self.encoder.get_submodule("encoder")(inputs)
        decoded: Any = self.encoder.get_submodule("decoder")(features.feature_maps)
        return (decoded.mask_features, *reversed(decoded.multi_scale_features))


@TEACHERS.register("oneformer")
def load_oneformer(request: Request) -> Teacher:
    """`oneformer:ade20k_swin_large` and so on, or `oneformer:<folder or hub id>`."""
    from transformers import OneFormerModel

    module = _pixel_level_module(request, OneFormerModel, "oneformer")
    return _teacher(request, module, (module.decoder.config.mask_dim, *(module.decoder.config.conv_dim,) * 3))


@TEACHERS.register("mask2former")
def load_mask2former(request: Request) -> Teacher:
    """`mask2former:swin-base-ade-semantic` and so on, or `mask2former:<folder or hub id>`."""
    from transformers import Mask2FormerModel

    module = _pixel_level_module(request, Mask2FormerModel, "mask2former")
    return _teacher(request, module, (module.decoder.config.mask_feature_size, *(module.decoder.config.feature_size,) * 3))


def _pixel_level_module(request: Request, model: Any, kind: str) -> Any:
    source = request.weights or hub.published(request)
    return hub.pretrained(request, source, model, (kind,), LICENCE, part="pixel_level_module.").pixel_level_module


def _teacher(request: Request, module: Any, channels: tuple[int, ...]) -> Teacher:
    data = OWN_WEIGHTS if request.weights else DATA
    side = request.side(SIDE, STRIDES[-1])
    return PixelDecoderTeacher(TeacherSpec(request.name, side, "imagenet", STRIDES, channels, LICENCE, data), module)
