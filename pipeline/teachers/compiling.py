"""`torch.compile` for a teacher: where it pays for the images at hand, and proof that it gives the same maps.

`bench teacher --compile` measures what it gains and what it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from polyp_difom.cache.errors import first_line
from polyp_difom.pipeline.device import out_of_memory
from polyp_difom.pipeline.teachers.protocol import Teacher

PAYS_FROM = 50_000
"""Images from which compiling pays: SAM ViT-B encodes 155 a second eagerly and 281 compiled on an H100 in bfloat16, which saves
2.9 ms each, and compiling takes about a minute."""
FAMILIES = ("sam", "medsam")
"""Measured to gain by it."""
LARGEST_CHANGE = 0.02
"""Norm of the change that compiling may make to maps, over their norm: what bfloat16 itself makes."""


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


def choose(teacher: Teacher, device: torch.device, images: int) -> tuple[bool, str]:
    """Whether to compile a teacher that is to see so many images, and why; the same for all workers of a store."""
    if device.type != "cuda":
        return False, "it does not pay on a CPU"
    if teacher.spec.name.partition(":")[0] not in FAMILIES:
        return False, f"measured to pay for {' and '.join(FAMILIES)} alone"
    return images >= PAYS_FROM, f"{images:,} images, and it pays from about {PAYS_FROM:,}"


def compile_where_it_pays(
    teachers: Sequence[Teacher], device: torch.device, images: int, batch: int, say: Callable[[str], None]
) -> None:
    """Compile in place the teachers that gain by it, for batches of `batch` images out of `images` in all.

    The first batch runs both ways: where compiling fails, lacks memory, or moves the maps by more than 2 %, the teacher goes on
    eagerly and `say` tells why.
    """
    for teacher in teachers:
        pays, reason = choose(teacher, device, images)
        if device.type == "cuda":
            say(f"{teacher.spec.name} runs {'under torch.compile' if pays else 'without torch.compile'}: {reason}")
        if pays:
            _guard(teacher, batch, say)


def _guard(teacher: Teacher, batch: int, say: Callable[[str], None]) -> None:
    eager = teacher.embed
    fast = compiled(teacher, batch).embed

    def first(inputs: Tensor) -> tuple[Tensor, ...]:
        if len(inputs) != batch:
            return eager(inputs)
        maps = eager(inputs)
        try:
            change = max(((a - b).norm() / b.norm()).item() for a, b in zip(fast(inputs), maps, strict=True))
        except Exception as error:  # the compiler's, of whatever kind
            fault = "out of memory" if isinstance(error, RuntimeError) and out_of_memory(error) else first_line(error)
        else:
            fault = "" if change <= LARGEST_CHANGE else f"it moves the maps by {change:.1%}"
        if fault:
            say(f"{teacher.spec.name} goes on without torch.compile: {fault}")
            if inputs.device.type == "cuda":
                torch.cuda.empty_cache()  # outside of `except`, whose error holds on to the tensors
        teacher.embed = eager if fault else fast  # type: ignore[method-assign]
        return maps

    teacher.embed = first  # type: ignore[method-assign]
