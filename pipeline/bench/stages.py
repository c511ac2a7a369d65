"""Where the milliseconds of a training step go: the parts of a real step, each waited for on its device.

The waiting keeps a GPU from working ahead, so the parts add up to more than a step takes when nobody looks.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from polyp_difom.pipeline import augment
from polyp_difom.pipeline import trainer as trainer_module
from polyp_difom.pipeline.device import synchronise
from polyp_difom.pipeline.feed import Batch
from polyp_difom.pipeline.trainer import Trainer

PARTS = (
    "gather frames", "gather maps", "flips", "affine: frames", "affine: maps", "colour", "rest of the feed",
    "forward", "segmentation loss", "distance to teachers", "backward", "gradient clip", "optimiser", "rest of the step",
)  # fmt: skip
"""In the order of a step; a rest is what of feed or step belongs to no other part."""
Name = str | Callable[..., str]


class Stopwatch:
    """Milliseconds by part; what a part spends in another is the other's."""

    def __init__(self, device: torch.device):
        self.device = device
        self.taken: dict[str, float] = defaultdict(float)
        self._inside = [0.0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times the block, with the work that it queues on the device."""
        synchronise(self.device)
        began = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            synchronise(self.device)
            whole = (time.perf_counter() - began) * 1e3
            self.taken[name] += whole - self._inside.pop()
            self._inside[-1] += whole

    def around(self, call: Callable[..., Any], name: Name) -> Callable[..., Any]:
        """The call, timed; its part may depend on its arguments."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name if isinstance(name, str) else name(*args, **kwargs)):
                return call(*args, **kwargs)

        return timed


def stages(ways: Mapping[str, tuple[Trainer, Iterator[Batch], int]], repeats: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of each of `PARTS` over so many steps of each way, which take turns; the first does not count.

    Args:
        ways: by name, trainer, its batches, and the number that each step has.
    """
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(1 + repeats):
        for name, (trainer, batches, number) in ways.items():
            watch = Stopwatch(trainer.device)
            with _watched(trainer, watch):
                with watch.part("rest of the feed"):
                    batch = next(batches)
                with watch.part("rest of the step"):
                    trainer.step(batch, number)
            taken[name].append(watch.taken)
    return {
        name: {part: float(np.median([each[part] for each in steps[1:]])) for part in PARTS} for name, steps in taken.items()
    }


@contextmanager
def _watched(trainer: Trainer, watch: Stopwatch) -> Iterator[None]:
    """Within it, the parts of this trainer's feed and step run under the watch."""
    feed, side = trainer.train, trainer.store.manifest.frame_size

    def gather(held: object, *_: Tensor) -> str:
        return "gather frames" if held is feed.images or held is feed.masks else "gather maps"

    def affine(tensor: Tensor, *_: object, **__: object) -> str:
        return "affine: frames" if tensor.shape[-1] == side else "affine: maps"

    seams: list[tuple[Any, str, Name]] = [
        (feed, "_take", gather), (augment, "flip_views", "flips"), (augment, "resample", affine),
        (augment, "jitter_colour", "colour"), (trainer.student, "features", "forward"),
        (trainer_module, "supervise", "segmentation loss"), (trainer.objective, "distance", "distance to teachers"),
        (Tensor, "backward", "backward"), (nn.utils, "clip_grad_norm_", "gradient clip"),
        (trainer.optimizer, "step", "optimiser"),
    ]  # fmt: skip
    with ExitStack() as stack:
        for owner, name, part in seams:
            stack.enter_context(patch.object(owner, name, watch.around(getattr(owner, name), part)))
        yield
