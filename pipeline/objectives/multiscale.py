"""`multiscale`: fixed teacher maps at several depths of the student, and the two bands at its bottleneck.

`shuffled` is the same against the wrong frame's maps: the control that tells teaching from regularising. `maps` and `bands`
are its two halves, to measure what each is worth: "maps+bands:0.5" is "multiscale".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from polyp_difom.pipeline.distributed import average
from polyp_difom.pipeline.objectives.pairs import Paired, by_cell
from polyp_difom.pipeline.objectives.protocol import (
    OBJECTIVES,
    Key,
    Needs,
    Targets,
    TargetSpec,
    agreement,
    cosine,
    over_teachers,
    spread,
)
from polyp_difom.pipeline.spectra import split_bands
from polyp_difom.pipeline.students.protocol import Tap

BAND_SHARE = 0.5
"""Weight of the banded loss at the bottleneck against the mean of the per-tap losses."""


@OBJECTIVES.register("multiscale")
class MultiScale(Paired):
    """Every tap that has a teacher map of its own stride learns it: cosine + smooth L1 on standardised channels.

    At the bottleneck the low and high band are matched too, each as a share of its own energy. On from the first epoch.
    """

    matches: ClassVar[frozenset[str]] = frozenset(("maps", "bands"))

    def __init__(self, taps: tuple[Tap, ...], targets: Mapping[Key, TargetSpec], weight: float = 1.0):
        super().__init__(taps, targets, weight)
        self.heads = self.heads_of()

    def distance(self, logits: Tensor, taps: Mapping[str, Tensor], targets: Targets) -> tuple[Tensor | None, dict[str, Tensor]]:
        """See `Objective.distance`."""
        parts, distances, bands = dict[str, Tensor](), list[tuple[str, Tensor]](), list[tuple[str, Tensor]]()
        for teacher, target, learners in self.present(taps, targets):
            variance = spread(target)
            for pair, student in learners:
                prediction = self.heads[pair.name](student)
                alike = cosine(prediction, target)
                seen = {"": agreement(prediction, target, variance=variance, alike=alike)}
                if "maps" in self.matches:
                    smooth = F.smooth_l1_loss(by_cell(prediction), by_cell(target))
                    distances.append((teacher, 1 - alike + smooth))
                if "bands" in self.matches and pair.tap.role == "bottleneck":
                    shares, banded = _bands(prediction, target, variance)
                    bands += [(teacher, share) for share in shares]
                    seen |= banded
                parts |= {f"{pair.name}/{band}{what}": value for band, own in seen.items() for what, value in own.items()}
        distance, banded_distance = over_teachers(distances), over_teachers(bands)
        if distance is None or banded_distance is None:
            return distance if banded_distance is None else banded_distance, parts
        return distance + BAND_SHARE * banded_distance, parts


@OBJECTIVES.register("maps")
class Maps(MultiScale):
    """`multiscale` without the bands."""

    matches = frozenset(("maps",))


@OBJECTIVES.register("bands")
class Bands(MultiScale):
    """The bands at the bottleneck alone."""

    matches = frozenset(("bands",))
    by_role = False

    def __init__(self, taps: tuple[Tap, ...], targets: Mapping[Key, TargetSpec], weight: float = 1.0):
        super().__init__(tuple(tap for tap in taps if tap.role == "bottleneck"), targets, weight)


@OBJECTIVES.register("shuffled")
class Shuffled(MultiScale):
    """`multiscale` towards another train frame's maps, the same wrong one every epoch.

    Beside other members it makes all of them wrong: "shuffled:0+cwd" is the control of `cwd`.
    """

    needs = Needs(maps=True, shuffled=True)


def _bands(prediction: Tensor, target: Tensor, variance: Tensor) -> tuple[list[Tensor], dict[str, dict[str, Tensor]]]:
    """Squared error of each band as a share of the target's energy in it, and what the log shows of the bands.

    A frame's mean is in the low band, so the variance of the high band is its energy, and the low one has the rest.
    """
    low, high = zip(split_bands(prediction), split_bands(target), strict=True)
    residuals = [F.mse_loss(by_cell(p), by_cell(t)) for p, t in (low, high)]
    energies = average(torch.stack([low[1].square().mean(), high[1].square().mean()]))
    shares = (torch.stack(residuals) / energies.clamp_min(1e-6)).unbind()
    variances = (variance - energies[1]).clamp_min(0), energies[1]
    rows = zip(("low/", "high/"), (low, high), variances, residuals, strict=True)
    return list(shares), {band: agreement(p, t, variance=v, residual=r) for band, (p, t), v, r in rows}
