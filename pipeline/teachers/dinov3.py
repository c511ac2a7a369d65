"""DINOv3 (arXiv 2508.10104) through transformers: patch tokens of its ViTs, stage maps of its ConvNeXts.

Its weights are gated: the DINOv3 License must be accepted on the hub first.
"""

from __future__ import annotations

from typing import Any

from polyp_difom.pipeline.teachers import hub
from polyp_difom.pipeline.teachers.protocol import DEFAULTS, OWN_WEIGHTS, TEACHERS, Request, Teacher
from polyp_difom.pipeline.teachers.tokens import patch_teacher, probed

DEFAULTS["dinov3"] = "vits16"
for _name in ("vits16", "vits16plus", "vitb16", "vitl16", "vith16plus", "vit7b16"):
    hub.PUBLISHED[f"dinov3:{_name}"] = f"facebook/dinov3-{_name}-pretrain-lvd1689m"
for _name in ("tiny", "small", "base", "large"):
    hub.PUBLISHED[f"dinov3:convnext-{_name}"] = f"facebook/dinov3-convnext-{_name}-pretrain-lvd1689m"
LICENCE = "DINOv3 License"


@TEACHERS.register("dinov3")
def load_dinov3(request: Request) -> Teacher:
    """`dinov3:vits16` and so on; `dinov3:<folder or hub id>` for any other DINOv3."""
    from transformers import AutoModel

    encoder: Any = hub.pretrained(request, request.weights or hub.published(request), AutoModel, ("dinov3",), LICENCE)
    data = OWN_WEIGHTS if request.weights else "LVD-1689M, curated web images: polyp sets not expected"
    side = encoder.config.image_size
    if encoder.config.model_type == "dinov3_vit":
        return patch_teacher(
            request, encoder, encoder.norm, preprocessing="imagenet", published_side=side, licence=LICENCE, data=data
        )
    return probed(request, encoder, request.pyramid_side(side, 32), "imagenet", LICENCE, data)
