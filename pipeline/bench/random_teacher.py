"""Teachers with random weights, for timing where the real ones cannot be reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.teachers import sam
from polyp_difom.pipeline.teachers.protocol import full_name

DINOV2: dict[str, dict[str, Any]] = {
    "dinov2:small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "dinov2:base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "dinov2:large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
}
SAM = {"medsam": "vit_b", **{f"sam:{size}": size for size in sam.PUBLISHED}}


def random_weights(name: str, folder: Path) -> str:
    """A checkpoint of the teacher's shape in `folder`, as its loader takes it.

    Raises:
        UsageError: the shape of this teacher is known only from its real weights.
    """
    named = full_name(name)
    torch.manual_seed(0)
    if named in SAM:
        from segment_anything import sam_model_registry

        path = folder / "random.pth"
        torch.save(sam_model_registry[SAM[named]]().state_dict(), path)
        return str(path)
    if named in DINOV2:
        from transformers import Dinov2Config, Dinov2Model

        Dinov2Model(Dinov2Config(image_size=518, patch_size=14, **DINOV2[named])).save_pretrained(folder / "random")
        return str(folder / "random")
    raise UsageError(
        f"no random weights for teacher {name!r}", where="--random-weights", wanted=f"one of: {', '.join([*SAM, *DINOV2])}"
    )
