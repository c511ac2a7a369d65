"""DINOv2 (arXiv 2304.07193), with or without registers (arXiv 2309.16588), through transformers: patch tokens."""

from __future__ import annotations

from typing import Any

from polyp_difom.pipeline.teachers import hub
from polyp_difom.pipeline.teachers.protocol import DEFAULTS, OWN_WEIGHTS, TEACHERS, Request, Teacher
from polyp_difom.pipeline.teachers.tokens import patch_teacher

DEFAULTS["dinov2"] = "base"
for _size in ("small", "base", "large", "giant"):
    hub.PUBLISHED[f"dinov2:{_size}"] = f"facebook/dinov2-{_size}"
    hub.PUBLISHED[f"dinov2:{_size}-registers"] = f"facebook/dinov2-with-registers-{_size}"
LICENCE = "Apache-2.0"


@TEACHERS.register("dinov2")
def load_dinov2(request: Request) -> Teacher:
    """`dinov2:small|base|large|giant`, each also as `-registers`; `weights` may be a folder or another hub id."""
    from transformers import AutoModel

    encoder: Any = hub.pretrained(request, request.weights or hub.published(request), AutoModel, ("dinov2",), LICENCE)
    return patch_teacher(
        request, encoder, encoder.layernorm, preprocessing="imagenet", published_side=encoder.config.image_size,
        licence=LICENCE, data=OWN_WEIGHTS if request.weights else "LVD-142M, curated web images: polyp sets not expected",
    )  # fmt: skip
