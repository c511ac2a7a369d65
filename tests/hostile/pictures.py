"""Image files: what is odd and must be read as it is, and what is bad and must be refused."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from .corpus import Case, bmp, damaged, gradient, grey_tiff, png, png_chunk, tiff, truncations

LOSSY = 12.0
ORIENTATION = 0x0112


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """The bytes that Pillow writes."""
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def picture_cases(folder: Path) -> list[Case]:
    """All image files, written below `folder`."""
    cases = []
    for part in (
        _formats, _depths, _orientations, _disguises, _long, _not_images, _cut, _empty, _bombs, _several, _unfit, _noise,
    ):  # fmt: skip
        place = folder / part.__name__.strip("_")
        place.mkdir(parents=True)
        for name, data, pixels, tolerance in part():
            (place / name).write_bytes(data)
            expected = "either" if part is _noise else "refused" if pixels is None else "read"
            cases.append(Case(f"picture: {place.name.replace('_', ' ')}", place / name, expected, pixels, tolerance))
    return cases + _no_files(folder / "no files")


Made = Iterator[tuple[str, bytes, NDArray[np.uint8] | None, float]]


def _formats() -> Made:
    """Everything that a data set may hold, in every container."""
    values = gradient()
    image = Image.fromarray(values)
    for name, form, options, tolerance in (
        ("a.png", "PNG", {}, 0.0), ("a.bmp", "BMP", {}, 0.0), ("a.ppm", "PPM", {}, 0.0),
        ("raw.tif", "TIFF", {}, 0.0), ("lzw.tif", "TIFF", {"compression": "tiff_lzw"}, 0.0),
        ("zip.tif", "TIFF", {"compression": "tiff_adobe_deflate"}, 0.0), ("packbits.tif", "TIFF", {"compression": "packbits"}, 0.0),
        ("jpeg.tif", "TIFF", {"compression": "jpeg"}, LOSSY), ("big.tif", "TIFF", {"big_tiff": True}, 0.0),
        ("a.webp", "WEBP", {"lossless": True}, 0.0), ("lossy.webp", "WEBP", {"quality": 90}, LOSSY),
        ("a.jp2", "JPEG2000", {"irreversible": False}, 0.0), ("a.jpg", "JPEG", {"quality": 95}, LOSSY),
        ("progressive.jpg", "JPEG", {"quality": 95, "progressive": True}, LOSSY),
        ("444.jpg", "JPEG", {"quality": 95, "subsampling": 0}, LOSSY), ("restart.jpg", "JPEG", {"quality": 95, "restart_marker_rows": 1}, LOSSY),
    ):  # fmt: skip
        yield name, encoded(image, form, **options), values, tolerance
    yield "CAPITALS.PNG", encoded(image, "PNG"), values, 0.0


def _depths() -> Made:
    """Colour spaces, bit depths and transparency."""
    values = gradient()
    image = Image.fromarray(values)
    grey = np.repeat(values[..., :1], 3, axis=2)
    bits = np.where(grey > 127, 255, 0).astype(np.uint8)
    for form, suffix in (("PNG", "png"), ("TIFF", "tif")):
        yield f"grey.{suffix}", encoded(Image.fromarray(values[..., 0]), form), grey, 0.0
        yield f"one-bit.{suffix}", encoded(Image.fromarray(values[..., 0] > 127), form), bits, 0.0
        yield f"16-bit.{suffix}", encoded(Image.fromarray(values[..., 0].astype(np.uint16) * 257), form), grey, 0.0
        rgba = np.dstack([values, values[..., 0]])
        yield f"alpha.{suffix}", encoded(Image.fromarray(rgba), form), values, 0.0
        yield f"grey-alpha.{suffix}", encoded(Image.fromarray(values[..., :2].copy(), "LA"), form), grey, 0.0
        two = Image.fromarray(bits).quantize(2)
        yield f"palette.{suffix}", encoded(two, form), bits, 0.0
    yield "palette-clear.png", encoded(two, "PNG", transparency=bytes([0, 255])), bits, 0.0
    yield "palette.gif", encoded(two, "GIF"), bits, 0.0
    rows = b"".join(b"\0" + row.tobytes() for row in (values.astype(">u2") * 257))
    yield "16-bit-colour.png", png(24, 16, depth=16, data=zlib.compress(rows)), values, 0.0
    yield "16-bit.pgm", b"P5 24 16 65535\n" + (values[..., 0].astype(">u2") * 257).tobytes(), grey, 0.0
    yield "cmyk.tif", encoded(image.convert("CMYK"), "TIFF"), values, 1.0
    yield "cmyk.jpg", encoded(image.convert("CMYK"), "JPEG", quality=95), values, LOSSY
    yield "grey.jpg", encoded(Image.fromarray(values[..., 0]), "JPEG", quality=95), grey, LOSSY
    yield "ycbcr.tif", encoded(image.convert("YCbCr"), "TIFF"), values, 2.0


def _orientations() -> Made:
    """A picture that its EXIF tag turns: the tag is obeyed, an unknown one ignored."""
    values = gradient()
    image = Image.fromarray(values)
    turned = {
        1: values, 2: values[:, ::-1], 3: values[::-1, ::-1], 4: values[::-1], 5: values.transpose(1, 0, 2),
        6: np.rot90(values, -1), 7: values[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(values), 9: values,
    }  # fmt: skip
    for number, upright in turned.items():
        exif = Image.Exif()
        exif[ORIENTATION] = number
        for suffix, form, tolerance in (("jpg", "JPEG", LOSSY), ("png", "PNG", 0.0), ("tif", "TIFF", 0.0)):
            yield f"{number}.{suffix}", encoded(image, form, exif=exif), np.ascontiguousarray(upright), tolerance
    jpeg = encoded(image, "JPEG", quality=95)
    looping = b"Exif\0\0II*\0\x08\0\0\0" + b"\0\0\x08\0\0\0"
    for name, exif_bytes in (("garbage", b"Exif\0\0" + b"\xff" * 64), ("looping", looping)):
        block = b"\xff\xe1" + struct.pack(">H", len(exif_bytes) + 2) + exif_bytes
        yield f"{name}.jpg", jpeg[:2] + block + jpeg[2:], values, LOSSY


def _disguises() -> Made:
    """Intact pictures under another suffix, with something else behind them."""
    values = gradient()
    image = Image.fromarray(values)
    bodies = {"PNG": (encoded(image, "PNG"), 0.0), "JPEG": (encoded(image, "JPEG", quality=95), LOSSY)}
    yield "jpeg.png", *_with_pixels(bodies["JPEG"], values)
    yield "png.jpg", *_with_pixels(bodies["PNG"], values)
    yield "tiff.png", encoded(image, "TIFF"), values, 0.0
    yield "webp.jpg", encoded(image, "WEBP", lossless=True), values, 0.0
    for form, (body, tolerance) in bodies.items():
        for name, tail in (("zip", b"PK\x03\x04" + bytes(60)), ("html", b"<script>alert(1)</script>"), ("zeros", bytes(4096))):
            yield f"{form}-{name}.png", body + tail, values, tolerance
    text = png_chunk(b"tEXt", b"Comment\0#!/bin/sh\necho\n")
    head = bodies["PNG"][0]
    yield "script-inside.png", head[:33] + text + head[33:], values, 0.0


def _with_pixels(body: tuple[bytes, float], values: NDArray[np.uint8]) -> tuple[bytes, NDArray[np.uint8], float]:
    return body[0], values, body[1]


def _long() -> Made:
    """As long as JPEG goes, and one pixel longer."""
    for name, height, width in (("wide", 1, 65500), ("tall", 65500, 1)):
        values = gradient(height, width)
        yield f"{name}.png", encoded(Image.fromarray(values), "PNG"), values, 0.0
        yield f"{name}.jpg", encoded(Image.fromarray(values), "JPEG", quality=95), values, LOSSY
        longer = (width + 1, height) if width > 1 else (width, height + 1)
        yield f"{name}-by-one-more.png", png(*longer), None, 0.0
    yield "very-wide.png", png(400_000, 2), None, 0.0


def _not_images() -> Made:
    """Anything else that calls itself a picture; EPS most of all, which an interpreter would run."""
    yield "empty.png", b"", None, 0.0
    yield "null.jpg", b"\0", None, 0.0
    postscript = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 16\n%%EndComments\n(owned) (w) file closefile showpage\n%%EOF\n"
    )
    for name, data in {
        "error-page.jpg": b"<html><body>404 not found</body></html>", "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "eps.png": postscript, "eps.jpg": postscript, "document.png": b"%PDF-1.4\n%%EOF\n", "archive.png": b"PK\x03\x04" + bytes(100),
        "program.png": b"\x7fELF" + bytes(200), "gzip.tif": b"\x1f\x8b\x08" + bytes(50), "json.png": b'{"a": 1}', "text.bmp": b"BM",
        "lfs.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "pickle.png": b"\x80\x04cos\nsystem\n.",
        "noise.jpg": np.random.default_rng(0).bytes(5000), "xbm.png": b"#define a_width 8\n#define a_height 1\nstatic char a_bits[] = {0xff};",
        "psd.png": b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(200), "numpy.png": b"\x93NUMPY\x01\0" + bytes(80),
        "icon.png": encoded(Image.new("RGB", (16, 16)), "ICO"), "targa.png": encoded(Image.new("RGB", (8, 8)), "TGA"),
    }.items():  # fmt: skip
        yield name, data, None, 0.0
    for name, signature in {
        "png": b"\x89PNG\r\n\x1a\n",
        "jpg": b"\xff\xd8\xff",
        "tif": b"II*\0",
        "gif": b"GIF89a",
        "webp": b"RIFF\0\0\0\0WEBP",
    }.items():
        yield f"signature.{name}", signature, None, 0.0
        yield f"signature-and-zeros.{name}", signature + bytes(100), None, 0.0


def _cut() -> Made:
    """Downloads that broke off, and copies with a wrong byte."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    whole = {
        "png": encoded(noise, "PNG"), "jpg": encoded(noise, "JPEG"), "tif": encoded(noise, "TIFF"), "bmp": encoded(noise, "BMP"),
        "webp": encoded(noise, "WEBP", lossless=True), "jp2": encoded(noise, "JPEG2000"), "ppm": encoded(noise, "PPM"),
        "gif": encoded(noise.quantize(), "GIF"), "lzw.tif": encoded(noise, "TIFF", compression="tiff_lzw"),
    }  # fmt: skip
    for suffix, data in whole.items():
        for share, part in truncations(data).items():
            yield f"{share}.{suffix}", part, None, 0.0
    flipped = bytearray(whole["png"])
    flipped[len(flipped) // 2] ^= 1
    yield "one-bit-flipped.png", bytes(flipped), None, 0.0
    yield "wrong-checksum.png", png(24, 16)[:29] + bytes(4) + png(24, 16)[33:], None, 0.0
    yield "no-data.png", png(24, 16, data=b""), None, 0.0
    yield "data-that-is-no-deflate.png", png(24, 16, data=b"\xff" * 40), None, 0.0


def _empty() -> Made:
    """No pixels at all."""
    for width, height in ((0, 0), (0, 8), (8, 0)):
        yield f"{width}x{height}.png", png(width, height), None, 0.0
        yield f"{width}x{height}.bmp", bmp(width, height), None, 0.0
        yield f"{width}x{height}.tif", grey_tiff(width, height, b""), None, 0.0
        yield f"{width}x{height}.ppm", f"P6 {width} {height} 255\n".encode(), None, 0.0
        yield f"{width}x{height}.gif", b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + b";", None, 0.0
        yield f"{width}x{height}.jpg", _resized_jpeg(width, height), None, 0.0


def _resized_jpeg(width: int, height: int) -> bytes:
    """A JPEG whose head tells another size than its data."""
    data = encoded(Image.fromarray(gradient()), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def _bombs() -> Made:
    """Small files that want much memory or time."""
    for side in (9500, 12_000, 30_000, 65_500, 2**31 - 1):
        yield f"head-only-{side}.png", png(side, side, depth=1, colour=0, data=b""), None, 0.0
        yield f"{side}.bmp", bmp(side, side), None, 0.0
        yield f"{side}.tif", grey_tiff(side, side, bytes(8)), None, 0.0
    for side in (9500, 16_000):
        yield f"white-{side}.png", png(side, side, depth=1, colour=0), None, 0.0
    yield "65500.jpg", _resized_jpeg(65500, 65500), None, 0.0
    yield "65535.gif", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";", None, 0.0
    canvas = struct.pack("<I", 16382)[:3]
    yield "canvas.webp", b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X\x0a\0\0\0\0\0\0\0" + canvas + canvas, None, 0.0
    yield "99999.ppm", b"P6 99999 99999 255\n", None, 0.0
    bomb = zlib.compress(bytes(100_000_000), 9)
    for name, chunk in {
        "text": (b"zTXt", b"Comment\0\0" + bomb), "profile": (b"iCCP", b"a\0\0" + bomb), "unicode": (b"iTXt", b"a\0\1\0\0\0" + bomb),
    }.items():  # fmt: skip
        yield f"{name}.png", png(24, 16, chunks=[png_chunk(*chunk)]), None, 0.0
    yield (
        "many-texts.png",
        png(24, 16, chunks=[png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000), 9))] * 80),
        None,
        0.0,
    )
    yield "more-data-than-pixels.png", png(24, 16, data=bomb), np.zeros((16, 24, 3), np.uint8), 0.0
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 40_000, 323: 40_000, 324: 8, 325: 64}
    yield "tile.tif", tiff(tags, zlib.compress(bytes(64))), None, 0.0
    yield "samples.tif", grey_tiff(16, 16, bytes(256), samples=65535), None, 0.0
    yield "strip-length.tif", grey_tiff(16, 16, bytes(8), length=2**31), None, 0.0
    yield "bits.tif", grey_tiff(16, 16, bytes(256), bits=60_000), None, 0.0


def _several() -> Made:
    """Several pictures in one file."""
    first, second = Image.fromarray(gradient()), Image.fromarray(255 - gradient())
    for suffix, form in {"gif": "GIF", "png": "PNG", "webp": "WEBP", "tif": "TIFF", "mpo": "MPO"}.items():
        yield f"two.{suffix.replace('mpo', 'jpg')}", encoded(first, form, save_all=True, append_images=[second]), None, 0.0


def _unfit() -> Made:
    """Intact, but no 8- or 16-bit picture."""
    values = gradient()[..., 0].astype(np.float32)
    for name, change in {"float": 1.0, "nan": np.nan, "infinite": np.inf}.items():
        values[0, 0] = change
        yield f"{name}.tif", encoded(Image.fromarray(values), "TIFF"), None, 0.0
    yield "negative.tif", encoded(Image.fromarray(np.full((8, 8), -5, np.int32)), "TIFF"), None, 0.0
    yield "32-bit.tif", encoded(Image.fromarray(np.full((8, 8), 70_000, np.int32)), "TIFF"), None, 0.0
    lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    yield "lab.tif", encoded(ImageCms.applyTransform(Image.fromarray(gradient()), lab), "TIFF"), gradient(), LOSSY
    yield "five-samples.tif", grey_tiff(4, 4, bytes(80), samples=5), None, 0.0
    yield "no-size.tif", tiff({258: 8, 262: 1}), None, 0.0
    yield "unknown-compression.tif", grey_tiff(4, 4, bytes(16), compression=77), None, 0.0
    yield "offset-beyond-the-end.tif", grey_tiff(4, 4, bytes(16), offset=2**31), None, 0.0


def _noise() -> Made:
    """Files with bits flipped anywhere: read or refused, and nothing else."""
    image = Image.fromarray(gradient())
    bodies = {
        "png": encoded(image, "PNG"), "jpg": encoded(image, "JPEG"), "tif": encoded(image, "TIFF", compression="tiff_lzw"),
        "webp": encoded(image, "WEBP"), "jp2": encoded(image, "JPEG2000"), "gif": encoded(image.quantize(), "GIF"), "bmp": encoded(image, "BMP"),
    }  # fmt: skip
    for suffix, data in bodies.items():
        for seed in range(12):
            yield f"{seed}.{suffix}", damaged(data, seed), None, 0.0


def _no_files(folder: Path) -> list[Case]:
    """What carries a picture's name and is no file: reading it must not hang."""
    folder.mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "dangling.png").symlink_to(folder / "nothing")
    (folder / "loop.png").symlink_to(folder / "loop-back.png")
    (folder / "loop-back.png").symlink_to(folder / "loop.png")
    (folder / "zeros.png").symlink_to("/dev/zero")
    (folder / "pipe-link.png").symlink_to(folder / "pipe.png")
    with (folder / "sparse.png").open("wb") as file:
        file.truncate(1 << 36)
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(folder)  # the name of a socket has at most 107 bytes
        try:
            listener.bind("socket.png")
        finally:
            os.chdir(here)
    (folder / "missing.png").unlink(missing_ok=True)
    names = [*sorted(path.name for path in folder.iterdir()), "missing.png"]
    return [Case("picture: no files", folder / name, "refused") for name in names]
