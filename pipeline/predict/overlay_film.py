"""A film with the outlines of what was found: drawn fast, encoded as H.264 under the source's own time stamps.

Shapes: h w the film's size. Needs the extra `video` (PyAV).
"""

from __future__ import annotations

import functools
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import maximum_filter, minimum_filter

from polyp_difom.cache.errors import RunError
from polyp_difom.pipeline.overlays import PREDICTION, RIM

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

_CLOCK_RATE = 90_000  # ticks a second of the written film: whole for 24, 25, 30, 50, 60 frames a second and 1001ths
_BT709 = 1  # code of this colour space (ITU-T H.273), said in the file so that players show the same colours


def drawn(image: NDArray[np.uint8], mask: NDArray[np.bool_], caption: str) -> NDArray[np.uint8]:
    """A copy of the frame [h, w, 3] with the mask's outline, solid so that it does not flicker, and a caption in a corner."""
    result = image.copy()
    if mask.any():
        line = max(1, round(min(mask.shape) / 150))
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        pad = line + 1
        window = np.s_[max(0, rows[0] - pad) : rows[-1] + pad + 1, max(0, columns[0] - pad) : columns[-1] + pad + 1]
        inside = mask[window].astype(np.uint8)
        result[window][maximum_filter(inside, 2 * line + 1) > inside] = RIM
        result[window][inside > minimum_filter(inside, 2 * line + 1)] = PREDICTION
    font = _font(max(9, image.shape[0] // 36))
    _, _, right, bottom = font.getbbox(caption)
    label = Image.new("RGB", (round(right) + 8, round(bottom) + 6))
    ImageDraw.Draw(label).text((4, 2), caption, (240, 240, 240), font)
    strip = np.asarray(label)[: image.shape[0], : image.shape[1]]
    result[: strip.shape[0], : strip.shape[1]] = strip
    return result


@functools.lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))


class FilmWriter:
    """An mp4 that appears under its name when it is closed; times, not a rate, place the frames.

    Raises:
        RunError: it cannot be written.
    """

    def __init__(self, path: Path):
        self._path, self._partial = path, path.with_name(f".{path.name}.partial")
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._last = -1

    def add(self, image: NDArray[np.uint8], seconds: float) -> None:
        """Encode one frame [h, w, 3]; all have the first one's size. Odd sizes grow by one repeated row or column."""
        import av

        height, width = image.shape[:2]
        even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        try:
            stream = self._stream or self._begin(even.shape[1], even.shape[0])
            frame = av.VideoFrame.from_ndarray(even, format="rgb24").reformat(format="yuv420p", dst_colorspace="ITU709")
            self._last = max(self._last + 1, round(seconds * _CLOCK_RATE))  # two frames of one moment: keep both
            frame.pts, frame.time_base = self._last, Fraction(1, _CLOCK_RATE)
            cast("OutputContainer", self._container).mux(stream.encode(frame))
        except (av.error.FFmpegError, OSError) as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Write what the encoder still holds, and the index; then the film gets its name."""
        import av

        if self._container is None or self._stream is None:
            return
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._partial.replace(self._path)
        except (av.error.FFmpegError, OSError) as error:
            with suppress(OSError):
                self._partial.unlink()
            raise self._refused(error) from error

    def _begin(self, width: int, height: int) -> VideoStream:
        import av

        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(f"file:{self._partial.absolute()}", "w", format="mp4")
        stream = self._container.add_stream("libx264", options={"preset": "veryfast", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, _CLOCK_RATE)
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = 1  # 16..235, as the pixels are
        self._stream = stream
        return stream

    def _refused(self, error: Exception) -> RunError:
        return RunError(
            "cannot write the film", where=self._path, got=getattr(error, "strerror", None) or error,
            remedy="free some space, or write elsewhere",
        )  # fmt: skip
