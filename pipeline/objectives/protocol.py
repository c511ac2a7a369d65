"""What an objective is: a segmentation loss plus, for some, a distance to the teachers' fixed maps.

A new objective is one new file in this folder: a subclass of `Objective` under `@OBJECTIVES.register("name")`.
Shapes: b batch, s frame side, c channels, h w grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyp_difom.pipeline.distributed import moments
from polyp_difom.pipeline.registry import Registry
from polyp_difom.pipeline.students.protocol import Tap

Key = tuple[str, str]
"""(teacher, scale)."""


@dataclass(frozen=True)
class TargetSpec:
    """One teacher's maps at one scale: `stride` frame pixels per cell, `std` of the stored channels on train frames."""

    channels: int
    cells: int
    stride: int
    std: float


@dataclass(frozen=True)
class Targets:
    """Teacher maps of a batch, float [b, c, h, w], and their complex half spectra where an objective reads those."""

    maps: Mapping[Key, Tensor] = field(default_factory=dict)
    spectra: Mapping[Key, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Losses:
    """The scalar to descend, and what it is made of; `parts` are detached scalars for the log."""

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class Needs:
    """What an objective reads: which targets, whether from the wrong frame, whether the student must have latents."""

    maps: bool = False
    spectra: bool = False
    shuffled: bool = False
    latents: bool = False


class Objective(nn.Module):
    """Base of all objectives; holds the student-side heads, which are trained along and thrown away afterwards.

    Args:
        taps: of the student.
        targets: what the store offers, by (teacher, scale); empty for objectives that need none.
        weight: of the distillation terms against the segmentation loss.

    Attributes:
        keys: the targets that `forward` reads; a subclass names them.
    """

    needs = Needs()

    def __init__(self, taps: tuple[Tap, ...], targets: Mapping[Key, TargetSpec], weight: float = 1.0):
        super().__init__()
        self.weight = weight
        self.keys: list[Key] = []

    def freezes_encoder(self, progress: float) -> bool:
        """Whether the student's encoder rests at this share of the training, 0..1."""
        return False

    def forward(self, logits: Tensor, masks: Tensor, taps: Mapping[str, Tensor], targets: Targets, progress: float) -> Losses:
        """Losses of a batch, as means over its frames: processes that share a batch average them.

        What is no such mean (a ratio, a variance) takes its sums over all processes (see distributed.py).

        Args:
            logits: float32 [b, 1, s, s].
            masks: float [b, 1, s, s] of 0 and 1.
            taps: the student's maps by tap name, float32.
            targets: the teachers' maps; they must not require a gradient.
            progress: share of the training done, 0..1.
        """
        raise NotImplementedError


OBJECTIVES: Registry[type[Objective]] = Registry("objective", "polyp_difom.pipeline.objectives")


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Soft Dice (one minus, smoothed by one pixel, per image) plus binary cross-entropy, both means over the batch."""
    probability = logits.sigmoid().flatten(1)
    truth = masks.flatten(1)
    overlap = 2 * (probability * truth).sum(1) + 1
    dice = 1 - overlap / (probability.sum(1) + truth.sum(1) + 1)
    return dice.mean() + F.binary_cross_entropy_with_logits(logits, masks)


def frozen(target: Tensor) -> Tensor:
    """The target itself, after a check that no gradient can move it.

    A target that depends on a trained parameter invites collapse: both sides meet at a constant (the published code's
    trainable fusion of teacher maps goes to zero variance within two epochs).

    Raises:
        RuntimeError: the target requires a gradient.
    """
    if target.requires_grad:
        raise RuntimeError("a teacher's target requires a gradient; targets must be fixed")
    return target


def cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean cosine similarity of the channel vectors of two maps [b, c, h, w]."""
    return F.cosine_similarity(prediction, target, dim=1).mean()


def head(tap: Tap, channels: int) -> nn.Conv2d:
    """A 1x1 convolution from a tap to a teacher's stored channels."""
    return nn.Conv2d(tap.channels, channels, 1)


def head_name(tap: Tap, key: Key) -> str:
    """Name of a head and prefix of its figures: "litemedsam/s16/bottleneck" (no dots or colons, which modules refuse)."""
    teacher, scale = key
    return f"{teacher.replace(':', '-').replace('.', '_')}/{scale}/{tap.name}"


def agreement(prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What a log must show of a pair of maps [b, c, h, w]: cosine, explained variance, and the target's own variance.

    The variance is that of the whole batch; the rest are means over frames, also where several processes share the batch.
    """
    with torch.no_grad():
        variance = moments(target)[1].mean()
        residual = (target - prediction).square().mean()
        return {
            "cosine": cosine(prediction, target),
            "explained": 1 - residual / variance.clamp_min(1e-12),
            "target_variance": variance,
        }
