"""DINOv2 (arXiv 2304.07193) through transformers: patch tokens of the last layer, from a local folder or a hub id."""

from __future__ import annotations

from safetensors import SafetensorError
from torch import Tensor

from polyp_difom.cache.errors import MissingDependencyError, UsageError
from polyp_difom.pipeline.teachers.protocol import DEFAULTS, OWN_WEIGHTS, TEACHERS, Teacher, TeacherSpec
from polyp_difom.pipeline.teachers.weights import first_line

DEFAULTS["dinov2"] = "base"
SIZES = ("small", "base", "large", "giant")
WANTED = "a local folder with config.json and model.safetensors, or a reachable hub id"


class Dinov2Teacher(Teacher):
    """Drops the class and register tokens and folds the patch tokens back onto their grid."""

    def embed(self, inputs: Tensor) -> Tensor:
        """Inputs [b, 3, s, s] -> [b, c, s / patch, s / patch]."""
        cells = inputs.shape[-1] // self.spec.stride
        tokens = self.encoder(pixel_values=inputs).last_hidden_state[:, -cells * cells :]
        return tokens.transpose(1, 2).unflatten(2, (cells, cells))


@TEACHERS.register("dinov2")
def load_dinov2(variant: str | None, weights: str | None) -> Teacher:
    """`dinov2:small|base|large|giant`; `weights` may be a folder made by save_pretrained, or another hub id."""
    if variant is None or variant not in SIZES:
        raise UsageError(f"unknown DINOv2 size {variant!r}", wanted=f"one of: {', '.join(f'dinov2:{s}' for s in SIZES)}")
    name, source = f"dinov2:{variant}", weights or f"facebook/dinov2-{variant}"
    try:
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()  # ours is the only one
        encoder, report = AutoModel.from_pretrained(source, trust_remote_code=False, output_loading_info=True)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise MissingDependencyError(
            f"the weights of teacher {name!r} cannot be loaded", where=source, got=first_line(error), wanted=WANTED,
            remedy=f"give --weights {name}=FOLDER",
        ) from error  # fmt: skip
    config = encoder.config
    if not str(config.model_type).startswith("dinov2"):
        raise UsageError(f"teacher {name!r} was given another model", where=source, got=config.model_type, wanted="dinov2")
    if missing := sorted(report["missing_keys"]):  # transformers fills them with random numbers
        raise MissingDependencyError(
            f"the weights of teacher {name!r} are incomplete", where=source, got=f"no {missing[0]} ({len(missing)} missing)",
            wanted=WANTED, remedy=f"give --weights {name}=FOLDER",
        )  # fmt: skip
    side = config.image_size - config.image_size % config.patch_size
    data = OWN_WEIGHTS if weights else "LVD-142M, curated web images: polyp sets not expected"
    spec = TeacherSpec(name, side, "imagenet", config.patch_size, config.hidden_size, "Apache-2.0", data)
    return Dinov2Teacher(spec, encoder.float())
