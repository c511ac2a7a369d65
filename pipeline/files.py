"""Files that appear whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from polyp_difom.cache.errors import CacheError, RunError
from polyp_difom.cache.lock import passing_lock
from polyp_difom.cache.replacing import replace_file


def write_bytes(path: Path, data: bytes) -> None:
    """See `polyp_difom.cache.replacing.replace_file`.

    Raises:
        RunError: the disk refuses.
    """
    try:
        replace_file(path, data)
    except OSError as error:
        raise RunError(
            "cannot write", where=path, got=error.strerror or error, remedy="free some space, or write elsewhere"
        ) from error


@contextmanager
def alone_in(folder: Path, file: str = "") -> Iterator[None]:
    """Keeps other processes out of a folder that one command fills, and removes what killed ones left half-written there.

    Args:
        file: of which alone this is to hold; everything below the folder by default.

    Raises:
        RunError: a living process is at work there, or the folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(passing_lock(folder / (f".{file}.lock" if file else ".lock")))
            for stray in folder.glob(f".{file}.*.partial") if file else folder.rglob(".*.partial"):
                stray.unlink()
        except CacheError as error:
            raise RunError(
                "another process is writing there", where=folder / file, got=error.details["got"],
                remedy="wait for it to end, or stop it; or give another -o",
            ) from error  # fmt: skip
        except OSError as error:
            got, remedy = error.strerror, "give another -o"
            raise RunError("the folder cannot be made or written", where=folder / file, got=got, remedy=remedy) from error
        yield


def contents(folder: Path) -> set[str]:
    """Names in a folder, without its lock and what a killed process left half-written."""
    return {name for name in os.listdir(folder) if not (name.startswith(".") and name.endswith((".lock", ".partial")))}


def empty(folder: Path, last: str = "", but: str = "") -> None:
    """Removes all that a folder holds, but its lock and `but`; `last` at the end, so that a kill leaves what may be emptied
    again.
    """
    for name in sorted(contents(folder) - {but}, key=lambda name: name == last):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_text` of a value as JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False))


def sha256_of(path: Path) -> str:
    """Digest (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
