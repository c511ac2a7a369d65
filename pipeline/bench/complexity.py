"""How large a network is and how much it computes, from its shapes alone."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from polyp_difom.pipeline.students.protocol import parameter_count


@dataclass(frozen=True)
class Complexity:
    """Size and arithmetic of one forward pass of one frame.

    Attributes:
        parameters: trained numbers.
        macs: multiply-accumulates of convolutions and matrix products.
        flops: 2 x macs; batch norm, activations, pooling and interpolation are not counted.
    """

    parameters: int
    macs: int
    flops: int


def complexity(student: nn.Module, size: int) -> Complexity:
    """Counted by `torch.utils.flop_counter` on a frame [1, 3, size, size] that has a shape but no values.

    Raises:
        UsageError: the side does not fit the student.
    """
    shapes = deepcopy(student).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shapes(torch.empty(1, 3, size, size, device="meta"))
    flops = counter.get_total_flops()
    return Complexity(parameter_count(student), flops // 2, flops)
