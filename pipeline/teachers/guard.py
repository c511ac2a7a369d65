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


def known_to(teachers: Iterable[Teacher]) -> dict[str, Mapping[str, str]]:
    """What each teacher has seen, as `refuse_tested` takes it."""
    return {f"teacher {teacher.spec.name!r}": teacher.seen for teacher in teachers}


def refuse_tested(knowing: Mapping[str, Mapping[str, str]], frame: str, digest: str) -> None:
    """Raises DataError where somebody learned from, or was selected on, this test frame: it would tell its students.

    Args:
        knowing: by who it is, the split of each frame that it knows, by the digest of its pixels.
        digest: of the frame's pixels.
    """
    for who, seen in knowing.items():
        if digest in seen:
            raise DataError(
                f"{who} knows a test frame", where=frame, got=f"it lies in its {seen[digest]} split",
                wanted="one that has seen none of the test frames",
                remedy="train it on a store of the same data and the same --split-by and --split-seed",
            )  # fmt: skip


def validation_learned(samples: SampleTable, seen: Mapping[str, str]) -> tuple[int, int]:
    """How many of a store's validation frames a teacher learned from, and how many there are.

    Args:
        seen: split of each frame that the teacher knows, by the digest of its pixels.
    """
    held = {digest for digest, split in zip(samples.pixel_sha256, samples.split, strict=True) if split == "val"}
    return sum(seen.get(digest) == "train" for digest in held), len(held)


def warn_of_validation(knowing: Mapping[str, Mapping[str, str]], samples: SampleTable, progress: Progress) -> None:
    """Says who learned from validation frames of a store; `knowing` as in `refuse_tested`."""
    for who, seen in knowing.items():
        known, held = validation_learned(samples, seen)
        if known:
            progress.say(
                f"warning: {who} learned from {known} of the {held} validation frames: figures of its "
                "students there will be flattered"
            )
