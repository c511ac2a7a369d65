"""Files that appear whole or not at all."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyp_difom.cache.errors import RunError


def write_bytes(path: Path, data: bytes) -> None:
    """Write to a sibling, flush to disk, rename: a kill leaves the old file or the new one.

    Raises:
        RunError: the disk refuses.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise RunError(
            "cannot write", where=path, got=error.strerror or error, remedy="free some space, or write elsewhere"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(path, text.encode())


def append_text(path: Path, text: str) -> None:
    """Add to a log.

    Raises:
        RunError: the disk refuses.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise RunError("cannot write", where=path, got=error.strerror or error, remedy="free some space") from error


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """A table with a header line; floats keep every digit."""
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, table.getvalue())
