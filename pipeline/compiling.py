"""`torch.compile` for a training: measured in its first steps, kept where it pays, chosen with a printed reason.

`bench train --compile` measures the same without training. CUDA graphs are measured there alone: heads and sums read a
step's maps after the student has gone on, which a replayed graph overwrites.
Shapes: b batch, s frame side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch
from torch import Tensor

from polyp_difom.cache.errors import UsageError, first_line
from polyp_difom.pipeline.device import out_of_memory, synchronise
from polyp_difom.pipeline.distributed import world
from polyp_difom.pipeline.objectives.protocol import Losses
from polyp_difom.pipeline.students.protocol import Student

WARM, TIMED = 3, 10
"""Steps that are not timed at first, and that are timed each way."""
LARGEST_CHANGE = {"float32": 1e-3, "bfloat16": 0.02}
"""Norm of the change that compiling may make to a batch's logits, over their norm: by precision, what rounding makes."""

Descend = Callable[[], Losses]
Features = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]


def refuse_several(compile: bool) -> None:
    """UsageError where several processes train together: each would choose for itself."""
    if compile and world() > 1:
        raise UsageError(
            "several processes train without torch.compile", where="--compile", got=f"{world()} processes",
            remedy="leave --compile away, or give --no-compile",
        )  # fmt: skip


class Compiling:
    """The student's features in training steps: eager at first, then compiled, then whichever is cheaper in all.

    The student itself is left alone: it is validated, averaged and saved as without compiling. What is compiled fits one shape
    of batch; another one (for want of memory), or an encoder that begins to rest, is compiled anew.

    Args:
        precision: of the training, as resolved.
        say: told what was chosen and why, once.

    Attributes:
        features: frames [b, 3, s, s] -> what `Student.features` returns.
    """

    def __init__(self, student: Student, device: torch.device, precision: str, say: Callable[[str], None]):
        self.student, self.device, self.precision, self.say = student, device, precision, say
        self.features: Features = student.features
        self._seconds: list[float] = []
        self._settled = False
        self._compiling = self._change = 0.0

    def step(self, descend: Descend, left: int) -> Losses:
        """One step's losses and gradients, measured until it is settled how to go on.

        Args:
            descend: forward with `features`, losses, backward; may be called twice.
            left: steps of the training that are left, this one among them.
        """
        if not self._settled and not self._seconds and left <= WARM + 2 * TIMED:
            self._settle("not tried", f"{left} steps are left, and measuring takes {WARM + 2 * TIMED}")
        if not self._settled and len(self._seconds) == WARM + TIMED:
            self._compile(descend)
        if self._settled:
            return descend()
        with self._timed() as seconds:
            losses = descend()
        self._seconds += seconds
        if len(self._seconds) == WARM + 2 * TIMED:
            self._decide(left - 1)
        return losses

    def _compile(self, descend: Descend) -> None:
        """Rehearses a step with the compiled student; nothing of it stays but what was compiled."""
        # the same random draws as eagerly
        fast = torch.compile(self.student.features, dynamic=False, options={"fallback_random": True})
        self.features = self._compared(fast)
        try:
            with self._timed() as seconds, self._undone():
                descend()
        except Exception as error:  # the compiler's, of whatever kind
            self._settle("not used", first_line(error))
        else:
            self.features, self._compiling = fast, sum(seconds)
        if self._settled and self.device.type == "cuda":
            torch.cuda.empty_cache()  # outside of `except`, whose error holds on to the tensors

    def _compared(self, fast: Features) -> Features:
        """The compiled features, which fail where their logits are not the eager ones, or memory does not hold both."""

        def features(frames: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            try:
                with self._undone(), torch.no_grad():
                    wanted = self.student.features(frames)[0].float()
                torch.clear_autocast_cache()  # it holds weights without gradients now
                found = fast(frames)
            except RuntimeError as error:
                if out_of_memory(error):  # of a kind for which no batch is cut in pieces: eagerly it may fit
                    raise MemoryError("out of memory") from error
                raise
            self._change = ((found[0].detach().float() - wanted).norm() / wanted.norm()).item()
            if not self._change <= LARGEST_CHANGE[self.precision]:
                raise ArithmeticError(f"it moves the logits by {self._change:.2%} of their norm")
            return found

        return features

    def _decide(self, left: int) -> None:
        eager, fast = median(self._seconds[WARM : WARM + TIMED]), median(self._seconds[WARM + TIMED :])
        saved = left * (eager - fast)
        self._settle(
            "kept" if (keep := saved > self._compiling) else "dropped",
            f"forward and backward take {1e3 * fast:.1f} ms, eagerly {1e3 * eager:.1f}, which saves {max(saved, 0):.1f} s over "
            f"the {left} steps that are left; compiling took {self._compiling:.1f} s; the logits move by {self._change:.0e}",
            keep=keep,
        )

    def _settle(self, verdict: str, reason: str, *, keep: bool = False) -> None:
        self._settled = True
        if not keep:
            self.features = self.student.features
        self.say(f"torch.compile is {verdict}: {reason}")

    @contextmanager
    def _timed(self) -> Iterator[list[float]]:
        """Yields a list that holds the block's seconds when it has ended, with the work that it queued on the device."""
        seconds: list[float] = []
        synchronise(self.device)
        began = time.perf_counter()
        yield seconds
        synchronise(self.device)
        seconds.append(time.perf_counter() - began)

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """After it, the batch norms' statistics and the random draws are as before."""
        held = {name: buffer.clone() for name, buffer in self.student.named_buffers()}
        try:
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                yield
        finally:
            with torch.no_grad():
                for name, buffer in self.student.named_buffers():
                    buffer.copy_(held[name])
