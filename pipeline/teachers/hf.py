"""Any vision backbone of the transformers library that gives dense features: `hf:<folder or hub id>`."""

from __future__ import annotations

from typing import Any

from polyp_difom.cache.errors import MissingDependencyError, UsageError, first_line
from polyp_difom.pipeline.teachers import hub
from polyp_difom.pipeline.teachers.protocol import TEACHERS, Request, Teacher, preprocessing_name
from polyp_difom.pipeline.teachers.tokens import patch_of, probed

LICENCE = "as its model card states"


@TEACHERS.register("hf")
def load_hf(request: Request) -> Teacher:
    """`hf:<folder or hub id>`: strides and channels are read off one blank frame; code in a model's folder never runs."""
    source = request.weights
    if source is None:
        raise UsageError("hf needs a model", got=request.name, wanted="hf:./FOLDER, hf:OWNER/NAME, or --weights hf:NAME=FOLDER")
    from transformers import AutoModel

    encoder: Any = hub.pretrained(request, source, AutoModel, ("",), LICENCE)
    encoder = getattr(encoder, "vision_model", encoder)  # of an image-text model
    recipe = _recipe(request, source)
    published = _side(getattr(encoder.config, "image_size", None), recipe)
    if published is None and request.input_size is None:
        raise UsageError(
            "the model does not say its input size", where=source, remedy=f"give --input-size {request.name}=PIXELS"
        )
    patch = patch_of(encoder.config)
    side = request.side(published or 0, patch) if patch else request.pyramid_side(published or 0, 1)
    mean, std = recipe.get("image_mean"), recipe.get("image_std")
    preprocessing = preprocessing_name(mean, std, source) if mean and std and recipe.get("do_normalize", True) else "unit"
    return probed(request, encoder, side, preprocessing, LICENCE, "unknown: see its model card")


def _recipe(request: Request, source: str) -> dict[str, Any]:
    """The model's preprocessor_config.json: without it nobody knows which mean and deviation it was trained with."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        recipe, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except (OSError, ValueError) as error:
        raise MissingDependencyError(
            f"the preprocessing of teacher {request.name!r} is unknown", where=source, got=first_line(error),
            wanted="preprocessor_config.json beside the weights",
            remedy="put the publisher's preprocessor_config.json into the folder",
        ) from error  # fmt: skip
    return recipe


def _side(image_size: Any, recipe: dict[str, Any]) -> int | None:
    """Published input side: the configuration's, else the preprocessor's crop or size."""
    for found in (image_size, recipe.get("crop_size"), recipe.get("size")):
        if isinstance(found, dict):
            found = found.get("height") or found.get("shortest_edge")
        if isinstance(found, (list, tuple)):
            found = found[0]
        if isinstance(found, int):
            return found
    return None
