"""`logit`: the student's lesion probability towards that of teachers that give masks.

Shapes: b batch, s frame side, h w grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.distributed import moments
from polyp_difom.pipeline.objectives.protocol import (
    OBJECTIVES,
    Key,
    Needs,
    Objective,
    Targets,
    TargetSpec,
    frozen,
    over_teachers,
    plain,
)
from polyp_difom.pipeline.students.protocol import Tap


@OBJECTIVES.register("logit")
class Logit(Objective):
    """Cross-entropy and soft Dice of each cell's mean probability, at every mask teacher's finest scale.

    Coarser scales are means of the finest one and say nothing more.

    Raises:
        UsageError: no teacher gives masks.
    """

    needs = Needs(maps=True)

    def __init__(self, taps: tuple[Tap, ...], targets: Mapping[Key, TargetSpec], weight: float = 1.0):
        super().__init__(taps, targets, weight)
        masks = sorted((spec.stride, key) for key, spec in targets.items() if spec.kind == "mask")
        if not masks:
            raise UsageError(
                "no teacher gives masks", got=", ".join(dict.fromkeys(teacher for teacher, _ in targets)),
                wanted="a teacher such as run:FOLDER@mask or sam:vit_b@mask",
                remedy="polyp-difom extract --teachers run:FOLDER@mask ..., FOLDER being a finished run",
            )  # fmt: skip
        finest: dict[str, tuple[Key, int]] = {}
        for stride, key in masks:
            finest.setdefault(key[0], (key, stride))
        self.strides = dict(finest.values())
        self.keys = list(self.strides)

    def distance(self, logits: Tensor, taps: Mapping[str, Tensor], targets: Targets) -> tuple[Tensor | None, dict[str, Tensor]]:
        """See `Objective.distance`."""
        parts, distances = dict[str, Tensor](), list[tuple[str, Tensor]]()
        for key in self.keys:
            if key not in targets.maps:
                continue
            target = frozen(targets.maps[key].float()).clamp(0, 1)  # int8 maps may lie a step outside
            entropy, dice, probability = soft_losses(logits, target, self.strides[key])
            distances.append((key[0], entropy + dice))
            variance = moments(target)[1].mean()
            unexplained = (probability.detach() - target).square().mean() / variance.clamp_min(1e-12)
            seen = {"dice": 1 - dice.detach(), "explained": 1 - unexplained, "target_variance": variance}
            teacher, scale = key
            parts |= {f"{plain(teacher)}/{scale}/logits/{what}": value for what, value in seen.items()}
        return over_teachers(distances), parts


def soft_losses(logits: Tensor, target: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """(Cross-entropy, one minus soft Dice, probability [b, 1, h, w]) of logits [b, 1, s, s] and shares of lesion [b, 1, h, w].

    The Dice has squares below the line (V-Net, arXiv 1606.04797) and is smoothed by a cell: only so is it least where the
    probability equals a target between 0 and 1. The cross-entropy there is the target's own entropy.
    """
    lesion, other = log_share(logits, stride), log_share(-logits, stride)
    entropy = -(target * lesion + (1 - target) * other).mean()
    probability = lesion.exp()
    overlap = 2 * (probability * target).sum((1, 2, 3)) + 1
    dice = overlap / (probability.square() + target.square()).sum((1, 2, 3)).add(1)
    return entropy, 1 - dice.mean(), probability


def log_share(logits: Tensor, stride: int) -> Tensor:
    """Logarithm of the mean probability over each cell of stride x stride pixels, [b, 1, s, s] -> [b, 1, h, w].

    Never through the probability itself: where all pixels are sure, its gradient is lost to rounding.
    """
    pixels = F.logsigmoid(F.pixel_unshuffle(logits, stride))
    return pixels.logsumexp(1, keepdim=True) - 2 * math.log(stride)
