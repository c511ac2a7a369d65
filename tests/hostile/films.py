"""DICOM files and films: odd headers, damage, and playlists that name other files."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from .corpus import Case, damaged, gradient

EXPLICIT, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
GREY = gradient()[..., 0]


def dicom_bytes(values: bytes = GREY.tobytes(), syntax: str = EXPLICIT, deflate: bool = False, **changes: object) -> bytes:
    """A minimal 8-bit grey DICOM file; `changes` are numbers (US) or text (by tag below), None leaves an element out."""
    header: dict[str, tuple[int, int, str, object]] = {
        "samples": (0x28, 0x02, "US", 1), "kind": (0x28, 0x04, "CS", "MONOCHROME2"), "frames": (0x28, 0x08, "IS", "1"),
        "rows": (0x28, 0x10, "US", 16), "columns": (0x28, 0x11, "US", 24), "allocated": (0x28, 0x100, "US", 8),
        "stored": (0x28, 0x101, "US", 8), "high": (0x28, 0x102, "US", 7), "signed": (0x28, 0x103, "US", 0),
        "center": (0x28, 0x1050, "DS", None), "width": (0x28, 0x1051, "DS", None),
        "intercept": (0x28, 0x1052, "DS", None), "slope": (0x28, 0x1053, "DS", None),
    }  # fmt: skip
    body = b""
    for name, (group, element, kind, value) in header.items():
        value = changes.get(name, value)
        if value is not None:
            body += _element(group, element, kind, struct.pack("<H", value) if kind == "US" else _even(str(value)))
    body += struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, len(values)) + values
    meta = _element(2, 0x10, "UI", _even(syntax, "\0"))
    if deflate:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        body = packer.compress(body) + packer.flush()
    return bytes(128) + b"DICM" + _element(2, 0, "UL", struct.pack("<I", len(meta))) + meta + body


def _element(group: int, element: int, kind: str, data: bytes) -> bytes:
    return struct.pack("<HH2sH", group, element, kind.encode(), len(data)) + data


def _even(text: str, pad: str = " ") -> bytes:
    return (text + pad * (len(text) % 2)).encode()


def dicom_cases(folder: Path) -> list[Case]:
    """DICOM files, written below `folder`."""
    folder.mkdir()
    whole = dicom_bytes()
    refused = {
        "empty": b"", "preamble": bytes(128) + b"DICM", "garbage": np.random.default_rng(1).bytes(2000), "half": whole[: len(whole) // 2],
        "deflated-bomb": dicom_bytes(bytes(200_000_000), DEFLATED, deflate=True), "deflated": dicom_bytes(syntax=DEFLATED, deflate=True),
        "giant": dicom_bytes(rows=65535, columns=65535), "zero-rows": dicom_bytes(rows=0), "no-rows": dicom_bytes(rows=None),
        "zero-columns": dicom_bytes(columns=0), "many-samples": dicom_bytes(samples=65535), "two-samples": dicom_bytes(samples=2),
        "three-grey-samples": dicom_bytes(GREY.tobytes() * 3, samples=3), "zero-bits": dicom_bytes(stored=0),
        "odd-bits": dicom_bytes(allocated=13), "many-bits": dicom_bytes(allocated=65535, stored=65535), "kind": dicom_bytes(kind="HSV"),
        "more-frames": dicom_bytes(frames="1000000000"), "no-pixels": dicom_bytes(b""), "short": dicom_bytes(GREY.tobytes()[:10]),
        "slope-nan": dicom_bytes(slope="nan", intercept="0"), "slope-inf": dicom_bytes(slope="1e400", intercept="0"),
        "slope-zero": dicom_bytes(slope="0", intercept="0"), "window-nan": dicom_bytes(center="nan", width="nan"),
        "unknown-syntax": dicom_bytes(syntax="1.2.3"), "jpeg-syntax": dicom_bytes(syntax="1.2.840.10008.1.2.4.50"),
        "rle-syntax": dicom_bytes(syntax="1.2.840.10008.1.2.5"), "film-syntax": dicom_bytes(syntax="1.2.840.10008.1.2.4.102"),
    }  # fmt: skip
    cases = [Case("DICOM", folder / f"{name}.dcm", "refused") for name in refused]
    cases += [Case("DICOM", folder / f"noise-{seed}.dcm", "either") for seed in range(10)]
    cases.append(Case("DICOM", folder / "whole.dcm", "read", np.repeat(GREY[..., None], 3, axis=2)))
    contents = [*refused.values(), *(damaged(whole, seed) for seed in range(10)), whole]
    for case, data in zip(cases, contents, strict=True):
        case.path.write_bytes(data)
    return cases


def film_cases(folder: Path) -> list[Case]:
    """Films, written below `folder`; an intact one lies beside it, for playlists to name."""
    import av

    folder.mkdir()
    other = folder.parent / "secret.ts"
    with av.open(str(other), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(gradient(48, 64), format="rgb24")))
        container.mux(stream.encode(None))
    whole = other.read_bytes()
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n".encode()
    distant = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    refused = {
        "empty.mp4": b"", "garbage.mp4": np.random.default_rng(2).bytes(5000), "playlist.mp4": playlist, "playlist.ts": playlist,
        "distant.mp4": distant, "concat.mkv": f"ffconcat version 1.0\nfile {other.name}\n".encode(),
        "session.mp4": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
        "manifest.mp4": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>http://127.0.0.1:9/</BaseURL></MPD>',
        "sound.avi": b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0data\0\0\0\0", "page.webm": b"<html></html>",
        "box.mp4": struct.pack(">I4sIQ", 1, b"ftyp", 0, 2**60), "picture.mp4": b"\xff\xd8\xff\xd9", "text.mkv": b"\x1aE\xdf\xa3" + bytes(200),
    }  # fmt: skip
    cases = [Case("film", folder / name, "refused") for name in refused]
    cases += [Case("film", folder / f"noise-{seed}.ts", "either") for seed in range(4)]
    cases += [Case("film", folder / "whole.ts", "read"), Case("film", folder / "half.ts", "either")]
    contents = [*refused.values(), *(damaged(whole, seed, 60) for seed in range(4)), whole, whole[: len(whole) // 2]]
    for case, data in zip(cases, contents, strict=True):
        case.path.write_bytes(data)
    return cases
