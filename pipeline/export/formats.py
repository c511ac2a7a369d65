"""What an export format is; each is one file in this folder that joins under `@FORMATS.register(name)`.

Shapes: s frame side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.export.embedded import Embedded
from polyp_difom.pipeline.models.exported import Description
from polyp_difom.pipeline.registry import Registry
from polyp_difom.pipeline.students.protocol import Student


@dataclass(frozen=True)
class Job:
    """What a format is to write.

    Attributes:
        student: on the CPU, in evaluation mode.
        calibration: squared train frames, uint8 [3, s, s]; for int8.
    """

    student: Student
    frame_size: int
    precision: str
    embedded: bool
    calibration: list[NDArray[np.uint8]] = field(default_factory=list)

    @property
    def network(self) -> nn.Module:
        """What is to be written: the student, or the student with its preprocessing around it."""
        return Embedded(self.student, self.frame_size).eval() if self.embedded else self.student


class Format(ABC):
    """Base of all formats: made once from a job (the slow part), written as often as needed.

    Attributes:
        suffix: of the file, "" for a folder.
        companions: suffixes of what is written beside the file.
        precisions: that it can be written in.
        embeds: whether it can take the preprocessing in; `why_not` says why if it cannot.
        remarks: what its user must know, said after the export.
    """

    suffix: ClassVar[str]
    companions: ClassVar[tuple[str, ...]] = ()
    precisions: ClassVar[tuple[str, ...]] = ("float32",)
    embeds: ClassVar[bool] = False
    why_not: ClassVar[str] = ""
    remarks: tuple[str, ...] = ()

    @abstractmethod
    def __init__(self, job: Job): ...

    @abstractmethod
    def write(self, path: Path, about: Description) -> list[Path]:
        """Write the export as `path` into a scratch folder.

        Returns:
            its files; the one that makes it a model comes last.
        """

    @classmethod
    def check(cls, name: str, precision: str, embedded: bool) -> None:
        """Raises UsageError where this format cannot be what is asked for."""
        if precision not in cls.precisions:
            raise UsageError(
                f"{name} is not written in {precision}", where="--precision", got=precision,
                wanted=" or ".join(cls.precisions), remedy=f"give --precision {cls.precisions[0]}",
            )  # fmt: skip
        if embedded and not cls.embeds:
            raise UsageError(
                f"{name} does not take the preprocessing in", where="--embed-preprocessing", got=cls.why_not,
                remedy="leave it away, or choose --to onnx or torchscript",
            )  # fmt: skip


FORMATS: Registry[type[Format]] = Registry("export format", "polyp_difom.pipeline.export")
