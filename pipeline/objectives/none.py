"""`none`: segmentation alone, the control that every gain is measured against."""

from __future__ import annotations

from polyp_difom.pipeline.objectives.protocol import OBJECTIVES, Objective


@OBJECTIVES.register("none")
class SegmentationOnly(Objective):
    """The same recipe without teachers."""

    alone = True
