"""From an image file to a squared frame, from a mask file to foreground; and the flips that a store keeps as views.

Shapes: H W original height and width, S frame side, h w any two last axes.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from polyp_difom.cache.errors import DataError, UsageError, first_line
from polyp_difom.pipeline.data.pairing import Pair

THRESHOLD = 127  # a mask value above it is foreground: JPEG masks are not binary
VIEWS = ("identity", "hflip", "vflip", "rot180")

_AXES: dict[str, tuple[int, ...]] = {"identity": (), "hflip": (-1,), "vflip": (-2,), "rot180": (-2, -1)}
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded, whatever a file is called. Pillow knows more: EPS among them, which it gives to an interpreter to run."""
LARGEST_FILE = 1 << 30
"""Bytes."""
LONGEST_SIDE = 65_500
"""Pixels; what JPEG, in which overlays are written, can hold."""
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF tags

# what Pillow warns of is either refused here or of no harm; `catch_warnings` would not be safe in threads
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True, eq=False)
class Frame:
    """One squared frame: the whole image resized to S x S, nothing cropped, nothing padded.

    Attributes:
        image: uint8 [3, S, S], RGB.
        mask: uint8 [S, S] of 0 and 1.
        height: of the original image after its EXIF orientation, pixels.
        width: likewise.
        sha256: hex digest of the image file's bytes.
        mask_sha256: likewise of the mask file's.
        pixel_sha256: likewise of the decoded pixels: the same picture in another file format has the same.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    height: int
    width: int
    sha256: str
    mask_sha256: str
    pixel_sha256: str


def read_image(path: Path) -> NDArray[np.uint8]:
    """RGB image, uint8 [H, W, 3], EXIF orientation applied, alpha dropped.

    Raises:
        DataError: missing, truncated, undecodable, animated or too large.
    """
    return np.array(as_rgb(decode(read_bytes(path), path), path))


def pixel_digest(image: NDArray[np.uint8]) -> str:
    """sha256 (hex) of a decoded picture [H, W, 3] and its shape."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def read_mask_values(path: Path) -> NDArray[np.uint8]:
    """Mask before thresholding, uint8 [H, W]: grey, or the largest of R, G and B for a colour or palette mask.

    Raises:
        DataError: as `read_image`.
    """
    return _mask_values(read_bytes(path), path)


def _mask_values(data: bytes, path: Path) -> NDArray[np.uint8]:
    image = decode(data, path)
    if image.mode in ("1", "L", "LA"):
        return np.array(image.convert("L"))
    return np.asarray(as_rgb(image, path)).max(axis=-1)


def binarize(values: NDArray[np.uint8], path: Path, expected_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Foreground of a mask, bool [H, W]: values above 127. All zero is legal: a frame without a lesion.

    Raises:
        DataError: another size than the image's, or nothing but values of 127 and less, as class labels would be.
    """
    if values.shape != tuple(expected_hw):
        height, width = values.shape
        raise DataError(
            "the mask is not of its image's size",
            where=path,
            got=f"{height} x {width} (height x width)",
            wanted=f"{expected_hw[0]} x {expected_hw[1]}, the image's",
            remedy="export the mask at the image's size",
        )
    highest = int(values.max())
    if 0 < highest <= THRESHOLD:
        raise DataError(
            "the mask looks like class labels",
            where=path,
            got=f"highest value {highest}",
            wanted="0 for background, 255 for lesion",
            remedy="multiply the mask so that lesion pixels are 255",
        )
    return values > THRESHOLD


def read_mask(path: Path, expected_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Foreground, bool [H, W], of the mask of an image of `expected_hw` = (H, W).

    Raises:
        DataError: as `read_image` and `binarize`.
    """
    return binarize(read_mask_values(path), path, expected_hw)


def read_frame(pair: Pair, size: int) -> Frame:
    """The pair squared to `size` x `size`: image bilinear with antialiasing, mask likewise on 0 and 255, then > 127.

    Raises:
        DataError: as `read_image` and `binarize`.
        UsageError: `size` below 1.
    """
    if size < 1:
        raise UsageError("the frame side must be positive", where="size", got=size, wanted="at least 1")
    data = read_bytes(pair.image)
    image = as_rgb(decode(data, pair.image), pair.image)
    width, height = image.size
    mask_data = read_bytes(pair.mask)
    foreground = binarize(_mask_values(mask_data, pair.mask), pair.mask, (height, width))
    # Pillow's resize filters over the whole support when it shrinks: antialiased by construction
    squared = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))  # [S, S, 3]
    soft = Image.fromarray(foreground.astype(np.uint8) * 255).resize((size, size), Image.Resampling.BILINEAR)
    return Frame(
        image=np.ascontiguousarray(squared.transpose(2, 0, 1)),
        mask=(np.asarray(soft) > THRESHOLD).astype(np.uint8),
        height=height,
        width=width,
        sha256=hashlib.sha256(data).hexdigest(),
        mask_sha256=hashlib.sha256(mask_data).hexdigest(),
        pixel_sha256=pixel_digest(np.asarray(image)),
    )


def views(count: int) -> tuple[str, ...]:
    """The first `count` views: 1 (identity), 2 (and hflip) or 4 (all).

    Raises:
        UsageError: any other count.
    """
    if count not in (1, 2, 4):
        raise UsageError("no such number of views", where="--views", got=count, wanted="1, 2 or 4")
    return VIEWS[:count]


def flip_axes(view: str) -> tuple[int, ...]:
    """Axes to reverse for a view of an array [..., h, w]; for numpy's and torch's own flip.

    Raises:
        UsageError: no such view.
    """
    if view not in _AXES:
        raise UsageError("no such view", got=view, wanted=f"one of: {', '.join(VIEWS)}")
    return _AXES[view]


def flip(array: NDArray, view: str) -> NDArray:
    """`array` [..., h, w] under a view, contiguous; every view is its own inverse.

    Raises:
        UsageError: no such view.
    """
    return np.ascontiguousarray(np.flip(array, flip_axes(view)))


def read_bytes(path: Path) -> bytes:
    """A file's bytes; DataError where it cannot be read, is no regular file (it may have no end) or exceeds `LARGEST_FILE`."""
    try:
        # a pipe that nobody writes to must not be waited for
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            about = os.fstat(file.fileno())
            if stat.S_ISREG(about.st_mode) and about.st_size <= LARGEST_FILE:
                return file.read()
    except OSError as error:
        raise DataError(
            "cannot read the file", where=path, got=error.strerror, remedy="check that it exists and may be read"
        ) from error
    if not stat.S_ISREG(about.st_mode):
        raise DataError("not a file", where=path, got="a pipe or a device", remedy="remove it, or point at a file")
    raise DataError(
        "the file is too large to be a frame", where=path, got=f"{about.st_size} bytes", wanted=f"at most {LARGEST_FILE}",
        remedy="shrink it",
    )  # fmt: skip


def decode(data: bytes, path: Path) -> Image.Image:
    """One decoded image, upright; DataError for anything else."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            refuse_giant(image.width, image.height, path)
            if (count := getattr(image, "n_frames", 1)) == 1:
                return loaded(image, path)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path, f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels") from error
    except Exception as error:  # the decoders raise whatever a damaged file leads them to
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = "no known image format" if unknown else first_line(error)
        raise DataError(
            "cannot decode the image",
            where=path,
            got=f"{reason} ({len(data)} bytes)",
            remedy="replace the file by an intact copy",
        ) from error
    raise DataError(
        "the file holds several images", where=path, got=f"{count} images", wanted="one", remedy="save one of them alone"
    )


def loaded(image: Image.Image, path: Path) -> Image.Image:
    """The pixels of an opened image (of its current page), turned as its EXIF orientation says.

    Raises:
        DataError: too large, told before anything is decoded. Any other error is the decoder's.
    """
    refuse_giant(image.width, image.height, path)
    tags = getattr(image, "tag_v2", {})
    refuse_giant(tags.get(_TILE_WIDTH, 1), tags.get(_TILE_LENGTH, 1), path)  # a decoder makes room for a whole tile
    image.load()
    return ImageOps.exif_transpose(image)


def refuse_giant(width: int, height: int, path: Path) -> None:
    """Raise DataError for a picture too large to be a frame, or one without pixels, before it is decoded."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise _too_large(path, f"{width * height} pixels")
    if max(width, height) > LONGEST_SIDE:
        raise _too_large(path, f"{width} x {height} pixels", f"sides of at most {LONGEST_SIDE}")
    if min(width, height) < 1:
        raise DataError("the image is empty", where=path, got=f"{width} x {height} pixels", remedy="replace the file")


def _too_large(path: Path, got: str, wanted: str | None = None) -> DataError:
    wanted = wanted or f"at most {Image.MAX_IMAGE_PIXELS}"
    return DataError("the image is too large to be a frame", where=path, got=got, wanted=wanted, remedy="shrink it")


def as_rgb(image: Image.Image, path: Path) -> Image.Image:
    """Any decoded image as 8-bit RGB; 16-bit grey is divided by 257, so 65535 becomes 255."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            span = f"{values.min()} to {values.max()}"
            raise DataError(
                "grey values beyond 16 bits", where=path, got=span, wanted="0 to 65535", remedy="save it with 8 bits"
            )
        image = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise DataError("floating-point image", where=path, got="mode F", wanted="8 or 16 bits", remedy="save it with 8 bits")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise DataError(
            "colours that cannot be read", where=path, got=f"mode {image.mode}", wanted="grey or RGB", remedy="save it as RGB"
        ) from error
