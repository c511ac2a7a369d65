"""Masks and probability maps that any tool wrote: their files, and the names that tools give to data sets."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyp_difom.cache.errors import DataError
from polyp_difom.pipeline.data.frames import decode, read_bytes

_SETS = (
    frozenset({"kvasirseg", "kvasir"}),
    frozenset({"cvcclinicdb", "clinicdb"}),
    frozenset({"cvccolondb", "colondb"}),
    frozenset({"etislarib", "etislaribpolypdb", "etis"}),
)
"""Names that one data set goes by, in lower case without punctuation."""


def read_map(path: Path) -> NDArray[np.float32]:
    """Lesion probability, float32 [h, w] in 0..1: a pixel's value over the highest of its format (1, 255 or 65535).

    Grey, palette and colour files whose channels are equal are read; alpha is dropped.

    Raises:
        DataError: missing, truncated, undecodable, a colour picture, floating point, or values beyond 16 bits.
    """
    image = decode(read_bytes(path), path)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise _unfit(path, f"values from {values.min()} to {values.max()}")
        return values.astype(np.float32) / np.float32(65535)
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L")).astype(np.float32) / np.float32(255)
    if image.mode not in ("P", "PA", "RGB", "RGBA", "RGBX"):
        raise _unfit(path, f"mode {image.mode}")
    channels = np.asarray(image.convert("RGB"))
    if (channels != channels[..., :1]).any():
        raise _unfit(path, "a colour picture")
    return channels[..., 0].astype(np.float32) / np.float32(255)


def names_of_set(name: str) -> frozenset[str]:
    """All names of the data set that goes by `name`."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower()) or name
    return next((names for names in _SETS if plain in names), frozenset({plain}))


def _unfit(path: Path, got: str) -> DataError:
    wanted = "grey values of 1, 8 or 16 bits, or equal colour channels"
    return DataError("not a mask or probability map", where=path, got=got, wanted=wanted, remedy="save it as an 8-bit grey PNG")
