"""`none`: segmentation alone, the control that every gain is measured against."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from polyp_difom.pipeline.objectives.protocol import OBJECTIVES, Losses, Objective, Targets, segmentation_loss


@OBJECTIVES.register("none")
class SegmentationOnly(Objective):
    """The same recipe without teachers."""

    def forward(self, logits: Tensor, masks: Tensor, taps: Mapping[str, Tensor], targets: Targets, progress: float) -> Losses:
        """See `Objective.forward`."""
        loss = segmentation_loss(logits, masks)
        return Losses(loss, {"segmentation": loss.detach()})
