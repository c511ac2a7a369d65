"""`cwd`: channel-wise knowledge distillation (arXiv 2011.13256): where in the frame each of the teacher's channels is high."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from polyp_difom.pipeline.objectives.pairs import Paired, centred
from polyp_difom.pipeline.objectives.protocol import OBJECTIVES, Key, Targets, TargetSpec, agreement, over_teachers, spread
from polyp_difom.pipeline.students.protocol import Tap

TEMPERATURE = 4.0
"""The paper's; channels have unit variance here, so it leaves them nearly linear, and costs about half a variance at first."""


@OBJECTIVES.register("cwd")
class ChannelWise(Paired):
    """On the taps and maps of `multiscale`: the softmax over the cells of each channel, KL of the student from the teacher.

    A channel's level in a frame does not count, so heads have no bias and the logged agreement is that of centred maps.
    """

    def __init__(self, taps: tuple[Tap, ...], targets: Mapping[Key, TargetSpec], weight: float = 1.0):
        super().__init__(taps, targets, weight)
        self.heads = self.heads_of(bias=False)

    def distance(self, logits: Tensor, taps: Mapping[str, Tensor], targets: Targets) -> tuple[Tensor | None, dict[str, Tensor]]:
        """See `Objective.distance`."""
        parts, distances = dict[str, Tensor](), list[tuple[str, Tensor]]()
        for teacher, target, learners in self.present(taps, targets):
            middle = centred(target)
            variance = spread(middle)
            for pair, student in learners:
                prediction = self.heads[pair.name](student)
                distances.append((teacher, divergence(prediction, target)))
                seen = agreement(centred(prediction.detach()), middle, variance=variance)
                parts |= {f"{pair.name}/{what}": value for what, value in seen.items()}
        return over_teachers(distances), parts


def divergence(prediction: Tensor, target: Tensor) -> Tensor:
    """T^2 KL(softmax(target / T) | softmax(prediction / T)) over the cells, mean over frames and channels of [b, c, h, w]."""
    student, teacher = ((maps.flatten(2) / TEMPERATURE).log_softmax(2) for maps in (prediction, target))
    return TEMPERATURE**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(2).mean()
