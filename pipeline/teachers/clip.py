"""Vision towers of CLIP (arXiv 2103.00020) and SigLIP (arXiv 2303.15343) through transformers: patch tokens."""

from __future__ import annotations

from typing import Any

from torch import nn

from polyp_difom.pipeline.teachers import hub
from polyp_difom.pipeline.teachers.protocol import DEFAULTS, OWN_WEIGHTS, TEACHERS, Request, Teacher
from polyp_difom.pipeline.teachers.tokens import patch_teacher

DEFAULTS["clip"], DEFAULTS["siglip"] = "vit-base-patch16", "base-patch16-224"
for _name in ("vit-base-patch32", "vit-base-patch16", "vit-large-patch14", "vit-large-patch14-336"):
    hub.PUBLISHED[f"clip:{_name}"] = f"openai/clip-{_name}"
for _name in ("base-patch16-224", "base-patch16-384", "base-patch16-512", "large-patch16-384", "so400m-patch14-384"):
    hub.PUBLISHED[f"siglip:{_name}"] = f"google/siglip-{_name}"


@TEACHERS.register("clip")
def load_clip(request: Request) -> Teacher:
    """`clip:vit-base-patch16` and so on; the text tower is left out."""
    from transformers import CLIPVisionModel

    source = request.weights or hub.published(request)
    encoder: Any = hub.pretrained(request, source, CLIPVisionModel, ("clip",), "MIT")
    return patch_teacher(
        request, encoder, nn.Identity(), preprocessing="clip", published_side=encoder.config.image_size, licence="MIT",
        data=OWN_WEIGHTS if request.weights else "400 M image-text pairs from the web: polyp sets not expected",
    )  # fmt: skip


@TEACHERS.register("siglip")
def load_siglip(request: Request) -> Teacher:
    """`siglip:base-patch16-224` and so on; SigLIP 2 of fixed resolution loads as `siglip:google/siglip2-...`."""
    from transformers import SiglipVisionModel

    source = request.weights or hub.published(request)
    encoder: Any = hub.pretrained(request, source, SiglipVisionModel, ("siglip",), "Apache-2.0")
    tower = getattr(encoder, "vision_model", encoder)
    return patch_teacher(
        request, encoder, tower.post_layernorm, preprocessing="half", published_side=encoder.config.image_size,
        licence="Apache-2.0", data=OWN_WEIGHTS if request.weights else "WebLI, images from the web: polyp sets not expected",
    )  # fmt: skip
