"""The figures of an epoch: what they must be, and what a user sees of them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from polyp_difom.cache.errors import RunError
from polyp_difom.pipeline.distributed import average
from polyp_difom.pipeline.report.learning import traced
from polyp_difom.pipeline.runs import LARGEST_FIGURE

COLLAPSED = 0.01
"""A target whose variance falls below this share of its first epoch's has collapsed."""


class Diverged(RunError):
    """A training went wrong by itself: a figure is not finite, or a target has collapsed."""


class Collapsed(Diverged):
    """A teacher's target has lost its variance."""


class Means:
    """Means over steps of their figures, each over the steps that had it: a teacher may be left out of some.

    Nothing waits for the device until `values`.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._steps = Counter[tuple[str, ...]]()

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """A step's scalars; of several processes, all have the same ones."""
        names, values = tuple(figures), torch.stack(list(figures.values()))
        self._sums[names] = self._sums[names] + values if names in self._sums else values
        self._steps[names] += 1

    def values(self) -> dict[str, float]:
        """The means, over all processes too."""
        totals = iter(average(torch.cat(list(self._sums.values()))).tolist())
        sums, steps = defaultdict[str, float](float), Counter[str]()
        for names in self._sums:
            for name in names:
                sums[name] += next(totals)
                steps[name] += self._steps[names]
        return {name: total / steps[name] for name, total in sums.items()}


def check(
    figures: dict[str, float], first_variance: dict[str, float], epoch: int, tell: Callable[[str], None] | None = None
) -> None:
    """An epoch's figures must be finite, and teachers' targets keep their variance: a collapse looks like a perfect loss.

    Args:
        first_variance: of each target, in the first epoch that had it; new ones are added.
        tell: told of a collapse, once for each target, where it is to stop nothing; nothing is expected of the target then.

    Raises:
        Diverged: a figure is not finite, or larger than any loss. Collapsed: a target's variance fell below 1 % of the first
            epoch's.
    """
    collapsed: list[str] = []
    for name, value in figures.items():
        if not (math.isfinite(value) and abs(value) < LARGEST_FIGURE):
            remedy = "give a smaller --learning-rate, or --precision float32"
            raise Diverged("the training has diverged", where=f"{name}, epoch {epoch + 1}", got=value, remedy=remedy)
        if name.endswith("target_variance"):
            first = first_variance.setdefault(name, max(value, 0.0))
            if max(value, 0.0) < COLLAPSED * first:
                got, wanted = f"variance {value:.2e}", f"{first:.2e} as in the first epoch"
                if tell is None:
                    raise Collapsed("a teacher's target has collapsed", where=name, got=got, wanted=wanted)
                collapsed.append(f"{name.removesuffix('/target_variance')} to {got}, from {wanted}")
                first_variance[name] = 0.0
    if tell and collapsed:
        tell(f"warning: targets have collapsed, as this objective lets them: {'; '.join(collapsed)}")


def dice(prediction: Tensor, truth: Tensor) -> Tensor:
    """Dice of bool masks [b, 1, s, s], one value a frame [b]; 1 where both are empty."""
    overlap = (prediction & truth).flatten(1).sum(1)
    total = prediction.flatten(1).sum(1) + truth.flatten(1).sum(1)
    return torch.where(total > 0, 2 * overlap / total.clamp_min(1), torch.ones_like(overlap, dtype=torch.float32))


def digest(figures: dict[str, float]) -> str:
    """The figures that a user wants to see every epoch; the cosine is the mean over all maps of all teachers, bands aside."""
    traces = {name: trace for name in figures if (trace := traced(name))}
    cosines = [figures[name] for name, trace in traces.items() if trace.quantity == "cosine" and not trace.band]
    shown = [f"{name} {figures[name]:.4f}" for name in ("segmentation", "distillation") if name in figures]
    return ", ".join([*shown, f"teacher cosine {sum(cosines) / len(cosines):.3f}"] if cosines else shown) + ","
