"""Does the exported file say what the network in torch says? Measured before the file is kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polyp_difom.cache.errors import RunError
from polyp_difom.pipeline.export.frames import Frames
from polyp_difom.pipeline.models.protocol import Model, resized_back, squared
from polyp_difom.pipeline.progress import Progress

THRESHOLD = 0.5
BOUNDS = {"float32": 1e-3, "float16": 5e-2, "int8": 1.0}
"""Largest difference of probabilities that is kept, by precision. float16 holds 3 digits, and a probability moves most where
the network is in doubt; int8 is judged by its Dice, which is for the user to weigh."""


@dataclass(frozen=True)
class Parity:
    """Exported file against torch in float32.

    Attributes:
        frames: what was compared on.
        max_difference: largest absolute difference of probabilities over all pixels.
        changed: share of pixels that change sides of the threshold 0.5.
        dice_torch, dice_export: mean per-image Dice at 0.5 of both.
        bound: on `max_difference`.
    """

    frames: str
    max_difference: float
    changed: float
    dice_torch: float
    dice_export: float
    bound: float

    @property
    def cost(self) -> float:
        """Points of Dice that the export loses; negative where it gains."""
        return 100 * (self.dice_torch - self.dice_export)

    def words(self) -> str:
        """One or two sentences."""
        said = f"{self.frames}: probabilities differ by at most {self.max_difference:.1e}, {self.changed:.4%} of pixels change"
        dice = f"{said}; Dice {self.dice_torch:.4f} in torch, {self.dice_export:.4f} exported"
        return dice if abs(self.cost) < 0.005 else f"{dice}: a cost of {self.cost:.2f} points"

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {**asdict(self), "dice_cost_points": self.cost}


def compare(
    original: Model, exported: Model, frames: Frames, precision: str, progress: Progress, *, embedded: bool = False
) -> Parity:
    """Run both on the same pictures, two at a time.

    Args:
        embedded: the export resizes pictures itself, horizontally first whatever Pillow does; so then does the original.
    """
    largest, changed, pixels = 0.0, 0, 0
    dice: list[tuple[float, float]] = []
    with progress.task("comparing", len(frames.images)) as advance:
        for start in range(0, len(frames.images), 2):
            images, masks = frames.images[start : start + 2], frames.masks[start : start + 2]
            wanted_maps = [_stepwise(original, image) for image in images] if embedded else original.probabilities(images)
            pairs = zip(wanted_maps, exported.probabilities(images), masks, strict=True)
            for wanted, got, mask in pairs:
                largest = float(np.maximum(largest, np.abs(wanted - got).max()))  # NaN stays
                both = wanted >= THRESHOLD, got >= THRESHOLD
                changed += int((both[0] != both[1]).sum())
                pixels += mask.size
                dice.append((_dice(both[0], mask), _dice(both[1], mask)))
            advance(len(images))
    means = np.mean(dice, axis=0)
    return Parity(frames.words, largest, changed / pixels, float(means[0]), float(means[1]), BOUNDS[precision])


def require(parity: Parity, path: Path, precision: str) -> None:
    """Raises RunError where the file says something else than the network (or nothing finite at all)."""
    if not parity.max_difference <= parity.bound:
        raise RunError(
            "the exported file does not say what the network says; it was not kept", where=path, got=parity.words(),
            wanted=f"probabilities within {parity.bound:g} in {precision}",
            remedy="give --precision float32" if precision != "float32" else None,
        )  # fmt: skip


def _stepwise(model: Model, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """As `Model.probability`, squared by a horizontal and then a vertical pass."""
    size = model.info.frame_size
    narrowed = Image.fromarray(image).resize((size, image.shape[0]), Image.Resampling.BILINEAR)
    return resized_back(model.logits(squared(np.asarray(narrowed), size)[None])[0], image.shape[:2])


def _dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Dice; 1 where both are empty."""
    total = int(prediction.sum()) + int(truth.sum())
    return 2 * int((prediction & truth).sum()) / total if total else 1.0
