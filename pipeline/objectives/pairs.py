"""What objectives on feature maps share: each tap of the student beside the teachers' maps of its own stride.

Shapes: b batch, c channels, h w grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.objectives.protocol import Key, Needs, Objective, Targets, TargetSpec, frozen, head_name
from polyp_difom.pipeline.students.protocol import Tap


class Pair(NamedTuple):
    """A tap and a teacher's maps of its stride."""

    tap: Tap
    key: Key
    spec: TargetSpec

    @property
    def name(self) -> str:
        """Of its head, and in front of its figures."""
        return head_name(self.tap, self.key)


class Paired(Objective):
    """Base of the objectives that compare every tap with all teacher maps of its stride.

    Raises:
        UsageError: no tap has the stride of a teacher's map.
    """

    needs = Needs(maps=True)
    by_role = True

    def __init__(self, taps: tuple[Tap, ...], targets: Mapping[Key, TargetSpec], weight: float = 1.0):
        super().__init__(taps, targets, weight)
        features = {key: spec for key, spec in targets.items() if spec.kind == "features"}
        self.pairs = [
            Pair(tap, key, spec) for key, spec in features.items() for tap in taps
            if tap.stride == spec.stride and tap.role != "latent"
        ]  # fmt: skip
        if targets and not features:
            raise UsageError(
                "these teachers give masks, no features", got=", ".join(sorted({teacher for teacher, _ in targets})),
                remedy="give --objective logit, or --teachers with others",
            )  # fmt: skip
        if not self.pairs:
            raise UsageError(
                "no teacher map has the stride of a student's tap",
                got=f"maps at strides {sorted({spec.stride for spec in features.values()})}",
                wanted=f"one of the strides {sorted({tap.stride for tap in taps if tap.role != 'latent'})}",
                remedy="extract a store with --scales s8,s16,s32",
            )
        self.keys = list(dict.fromkeys(pair.key for pair in self.pairs))

    def heads_of(self, *, bias: bool = True) -> nn.ModuleDict:
        """A fresh 1x1 convolution for each pair, from the tap's channels to the teacher's stored ones."""
        return nn.ModuleDict({p.name: nn.Conv2d(p.tap.channels, p.spec.channels, 1, bias=bias) for p in self.pairs})

    def present(self, taps: Mapping[str, Tensor], targets: Targets) -> Iterator[tuple[str, Tensor, list[tuple[Pair, Tensor]]]]:
        """Of all maps that `targets` has: (teacher, maps divided by their deviation, who learns them with the student's maps).

        All are [b, c, h, w]; targets lie in memory as the student's maps do.
        """
        for key in self.keys:
            if key in targets.maps:
                pairs = [pair for pair in self.pairs if pair.key == key]
                target = frozen(targets.maps[key].float() / pairs[0].spec.std).contiguous(memory_format=torch.channels_last)
                yield key[0], target, [(pair, taps[pair.tap.name]) for pair in pairs]


def centred(maps: Tensor) -> Tensor:
    """Maps [b, c, h, w] without each channel's mean over the cells of its frame."""
    return maps - maps.mean((2, 3), keepdim=True)


def by_cell(maps: Tensor) -> Tensor:
    """Maps [b, c, h, w] as [b, h, w, c], so that losses of torch give gradients that are channels-last like the maps."""
    return maps.movedim(1, -1)
