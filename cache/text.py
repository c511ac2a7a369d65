"""Text as arrays of bytes, which every reader of Zarr understands."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def encode_text(texts: list[str], width: int | None = None) -> NDArray[np.uint8]:
    """UTF-8 bytes [n, width], zero padded; the longest text sets the width, or a given width cuts."""
    encoded = [text.encode() for text in texts]
    width = width or max(map(len, encoded), default=0)
    return np.frombuffer(b"".join(raw[:width].ljust(width, b"\0") for raw in encoded), np.uint8).reshape(len(texts), width)


def decode_text(rows: NDArray[np.uint8]) -> list[str]:
    """The inverse of `encode_text`; a character cut in two is dropped."""
    raw, width = rows.tobytes(), rows.shape[1]
    return [raw[start : start + width].rstrip(b"\0").decode(errors="ignore") for start in range(0, len(raw), width)]


def raw_digests(digests: list[str]) -> NDArray[np.uint8]:
    """The bytes [n, width] of hex digests."""
    return np.array([list(bytes.fromhex(digest)) for digest in digests], np.uint8)


def hex_digests(rows: NDArray[np.uint8]) -> list[str]:
    """The inverse of `raw_digests`."""
    text, width = rows.tobytes().hex(), 2 * rows.shape[1]
    return [text[start : start + width] for start in range(0, len(text), width)]
