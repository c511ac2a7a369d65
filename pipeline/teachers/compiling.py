"""When `torch.compile` pays for a teacher: what it saves over all images against the seconds that it costs before the first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from polyp_difom.pipeline.teachers.attention import FusedAttention
from polyp_difom.pipeline.teachers.protocol import Teacher

SAVED_SECONDS = 1 / 155 - 1 / 281
"""An image, for SAM ViT-B on one H100 in bfloat16; slower GPUs save more, larger encoders in proportion to their parameters."""
VIT_B_PARAMETERS = 90e6
COMPILE_SECONDS = 60
"""What compiling is taken to cost; an assumption, `bench teacher --compile` measures it."""


def maybe_compiled(teacher: Teacher, images: int, device: torch.device, batch: int, say: Callable[[str], None]) -> Teacher:
    """The teacher, compiled in place where that pays; says which, and why.

    The answer depends on the arguments alone, so that a run which is continued, or shared by several processes, gets the
    same one and yields the same bytes.

    Args:
        images: to be embedded in all, every view of every frame, also those that an earlier run has done.
        batch: images in a full batch.
    """
    name = teacher.spec.name
    measure = f"`bench teacher {name} --compile` measures it"
    if device.type != "cuda":
        say(f"{name}: not compiled, because a CPU core gained 1.15 x for 165 s; {measure}")
    elif not any(isinstance(module, FusedAttention) for module in teacher.modules()):
        say(f"{name}: not compiled, because its gain is not known; {measure}")
    else:
        size = sum(parameter.numel() for parameter in teacher.parameters()) / VIT_B_PARAMETERS
        saved = images * size * SAVED_SECONDS
        pays = saved > COMPILE_SECONDS
        verdict = "compiled" if pays else "not compiled"
        say(
            f"{name}: {verdict}, because {images} images save about {saved:.0f} s and compiling costs about {COMPILE_SECONDS} s"
        )
        return compiled(teacher, batch) if pays else teacher
    return teacher


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
