"""What a teacher that was trained here must not do: see other frames than it learned on, or tell what test frames look like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from polyp_difom.cache.errors import DataError, UsageError
from polyp_difom.cache.samples import SampleTable
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.teachers.protocol import Teacher


def require_frame_size(teachers: Iterable[Teacher], size: int) -> None:
    """Raises UsageError where a store's frames have another side than those that a teacher was trained on."""
    for teacher in teachers:
        if teacher.frame_size not in (None, size):
            raise UsageError(
                f"teacher {teacher.spec.name!r} was trained on frames of another size", got=f"frames of {size} pixels",
                wanted=teacher.frame_size, remedy=f"extract --size {teacher.frame_size}, or take a run that learned on {size}",
            )  # fmt: skip


def refuse_tested(teachers: Iterable[Teacher], frame: str, digest: str) -> None:
    """Raises DataError where a teacher learned from, or was selected on, this test frame: it would tell its students.

    Args:
        digest: of the frame's pixels.
    """
    for teacher in teachers:
        if digest in teacher.seen:
            raise DataError(
                f"teacher {teacher.spec.name!r} knows a test frame", where=frame,
                got=f"it lies in the teacher's {teacher.seen[digest]} split",
                wanted="a teacher that has seen none of the test frames",
                remedy="train the teacher on a store of the same data and the same --split-by and --split-seed",
            )  # fmt: skip


def validation_learned(samples: SampleTable, seen: Mapping[str, str]) -> tuple[int, int]:
    """How many of a store's validation frames a teacher learned from, and how many there are.

    Args:
        seen: split of each frame that the teacher knows, by the digest of its pixels.
    """
    held = {digest for digest, split in zip(samples.pixel_sha256, samples.split, strict=True) if split == "val"}
    return sum(seen.get(digest) == "train" for digest in held), len(held)


def warn_of_validation(teachers: Iterable[Teacher], samples: SampleTable, progress: Progress) -> None:
    """Says which teachers learned from validation frames of a store."""
    for teacher in teachers:
        known, held = validation_learned(samples, teacher.seen)
        if known:
            progress.say(
                f"warning: {teacher.spec.name} learned from {known} of the {held} validation frames: figures of its "
                "students there will be flattered"
            )
