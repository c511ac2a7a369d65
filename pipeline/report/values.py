"""What a report page says about one run or one other evaluated target: plain values, no drawing and no reading."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyp_difom.pipeline.evaluation.agreement import Agreement
from polyp_difom.pipeline.evaluation.metrics import Summary
from polyp_difom.pipeline.evaluation.paired import PairedDifference
from polyp_difom.pipeline.evaluation.published import PublishedFigure

CONTROL = "none"
"""The objective of a control."""


@dataclass(frozen=True, eq=False)
class GalleryItem:
    """One picture, uint8 [h, w, 3], with its caption; items are shown in the order given, so put failures first."""

    caption: str
    image: NDArray[np.uint8]


@dataclass(frozen=True)
class Timing:
    """Median milliseconds of one frame, and the device that they were measured on, in words."""

    milliseconds: float
    device: str


@dataclass(frozen=True, eq=False)
class RunReport:
    """What the page says about one run; None and empty where the target does not tell.

    Attributes:
        kind: "run", "checkpoint", "onnx", "masks", ...
        recipe: all settings that shaped the training but the seed; runs that share it differ by chance alone.
        objective: `none` makes the run a control.
        parameters: of the student as exported.
        macs: multiply-accumulates of one frame at the network's own frame size.
        summaries: one a test set; `dataset` is "<data set> (<split>)".
        without_leaks: figures without leaked frames, by test set, where leaks were looked for and found.
        dice: every row's Dice, by test set.
        rivals: published figures, by test set, where just the published test frames were scored.
        differences: Dice of this run minus its control's, by test set; empty for a control.
        over_shuffled: Dice of this run minus that of the same one taught with the wrong frames' maps, by test set.
        curve: one mapping per epoch, as in metrics.jsonl; empty when there is no history.
        agreement: with the teachers, as `agree` found for the weights that were evaluated.
        control: name of the run that it is set against.
        shuffled: objective of the run that learned from the wrong frames.
        facts: where its figures come from.
        cautions: what its teachers may have seen, in words.
    """

    name: str
    kind: str
    recipe: dict[str, Any]
    student: str | None
    objective: str | None
    teachers: tuple[str, ...]
    seed: int | None
    epochs: int | None
    parameters: int | None
    summaries: list[Summary]
    macs: int | None = None
    timing: Timing | None = None
    without_leaks: dict[str, Summary] = field(default_factory=dict)
    dice: dict[str, list[float]] = field(default_factory=dict)
    rivals: dict[str, list[PublishedFigure]] = field(default_factory=dict)
    differences: dict[str, PairedDifference] = field(default_factory=dict)
    over_shuffled: dict[str, PairedDifference] = field(default_factory=dict)
    gallery: list[GalleryItem] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)
    agreement: Agreement | None = None
    control: str | None = None
    shuffled: str | None = None
    facts: dict[str, str] = field(default_factory=dict)
    cautions: tuple[str, ...] = ()

    @property
    def by_set(self) -> dict[str, Summary]:
        """Summaries by test set."""
        return {summary.dataset: summary for summary in self.summaries}
