"""`multiscale`: fixed teacher maps at several depths of the student, and the two bands at its bottleneck.

`shuffled` is the same against the wrong frame's maps: the control that tells teaching from regularising.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.distributed import average
from polyp_difom.pipeline.objectives.protocol import (
    OBJECTIVES,
    Key,
    Losses,
    Needs,
    Objective,
    Targets,
    TargetSpec,
    agreement,
    cosine,
    frozen,
    head,
    head_name,
    segmentation_loss,
)
from polyp_difom.pipeline.spectra import split_bands
from polyp_difom.pipeline.students.protocol import Tap

BAND_SHARE = 0.5
"""Weight of the banded loss at the bottleneck against the mean of the per-tap losses."""


@OBJECTIVES.register("multiscale")
class MultiScale(Objective):
    """Every tap that has a teacher map of its own stride learns it: cosine + smooth L1 on standardised channels.

    At the bottleneck the low and high band are matched too, each as a share of its own energy. On from the first epoch.
    """

    needs = Needs(maps=True)

    def __init__(self, taps: tuple[Tap, ...], targets: Mapping[Key, TargetSpec], weight: float = 1.0):
        super().__init__(taps, targets, weight)
        self.pairs = [
            (tap, key, spec) for key, spec in targets.items() for tap in taps
            if tap.stride == spec.stride and tap.role != "latent"
        ]  # fmt: skip
        if not self.pairs:
            raise UsageError(
                "no teacher map has the stride of a student's tap",
                got=f"maps at strides {sorted({spec.stride for spec in targets.values()})}",
                wanted=f"one of the strides {sorted({tap.stride for tap in taps})}",
                remedy="extract a store with --scales s8,s16,s32",
            )
        self.keys = list(dict.fromkeys(key for _, key, _ in self.pairs))
        self.heads = nn.ModuleDict({head_name(tap, key): head(tap, spec.channels) for tap, key, spec in self.pairs})

    def forward(self, logits: Tensor, masks: Tensor, taps: Mapping[str, Tensor], targets: Targets, progress: float) -> Losses:
        """See `Objective.forward`."""
        segmentation = segmentation_loss(logits, masks)
        parts, distances, bands = {"segmentation": segmentation.detach()}, [], []
        for tap, key, spec in self.pairs:
            name = head_name(tap, key)
            prediction = self.heads[name](taps[tap.name])
            target = frozen(targets.maps[key].float() / spec.std)
            distances.append(1 - cosine(prediction, target) + F.smooth_l1_loss(prediction, target))
            parts |= {f"{name}/{what}": value for what, value in agreement(prediction, target).items()}
            if tap.role == "bottleneck":
                for band, p, t in zip(("low", "high"), split_bands(prediction), split_bands(target), strict=True):
                    bands.append((p - t).square().mean() / average(t.square().mean()).clamp_min(1e-6))
                    parts |= {f"{name}/{band}/{what}": value for what, value in agreement(p, t).items()}
        distillation = torch.stack(distances).mean()
        if bands:
            distillation = distillation + BAND_SHARE * torch.stack(bands).mean()
        parts["distillation"] = distillation.detach()
        return Losses(segmentation + self.weight * distillation, parts)


@OBJECTIVES.register("shuffled")
class Shuffled(MultiScale):
    """`multiscale` towards another train frame's maps, the same wrong one every epoch."""

    needs = Needs(maps=True, shuffled=True)
