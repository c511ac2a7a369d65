"""What is checked before a folder or file that may be a stranger's is read: nothing outside it, nothing without an end."""

from __future__ import annotations

import os
from pathlib import Path

from polyp_difom.cache.errors import RunError
from polyp_difom.cache.location import stranger_in
from polyp_difom.pipeline.data.pairing import printable

LARGEST_HEADER = 4 << 20
"""Bytes of JSON at the head of a safetensors file; those of our largest networks have some hundred thousand."""


def require_closed(folder: Path) -> None:
    """Check that all below `folder` are files and folders, and that no link leads out of it.

    Raises:
        RunError: a link to somewhere else, a pipe, a socket or a device.
    """
    if found := stranger_in(folder):
        path, is_link = found
        if is_link:
            raise RunError(
                "a link leads out of the folder", where=printable(path), got=printable(os.readlink(path)),
                wanted=f"everything below {printable(folder)}", remedy="put the file itself there, if you trust it",
            )  # fmt: skip
        raise RunError("neither a file nor a folder", where=printable(path), remedy="remove it")


def require_header(path: Path) -> None:
    """Check the length that a safetensors file announces for its header.

    Raises:
        RunError: longer than the file, or than any of ours.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(LARGEST_HEADER, path.stat().st_size - 8):
        raise RunError(
            "not a safetensors file, or a damaged one", where=path, got=f"a header of {length} bytes",
            wanted=f"at most {LARGEST_HEADER}, and no more than the file holds",
        )  # fmt: skip
