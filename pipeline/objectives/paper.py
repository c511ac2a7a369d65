"""`paper`: the published equations of Polyp-DiFoM (arXiv 2512.09307), on fixed targets and the stored spectra.

||L1 - low||^2 and ||L2 - high||^2 at the bottleneck in three phases: segmentation alone; 0.6 segmentation + 0.1 L1 +
0.1 L2; the same with the encoder frozen (25, 26 and 24 of 75 epochs). The distances are taken in the frequency domain,
where a band is a mask and Parseval's column weights make them equal to those of the maps.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.objectives.protocol import (
    OBJECTIVES,
    Key,
    Needs,
    Objective,
    Targets,
    TargetSpec,
    agreement,
    frozen,
    head,
    head_name,
)
from polyp_difom.pipeline.spectra import energy, inverse, low_mask, spectrum
from polyp_difom.pipeline.students.protocol import Tap

PHASES = (25 / 75, 51 / 75)
SEGMENTATION, LATENT = 0.6, 0.1


class Phased(Objective):
    """Base of what has the published phases and weights, on the teachers' maps of the stride of the taps that it reads.

    Attributes:
        role: of those taps.

    Raises:
        UsageError: there are no such maps.
    """

    alone = True
    role = "latent"

    def __init__(self, taps: tuple[Tap, ...], targets: Mapping[Key, TargetSpec], weight: float = 1.0):
        super().__init__(taps, targets, weight)
        self.taps = [tap for tap in taps if tap.role == self.role]
        self.pairs = [
            (key, spec) for key, spec in targets.items() if spec.kind == "features" and spec.stride == self.taps[0].stride
        ]
        if not self.pairs:
            wanted = f"s{self.taps[0].stride}"
            raise UsageError(
                "the store has no maps at the bottleneck's stride", got=", ".join(sorted({scale for _, scale in targets})),
                wanted=wanted, remedy=f"extract a store with --scales {wanted}",
            )  # fmt: skip
        self.keys = [key for key, _ in self.pairs]

    def freezes_encoder(self, progress: float) -> bool:
        """The encoder rests in the third phase."""
        return progress >= PHASES[1]

    def shares(self, progress: float) -> tuple[float, float]:
        """Segmentation alone at first, then 0.6 of it and 0.1 of each latent's distance."""
        return (1.0, 0.0) if progress < PHASES[0] else (SEGMENTATION, self.weight * LATENT)


@OBJECTIVES.register("paper")
class Paper(Phased):
    """Each latent has one 1x1 head per teacher, since stored channels are standardised rather than fused."""

    needs = Needs(spectra=True, latents=True)

    def __init__(self, taps: tuple[Tap, ...], targets: Mapping[Key, TargetSpec], weight: float = 1.0):
        super().__init__(taps, targets, weight)
        self.heads = nn.ModuleDict(
            {head_name(tap, key): head(tap, spec.channels) for tap in self.taps for key, spec in self.pairs}
        )

    def distance(self, logits: Tensor, taps: Mapping[str, Tensor], targets: Targets) -> tuple[Tensor | None, dict[str, Tensor]]:
        """See `Objective.distance`."""
        parts, distances = dict[str, Tensor](), []
        present = [(key, spec) for key, spec in self.pairs if key in targets.spectra]
        for key, spec in present:
            cells = spec.cells
            whole = frozen(targets.spectra[key]) / spec.std
            low = low_mask(cells, cells, whole.device)
            for tap, band, target in zip(self.taps, ("low", "high"), (whole * low, whole * ~low), strict=True):
                name = head_name(tap, key)
                prediction = self.heads[name](taps[tap.name])
                distance = energy(spectrum(prediction) - target, cells).mean() / cells**2
                distances.append(distance)
                seen = agreement(prediction, inverse(target, cells, cells))
                parts |= {f"{name}/{band}/{what}": value for what, value in seen.items()}
        return (torch.stack(distances).sum() / len(present) if present else None), parts
