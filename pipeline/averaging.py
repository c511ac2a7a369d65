"""An exponential moving average of a student's weights, which is what is validated and saved where it is on."""

from __future__ import annotations

import copy

import torch

from polyp_difom.pipeline.students.protocol import Student


class AveragedStudent:
    """A second student whose weights, and batch norms' running mean and variance, follow those of the trained one.

    The running statistics are averaged with the same decay: they then belong to the averaged weights, not to the last ones.
    Counters are copied. The decay grows from 0.1 towards its end value with the steps, so that the first, random weights
    are forgotten in a short training too.

    Args:
        decay: end value, 0..1.
    """

    def __init__(self, student: Student, decay: float):
        self.student, self.decay = copy.deepcopy(student).requires_grad_(False), decay

    @torch.no_grad()
    def update(self, student: Student, step: int) -> None:
        """Follow the weights after `step`, counted from 0 over the whole training."""
        decay = min(self.decay, largest_decay(step + 1))
        means, values = self.student.state_dict().values(), student.state_dict().values()
        pairs = list(zip(means, values, strict=True))
        moving = [(mean, value) for mean, value in pairs if mean.is_floating_point()]
        torch._foreach_lerp_([mean for mean, _ in moving], [value for _, value in moving], 1 - decay)
        for mean, value in pairs:
            if not mean.is_floating_point():
                mean.copy_(value)


def largest_decay(steps: int) -> float:
    """What the decay has grown to after so many steps, if it may: its average reaches back about a ninth of them."""
    return steps / (9 + steps)
