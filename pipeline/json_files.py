"""JSON that may be a stranger's: files of bounded size, no deeper than can be read, every number finite."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

LARGEST = 64 << 20
"""Bytes."""


def read_text(path: Path, largest: int = LARGEST) -> str:
    """A text file in UTF-8.

    Raises:
        OSError: as the file system gives it. ValueError: no plain file, too large, or no UTF-8.
    """
    if not path.stat().st_size <= largest or not path.is_file():
        raise ValueError(f"no file of at most {largest} bytes")
    return path.read_text(encoding="utf-8")


def read_json(path: Path, largest: int = LARGEST) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: as the file system gives it. ValueError: too large, or as `parsed`.
    """
    return parsed(read_text(path, largest))


def parsed(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: no JSON, too deep, or a number that is none.
    """
    try:
        return json.loads(text, parse_constant=_refused, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("too many brackets within each other") from error


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is too large a number")
    return value
