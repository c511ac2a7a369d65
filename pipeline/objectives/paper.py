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
    Losses,
    Needs,
    Objective,
    Targets,
    TargetSpec,
    agreement,
    frozen,
    head,
    head_name,
    segmentation_loss,
)
from polyp_difom.pipeline.spectra import energy, inverse, low_mask, spectrum
from polyp_difom.pipeline.students.protocol import Tap

PHASES = (25 / 75, 51 / 75)
SEGMENTATION, LATENT = 0.6, 0.1


@OBJECTIVES.register("paper")
class Paper(Objective):
    """Each latent has one 1x1 head per teacher, since stored channels are standardised rather than fused."""

    needs = Needs(spectra=True, latents=True)

    def __init__(self, taps: tuple[Tap, ...], targets: Mapping[Key, TargetSpec], weight: float = 1.0):
        super().__init__(taps, targets, weight)
        self.latents = [tap for tap in taps if tap.role == "latent"]
        self.pairs = [(key, spec) for key, spec in targets.items() if spec.stride == self.latents[0].stride]
        if not self.pairs:
            wanted = f"s{self.latents[0].stride}"
            raise UsageError(
                "the store has no maps at the bottleneck's stride", got=", ".join(sorted({scale for _, scale in targets})),
                wanted=wanted, remedy=f"extract a store with --scales {wanted}",
            )  # fmt: skip
        self.keys = [key for key, _ in self.pairs]
        self.heads = nn.ModuleDict(
            {head_name(tap, key): head(tap, spec.channels) for tap in self.latents for key, spec in self.pairs}
        )

    def freezes_encoder(self, progress: float) -> bool:
        """The encoder rests in the third phase."""
        return progress >= PHASES[1]

    def forward(self, logits: Tensor, masks: Tensor, taps: Mapping[str, Tensor], targets: Targets, progress: float) -> Losses:
        """See `Objective.forward`."""
        segmentation = segmentation_loss(logits, masks)
        parts, distances = {"segmentation": segmentation.detach()}, []
        for key, spec in self.pairs:
            cells = spec.cells
            whole = frozen(targets.spectra[key]) / spec.std
            low = low_mask(cells, cells, whole.device)
            for tap, band, target in zip(self.latents, ("low", "high"), (whole * low, whole * ~low), strict=True):
                name = head_name(tap, key)
                prediction = self.heads[name](taps[tap.name])
                distance = energy(spectrum(prediction) - target, cells).mean() / cells**2
                distances.append(distance)
                seen = agreement(prediction, inverse(target, cells, cells))
                parts |= {f"{name}/{band}/{what}": value for what, value in seen.items()}
        distillation = torch.stack(distances).sum() / len(self.pairs)
        parts["distillation"] = distillation.detach()
        if progress < PHASES[0]:
            return Losses(segmentation, parts)
        return Losses(SEGMENTATION * segmentation + self.weight * LATENT * distillation, parts)
