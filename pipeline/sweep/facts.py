"""What was measured of a sweep's students, as its students.json holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from polyp_difom.cache.errors import RunError, first_line
from polyp_difom.pipeline.json_files import read_json


class StudentFacts(BaseModel):
    """What was measured of one student; None where it cannot be built."""

    model_config = ConfigDict(frozen=True, extra="allow")

    parameters: int | None = Field(None, gt=0, lt=10**12)
    gmacs: float | None = Field(None, ge=0, lt=1e9)
    latency_ms: float | None = Field(None, gt=0, lt=1e9)
    error: str | None = None


_FACTS = TypeAdapter(dict[str, StudentFacts])


def read_facts(path: Path) -> dict[str, dict[str, Any]]:
    """By the network's name, see `DistillConfig.network`; empty before anything was measured.

    Raises:
        RunError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        return {name: found.model_dump() for name, found in _FACTS.validate_python(read_json(path)).items()}
    except (OSError, ValueError) as error:
        raise RunError(
            "what was measured of the students is damaged", where=path, got=first_line(error),
            remedy="delete this file; --resume measures them again",
        ) from error  # fmt: skip
