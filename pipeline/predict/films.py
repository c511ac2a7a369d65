"""Films and cameras as a stream of pictures: decoded one frame at a time, turned upright, with their time stamps.

Needs the extra `video` (PyAV).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from polyp_difom.cache.errors import DataError
from polyp_difom.pipeline.data.frames import refuse_giant
from polyp_difom.pipeline.data.pairing import printable
from polyp_difom.pipeline.predict.pictures import Found, Picture, Source, need

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

_OPENING = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,asf,flv,ogg,mxf",
}
"""Options of FFmpeg: playlists and the like, which name other files and addresses to read, are no films here."""
_GUESSED_RATE = 25  # frames a second, where a film carries no clock at all
_SLACK = 0.5  # seconds that a film may end before its announced end


@dataclass
class _Tally:
    """What came of reading a film so far; `end` is the time of the last frame's end, seconds."""

    frames: int = 0
    damaged: int = 0
    end: float = 0.0


class FilmSource(Source):
    """A film, or a camera that films until it is stopped.

    Args:
        found: file or device; its names.
        open_container: opens it with PyAV.
        live: a camera: no known end.
    """

    def __init__(self, found: Found, open_container: Callable[[], InputContainer], live: bool = False):
        self._found, self.path, self.source = found, found.path, printable(found.path)
        self._open_container, self._live = open_container, live

    def count(self, every: int) -> int:
        """See `Source.count`."""
        if self._live:
            return 0
        try:
            with self._open() as container:
                stream = container.streams.video[0]
                frames = stream.frames or round(_announced_seconds(container) * float(stream.average_rate or _GUESSED_RATE))
                return -(-frames // every)
        except DataError:
            return 0

    def pictures(self, every: int) -> Iterator[Picture]:
        """See `Source.pictures`."""
        tally = _Tally()
        first: float | None = None
        shape: tuple[int, ...] | None = None
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"max_pixels": str(Image.MAX_IMAGE_PIXELS)}  # a film may change its size
            refuse_giant(stream.width, stream.height, self.path)
            step = 1 / float(stream.average_rate or _GUESSED_RATE)
            for index, frame in enumerate(_frames(container, stream, tally)):
                seconds = index * step if frame.time is None else frame.time
                first = seconds if first is None else first
                tally.frames, tally.end = index + 1, max(tally.end, seconds - first + step)
                if index % every:
                    continue
                # `rotation` is counterclockwise, as is rot90's
                image = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
                shape = shape or image.shape
                if image.shape != shape:
                    raise self._broken(f"the frames' size changes to {image.shape[1]} x {image.shape[0]} after", index)
                name = f"{self._found.inner}/{index:06d}"
                yield Picture(name, image, self.source, self._found.file, index, self._found.name, seconds - first)
            self._require_whole(tally, 0.0 if self._live else _announced_seconds(container))

    def _open(self) -> InputContainer:
        import av

        try:
            container = self._open_container()
        except (av.error.FFmpegError, OSError) as error:
            raise DataError(
                "cannot open the camera" if self._live else "cannot open the film", where=self.source, got=_reason(error),
                remedy="plug it in, and end other programs that use it" if self._live else "replace it by an intact copy",
            ) from error  # fmt: skip
        if not container.streams.video:
            container.close()
            raise DataError("no pictures in the film", where=self.source, got="no video stream", wanted="a film")
        return container

    def _require_whole(self, tally: _Tally, announced: float) -> None:
        if not tally.frames:
            raise DataError("no frame of the film can be decoded", where=self.source, remedy="replace it by an intact copy")
        if tally.damaged:
            raise self._broken(f"{tally.damaged} damaged places;", tally.frames)
        if tally.end < announced - max(_SLACK, 0.05 * announced):
            raise self._broken(f"ends at {tally.end:.1f} of {announced:.1f} seconds, after", tally.frames)
        if self._live:
            raise self._broken("the camera went away after", tally.frames)

    def _broken(self, how: str, frames: int) -> DataError:
        return DataError(
            "the film cannot be read as a whole", where=self.source, got=f"{how} {frames} frames",
            remedy="what could be read is kept; replace the film by an intact copy for the rest",
        )  # fmt: skip


def film(found: Found) -> FilmSource:
    """A film file."""
    need("av", "video")
    import av

    # the explicit protocol: a colon in the name is part of the name
    return FilmSource(found, lambda: av.open(f"file:{found.path.absolute()}", container_options=_OPENING))


def film_in_memory(found: Found, read: Callable[[], bytes]) -> FilmSource:
    """A film that lies inside another file; `read` cuts it out."""
    need("av", "video")
    import av

    return FilmSource(found, lambda: av.open(io.BytesIO(read()), "r", container_options=_OPENING))


def camera(device: str) -> FilmSource:
    """A camera of Linux, "/dev/video0"."""
    need("av", "video")
    import av

    found = Found(Path(device), device, camera_name(device))
    return FilmSource(found, lambda: av.open(device, format="v4l2"), live=True)


def camera_name(device: str) -> str:
    """ "/dev/video0" -> "camera0"."""
    return "camera" + device.removeprefix("/dev/video")


def _frames(container: InputContainer, stream: VideoStream, tally: _Tally) -> Iterator[VideoFrame]:
    """Decoded frames; a damaged packet is counted and skipped, a damaged container ends the film."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError):
            tally.damaged += 1
            return
        if packet is None:
            return
        try:
            decoded = packet.decode()
        except av.error.EOFError:
            return
        except av.error.FFmpegError:
            tally.damaged += 1
            continue
        for frame in decoded:
            tally.damaged += bool(frame.is_corrupt)
            yield frame


def _announced_seconds(container: InputContainer) -> float:
    """Duration that the file announces for its pictures; 0 where it announces none of its own."""
    stream = container.streams.video[0]
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    alone = len(container.streams) == 1  # else the longest stream may be the sound
    return container.duration / 1e6 if alone and container.duration is not None else 0.0


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
