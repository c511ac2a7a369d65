"""What an objective is: a distance to the teachers' fixed maps, and what it weighs beside the segmentation loss.

A new objective is one new file in this folder: a subclass of `Objective` under `@OBJECTIVES.register("name")`.
Shapes: b batch, s frame side, c channels, h w grid.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

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
    """One teacher's maps at one scale: `stride` frame pixels per cell, `std` of the stored channels on train frames.

    Attributes:
        kind: features, or "mask": one channel that is the lesion's share of each cell, 0..1.
    """

    channels: int
    cells: int
    stride: int
    std: float
    kind: Literal["features", "mask"] = "features"


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
        keys: the targets that `distance` reads; a subclass names them.
        alone: not to be combined with others or put under a schedule: it has phases of its own, or no distance.
        by_role: reads the taps of its stride, whatever their role, so that "name@decoder" can choose among them.
        may_collapse: its targets are trained too; a collapse of theirs is told, and does not stop the training.
    """

    needs = Needs()
    alone = False
    by_role = False
    may_collapse = False

    def __init__(self, taps: tuple[Tap, ...], targets: Mapping[Key, TargetSpec], weight: float = 1.0):
        super().__init__()
        self.weight = weight
        self.keys: list[Key] = []

    def freezes_encoder(self, progress: float) -> bool:
        """Whether the student's encoder rests at this share of the training, 0..1."""
        return False

    def shares(self, progress: float) -> tuple[float, float]:
        """What segmentation loss and distance weigh at this share of the training, 0..1."""
        return 1.0, self.weight

    def distance(self, logits: Tensor, taps: Mapping[str, Tensor], targets: Targets) -> tuple[Tensor | None, dict[str, Tensor]]:
        """(How far the student is from its teachers, None without any; detached scalars for the log).

        A mean over the frames of a batch: processes that share a batch average it. What is no such mean (a ratio, a
        variance) takes its sums over all processes (see distributed.py). A teacher that `targets` lacks is left out.

        Args:
            logits: float32 [b, 1, s, s].
            taps: the student's maps by tap name, float32.
            targets: the teachers' maps; they must not require a gradient.
        """
        return None, {}

    def forward(
        self, segmentation: Tensor, logits: Tensor, taps: Mapping[str, Tensor], targets: Targets, progress: float
    ) -> Losses:
        """Losses of a batch, from its segmentation loss and what `distance` takes."""
        distance, parts = self.distance(logits, taps, targets)
        parts = {"segmentation": segmentation.detach(), **parts}
        share, distilled = self.shares(progress)
        terms = [share * segmentation] if share else []
        if distance is not None:
            parts["distillation"] = distance.detach()
            terms += [distilled * distance] if distilled else []
        return Losses(torch.stack(terms).sum(), parts)


OBJECTIVES: Registry[type[Objective]] = Registry("objective", "polyp_difom.pipeline.objectives", also=("auto",))


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
    """Mean cosine similarity of the channel vectors of two maps [b, c, h, w].

    From three sums over the channels: `F.cosine_similarity` divides whole maps by their norms first, at twice the cost.
    """
    overlap, own, theirs = ((a * b).sum(1) for a, b in ((prediction, target), (prediction, prediction), (target, target)))
    return (overlap * (own * theirs).clamp_min(1e-16).rsqrt()).mean()


def head(tap: Tap, channels: int) -> nn.Conv2d:
    """A 1x1 convolution from a tap to a teacher's stored channels."""
    return nn.Conv2d(tap.channels, channels, 1)


def head_name(tap: Tap, key: Key) -> str:
    """Name of a head and prefix of its figures: "litemedsam/s16/bottleneck" (no dots or colons, which modules refuse)."""
    teacher, scale = key
    return f"{plain(teacher)}/{scale}/{tap.name}"


def plain(teacher: str) -> str:
    """A teacher's name in the names of heads and figures: "sam:vit_b" -> "sam-vit_b"."""
    return teacher.replace(":", "-").replace(".", "_")


def over_teachers(distances: Sequence[tuple[str, Tensor]]) -> Tensor | None:
    """Mean over the teachers of each one's mean distance, from (teacher, distance): one with more maps weighs no more.

    None where there are none.
    """
    each: dict[str, list[Tensor]] = defaultdict(list)
    for teacher, distance in distances:
        each[teacher].append(distance)
    return torch.stack([torch.stack(own).mean() for own in each.values()]).mean() if each else None


def spread(target: Tensor) -> Tensor:
    """Mean over the channels of the variance of maps [b, c, h, w] over all frames and cells, of the whole batch."""
    return moments(target)[1].mean()


def agreement(
    prediction: Tensor,
    target: Tensor,
    *,
    variance: Tensor | None = None,
    alike: Tensor | None = None,
    residual: Tensor | None = None,
) -> dict[str, Tensor]:
    """What a log must show of a pair of maps [b, c, h, w]: cosine, explained variance, and the target's own variance.

    The variance is that of the whole batch; the rest are means over frames, also where several processes share the batch.

    Args:
        variance, alike, residual: `spread` of the target, `cosine` and mean squared error of the pair, where they are known.
    """
    with torch.no_grad():
        variance = spread(target) if variance is None else variance
        alike = cosine(prediction, target) if alike is None else alike.detach()
        residual = F.mse_loss(prediction, target) if residual is None else residual.detach()
        explained = 1 - residual / variance.clamp_min(1e-12)
        return {"cosine": alike, "explained": explained, "target_variance": variance}
