"""`relational`: which parts of a frame look alike, as in structured knowledge distillation's pair-wise term (arXiv 1903.04197).

Student and teacher are compared by their affinities, so channels may differ and no head stands between them.
Shapes: b batch, c channels, h w grid, n cells after pooling.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from polyp_difom.pipeline.distributed import average
from polyp_difom.pipeline.objectives.pairs import Paired, centred
from polyp_difom.pipeline.objectives.protocol import OBJECTIVES, Targets, over_teachers

SIDE = 11
"""Cells along a side at most; finer grids are pooled, so that an affinity matrix is at most 121 x 121."""


@OBJECTIVES.register("relational")
class Relational(Paired):
    """Squared distance of the two affinity matrices, as a share of the teacher's energy: 1 where nothing is known.

    The log's cosine, explained share and target variance are those of the affinities.
    """

    def distance(self, logits: Tensor, taps: Mapping[str, Tensor], targets: Targets) -> tuple[Tensor | None, dict[str, Tensor]]:
        """See `Objective.distance`."""
        parts, distances = dict[str, Tensor](), list[tuple[str, Tensor]]()
        for teacher, target, learners in self.present(taps, targets):
            theirs = affinity(target)
            energy = average(theirs.square().mean())
            for pair, student in learners:
                ours = affinity(student)
                distance = F.mse_loss(ours, theirs) / energy.clamp_min(1e-6)
                distances.append((teacher, distance))
                alike = F.cosine_similarity(ours.detach().flatten(1), theirs.flatten(1)).mean()
                seen = {"cosine": alike, "explained": 1 - distance.detach(), "target_variance": energy}
                parts |= {f"{pair.name}/{what}": value for what, value in seen.items()}
        return over_teachers(distances), parts


def affinity(maps: Tensor) -> Tensor:
    """Cosine of every two cells of pooled maps [b, c, h, w] as [b, n, n], 0 on the diagonal.

    Each channel's mean over the frame is taken off first: a student's rectified maps have no cells that are unlike otherwise.
    """
    pooled = F.avg_pool2d(maps, -(-max(maps.shape[-2:]) // SIDE), ceil_mode=True)
    cells = F.normalize(centred(pooled).flatten(2), dim=1, eps=1e-4)
    n = cells.shape[2]
    return (cells.transpose(1, 2) @ cells) * (1 - torch.eye(n, device=maps.device, dtype=maps.dtype))
