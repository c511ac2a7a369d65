"""What a teacher is: squared frames in, one dense map out, and a statement of where it comes from.

A new family is one new file in this folder: a function `load(variant, weights) -> Teacher` under
`@TEACHERS.register("family")`. Shapes: b batch, s frame side, c channels, h w grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyp_difom.pipeline.registry import Registry

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher's passport; the store keeps it and reports repeat it.

    Attributes:
        name: "family" or "family:variant", as typed.
        input_size: side in pixels that frames are resized to.
        preprocessing: "imagenet" (mean/std) or "minmax" (each frame to 0..1).
        stride: input pixels per map cell.
        channels: channels of the map.
        licence: of the weights.
        contamination: whether its training data may contain polyp sets.
    """

    name: str
    input_size: int
    preprocessing: str
    stride: int
    channels: int
    licence: str
    contamination: str


class Teacher(nn.Module):
    """A frozen encoder behind the frame contract: it sees the whole squared frame, resized, never cropped or padded."""

    def __init__(self, spec: TeacherSpec, encoder: nn.Module):
        super().__init__()
        self.spec = spec
        self.encoder = encoder.eval().requires_grad_(False)

    def embed(self, inputs: Tensor) -> Tensor:
        """Normalised inputs [b, 3, input_size, input_size] -> map [b, c, h, w]; families with another call override."""
        return self.encoder(inputs)

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Frames float [b, 3, s, s] in 0..1 -> map [b, c, h, w]."""
        side = self.spec.input_size
        inputs = frames
        if frames.shape[-1] != side:
            inputs = F.interpolate(frames, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        return self.embed(normalise(inputs, self.spec.preprocessing))


def normalise(frames: Tensor, preprocessing: str) -> Tensor:
    """Frames [b, 3, s, s] in 0..1 under a named preprocessing."""
    if preprocessing == "imagenet":
        mean, std = (torch.tensor(v, device=frames.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
        return (frames - mean) / std
    if preprocessing == "minmax":
        low, high = frames.amin((1, 2, 3), keepdim=True), frames.amax((1, 2, 3), keepdim=True)
        return (frames - low) / (high - low).clamp_min(1e-8)
    raise ValueError(f"no preprocessing called {preprocessing!r}")


def weights_digest(module: nn.Module) -> str:
    """sha256 hex over names, shapes, dtypes and bytes of all weights and buffers: of what runs, not of a file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


OWN_WEIGHTS = "unknown: weights given by the user"
"""What can be said of the training data behind weights that are not the family's published ones."""

Loader = Callable[[str | None, str | None], Teacher]
TEACHERS: Registry[Loader] = Registry("teacher", "polyp_difom.pipeline.teachers")
DEFAULTS: dict[str, str] = {}
"""Variant that a bare family name stands for; families with variants add theirs."""


def full_name(name: str) -> str:
    """The one name of a teacher: "sam" -> "sam:vit_b".

    Raises:
        UsageError: unknown family.
    """
    TEACHERS.get(name.partition(":")[0])
    return f"{name}:{DEFAULTS[name]}" if name in DEFAULTS else name


def load_teacher(name: str, weights: str | None = None) -> Teacher:
    """The teacher called "family" or "family:variant", on the CPU, in eval mode.

    Args:
        weights: path, URL with digest, hub id or folder; None takes the family's published weights.

    Raises:
        UsageError: unknown family or variant. MissingDependencyError: package or weights not reachable.
    """
    family, _, variant = full_name(name).partition(":")
    return TEACHERS.get(family)(variant or None, weights)
