"""`notebook`: the authors' published code, kept to compare with. Its target collapses; use it for nothing else.

The teachers' maps are fused by a 1x1 convolution and a ReLU that are trained along with the student, by the very loss that
they are the target of. Both sides meet at a constant, the distance reads zero and nothing is taught: their log falls from
0.1750 to 0.0024 and 0.0000 in the first two epochs that distil. The log here shows the target's variance going the same way.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyp_difom.pipeline.objectives.paper import Phased
from polyp_difom.pipeline.objectives.protocol import OBJECTIVES, Key, Needs, Targets, TargetSpec, agreement
from polyp_difom.pipeline.spectra import split_bands
from polyp_difom.pipeline.students.protocol import Tap

CHANNELS = 256
"""Of L1, L2 and the fused maps."""


@OBJECTIVES.register("notebook")
class Notebook(Phased):
    """L1 and L2 towards the low and high band of the fused maps, in the phases of `paper`.

    Faithful: one trainable fusion of all teachers; L1 a 1x1 convolution and ReLU of the bottleneck, L2 one of L1, both read
    by the loss alone, where the paper's text has them feed the decoder; mean squared error; phases; 0.6, 0.1, 0.1.
    Not: teachers see the same frame and are standardised; the low band is symmetric (their box is not, and loses energy) and is
    cut on the bottleneck's grid; student and optimiser are those of the run.
    """

    needs = Needs(maps=True)
    role = "bottleneck"
    may_collapse = True

    def __init__(self, taps: tuple[Tap, ...], targets: Mapping[Key, TargetSpec], weight: float = 1.0):
        super().__init__(taps, targets, weight)
        self.fusion = nn.Conv2d(sum(spec.channels for _, spec in self.pairs), CHANNELS, 1)
        self.first, self.second = nn.Conv2d(self.taps[0].channels, CHANNELS, 1), nn.Conv2d(CHANNELS, CHANNELS, 1)

    def distance(self, logits: Tensor, taps: Mapping[str, Tensor], targets: Targets) -> tuple[Tensor | None, dict[str, Tensor]]:
        """See `Objective.distance`; without one of its teachers a fusion has none."""
        if not all(key in targets.maps for key in self.keys):
            return None, {}
        fused = self.fusion(torch.cat([targets.maps[key].float() / spec.std for key, spec in self.pairs], 1)).relu()
        parts, distances, tap = dict[str, Tensor](), [], self.taps[0]
        first = self.first(taps[tap.name]).relu()
        for band, prediction, target in zip(("low", "high"), (first, self.second(first)), split_bands(fused), strict=True):
            distances.append(F.mse_loss(prediction, target))
            seen = agreement(prediction, target.detach())
            parts |= {f"fused/s{tap.stride}/{tap.name}/{band}/{what}": value for what, value in seen.items()}
        return torch.stack(distances).sum(), parts
