"""What a checkpoint says of itself, checked before any of it is used: it may come from a stranger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polyp_difom.cache.errors import RunError


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", strict=True)


class SplitPart(_Part):
    """How the store's frames were split."""

    policy: str
    seed: int
    val_fraction: float = Field(ge=0, lt=1)


class DatasetPart(_Part):
    """A data set that the run learned from."""

    name: str
    layout: str = ""
    frames: int = 0


class TeacherPart(_Part):
    """A teacher that the run learned from."""

    name: str
    licence: str
    contamination: str
    weights_digest: str = ""


class ProvenancePart(_Part):
    """What the run learned from."""

    datasets: list[DatasetPart] = []
    teachers: list[TeacherPart] = []


class Header(_Part):
    """The parts of a header that are read anywhere; more may stand beside them.

    Defaults stand for what older checkpoints lack; they are not checked, so that null is refused where a part is wanted.
    """

    student: str
    latents: bool = False
    frame_size: int = Field(ge=16, le=4096)
    objective: str = ""
    teachers: list[str] | None = None
    cache: str = ""
    signature: str = ""
    reads: dict[str, str] = {}
    split: SplitPart = Field(default=None)  # type: ignore[assignment]
    provenance: ProvenancePart = ProvenancePart()
    export: dict[str, Any] = {}
    epoch: int = 0
    epochs: int = 0
    val_dice: float = Field(default=0.0, allow_inf_nan=False)
    seed: int = 0
    precision: str = ""


def checked(header: object, path: Path) -> dict[str, Any]:
    """The same header, once it is known to be of the right form.

    Raises:
        RunError: it is damaged, or not one of ours.
    """
    try:
        Header.model_validate(header)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(("header", *map(str, first["loc"])))
        found = "" if first["type"] == "missing" else f", it is {first['input']!r:.80}"
        raise RunError(
            "what the file says of its training cannot be used", where=path, got=f"{place}: {first['msg'].lower()}{found}",
            wanted="a header as `polyp-difom distill` writes it",
        ) from error  # fmt: skip
    assert isinstance(header, Mapping)  # noqa: S101
    return dict(header)
