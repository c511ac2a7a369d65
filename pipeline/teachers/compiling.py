"""`torch.compile` for a teacher; what it gains is measured by `bench teacher --compile`, and nothing uses it unasked."""

from __future__ import annotations

import torch
from torch import Tensor

from polyp_difom.pipeline.teachers.protocol import Teacher


def compiled(teacher: Teacher, batch: int) -> Teacher:
    """The teacher, compiled in place for batches of that many images: any other size would be compiled anew, and runs eagerly.

    Parameters and their names stay.
    """
    eager = teacher.embed
    fast = torch.compile(eager, dynamic=False)

    def embed(inputs: Tensor) -> tuple[Tensor, ...]:
        return fast(inputs) if len(inputs) == batch else eager(inputs)

    teacher.embed = embed  # type: ignore[method-assign]
    return teacher
