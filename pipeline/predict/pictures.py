"""Picture files as a stream: what a picture and a source of pictures are, image files, and TIFFs of several pages.

Shapes: h w a picture's own size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polyp_difom.cache.errors import DataError, MissingDependencyError, first_line
from polyp_difom.pipeline.data.frames import as_rgb, loaded, read_image
from polyp_difom.pipeline.data.pairing import printable

_LONGEST_SUFFIX = 16  # characters; a longer one is no file format's


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture to predict.

    Attributes:
        name: names the outputs: a relative path without suffix, unique within one prediction.
        image: uint8 [h, w, 3], RGB, upright.
        source: the file or camera it comes from, as a user would type it.
        file: the picture file, relative to the input that it was found in.
        index: number of the page or frame in its source, from 0; None where the source is a picture file by itself.
        film: name for the outputs of the whole film; empty for pictures of no film.
        seconds: time since the film's first frame; 0 for pictures of no film.
    """

    name: str
    image: NDArray[np.uint8]
    source: str
    file: str
    index: int | None = None
    film: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Found:
    """A file to predict: where it is, its path within the input (used in records), and the name of its outputs."""

    path: Path
    file: str
    name: str

    @property
    def inner(self) -> str:
        """Folder for the outputs of pages and frames; keeps the suffix, so that no other file's outputs can lie there."""
        suffix = printable(self.path.suffix)
        return self.name if self.name.endswith(suffix) else f"{self.name}{suffix[:_LONGEST_SUFFIX]}"


class Source(ABC):
    """A file or camera that yields pictures, one at a time."""

    source: str
    path: Path

    def count(self, every: int) -> int:
        """How many pictures to expect, for the progress bar; 0 if nobody knows."""
        return 1

    @abstractmethod
    def pictures(self, every: int) -> Iterator[Picture]:
        """All pictures, of films every N-th frame.

        Raises:
            DataError: cannot be read, or not to its end; what came before stays valid.
        """


class StillSource(Source):
    """An image file; each page of a TIFF is a picture."""

    def __init__(self, found: Found):
        self._found, self.path, self.source = found, found.path, printable(found.path)

    def pictures(self, every: int) -> Iterator[Picture]:
        """See `Source.pictures`."""
        found = self._found
        pages = _tiff_pages(found.path)
        if pages == 1:
            yield Picture(found.name, read_image(found.path), self.source, found.file)
            return
        for page in range(pages):
            name = f"{found.inner}/{page:04d}"
            yield Picture(name, _read_page(found.path, page), self.source, found.file, index=page)


def _tiff_pages(path: Path) -> int:
    """Pages of a TIFF; 1 for every other file, `read_image` says what is wrong with that."""
    try:
        with Image.open(path, formats=["TIFF"]) as image:
            return getattr(image, "n_frames", 1)
    except Exception:  # the decoder raises whatever a damaged file leads it to
        return 1


def _read_page(path: Path, page: int) -> NDArray[np.uint8]:
    try:
        with Image.open(path, formats=["TIFF"]) as image:
            image.seek(page)
            return np.array(as_rgb(loaded(image, path), path))
    except DataError:
        raise
    except Exception as error:  # as above
        raise DataError(
            f"cannot decode page {page}", where=path, got=first_line(error),
            remedy="replace the file by an intact copy; the pages before are done",
        ) from error  # fmt: skip


def need(module: str, extra: str) -> None:
    """Raise MissingDependencyError unless `module` is installed; says which extra brings it."""
    if find_spec(module) is None:
        raise MissingDependencyError(
            f"reading this input needs the package {module!r}", remedy=f"pip install 'polyp-difom[{extra}]'"
        )
