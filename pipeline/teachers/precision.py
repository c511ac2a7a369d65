"""Layers that keep float32 where everything around them runs in bfloat16."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class _Float32:
    """Mixed in before a module's own class."""

    def forward(self, x: Tensor) -> Tensor:
        """As the class behind it does, in float32 whatever the autocast around it says."""
        with torch.autocast(x.device.type, enabled=False):
            own: Any = super()
            return own.forward(x.float())


def keep_float32(modules: Iterable[nn.Module]) -> None:
    """Takes modules with one input out of autocast, in place; parameters and state dict stay as they are."""
    for module in modules:
        kind = type(module)
        module.__class__ = type(kind.__name__, (_Float32, kind), {})
