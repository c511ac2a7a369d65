"""Bad and odd files, made deterministically by seed, each with what is expected of whoever reads it.

`pictures.py` makes image files, `films.py` DICOM files and films, `networks.py` whatever a model is loaded from.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Expected = Literal["read", "refused", "either"]
"""What is right: to be read; to be refused with a message; one of both, for bytes damaged at random."""
LAUGHS = (
    "a0: &a0 [ha, ha]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)) + "seed: *a11\n"
)
"""YAML of a few lines that stands for 10^11 values."""


@dataclass(frozen=True, eq=False)
class Case:
    """One file or folder.

    Attributes:
        kind: what it pretends to be, a row of the table that the tests print.
        pixels: uint8 [h, w, 3] that reading gives; None where it is refused or not compared.
        tolerance: largest mean difference from `pixels`, for lossy formats.
    """

    kind: str
    path: Path
    expected: Expected
    pixels: NDArray[np.uint8] | None = None
    tolerance: float = 0.0


def gradient(height: int = 16, width: int = 24) -> NDArray[np.uint8]:
    """A smooth RGB picture, uint8 [h, w, 3], no two corners of it alike."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [
        rows * 255 // max(height - 1, 1),
        columns * 255 // max(width - 1, 1),
        (rows + columns) * 255 // (height + width),
    ]
    return np.stack(channels, axis=-1).astype(np.uint8)


def png(
    width: int, height: int, *, depth: int = 8, colour: int = 2, data: bytes | None = None, chunks: Sequence[bytes] = ()
) -> bytes:
    """A PNG with any header; `data` is what its one IDAT holds, compressed zeros of the right length by default."""
    if data is None:
        samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
        data = zlib.compress(bytes((1 + (width * samples * depth + 7) // 8) * height), 9)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", data), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bmp(width: int, height: int, data: bytes = b"") -> bytes:
    """A 24-bit BMP with any header."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(data), 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 54 + len(data), 0, 0, 54) + header + data


def tiff(tags: dict[int, int | Sequence[int]], data: bytes = b"", next_directory: int = 0) -> bytes:
    """A little-endian TIFF of one directory; every tag a LONG, `data` right behind the 8 bytes of the head."""
    start = 8 + len(data) + len(data) % 2
    arrays, entries, at = b"", b"", start + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        values = [value] if isinstance(value, int) else list(value)
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            arrays, packed = arrays + packed, struct.pack("<I", at + len(arrays))
        entries += struct.pack("<HHI", tag, 4, len(values)) + packed
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", next_directory)
    return b"II*\0" + struct.pack("<I", start) + data.ljust(start - 8, b"\0") + directory + arrays


def grey_tiff(width: int, height: int, data: bytes, **changes: int) -> bytes:
    """An 8-bit grey TIFF of one uncompressed strip; `changes` are tags by name."""
    names = {"bits": 258, "compression": 259, "photometric": 262, "samples": 277, "rows": 278, "length": 279, "offset": 273}
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    return tiff(tags | {names.get(name) or int(name[1:]): value for name, value in changes.items()}, data)


def damaged(data: bytes, seed: int, flips: int = 8) -> bytes:
    """The same with some bits flipped anywhere."""
    rng = np.random.default_rng(seed)
    values = np.frombuffer(data, np.uint8).copy()
    values[rng.integers(0, len(values), flips)] ^= (1 << rng.integers(0, 8, flips)).astype(np.uint8)
    return values.tobytes()


def truncations(data: bytes) -> dict[str, bytes]:
    """The same, cut short at several places."""
    return {f"{share}%": data[: len(data) * share // 100] for share in (5, 25, 50, 75, 95)}
