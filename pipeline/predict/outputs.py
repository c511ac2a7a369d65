"""What is written of each prediction: pictures and a table; one class a format, found by its name.

Shapes: h w the picture's own size; nothing is written at another.
"""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polyp_difom.cache.errors import RunError
from polyp_difom.pipeline.files import write_bytes
from polyp_difom.pipeline.overlays import overlay
from polyp_difom.pipeline.predict.clock import Clock
from polyp_difom.pipeline.predict.overlay_film import FilmWriter, drawn
from polyp_difom.pipeline.predict.pictures import Picture
from polyp_difom.pipeline.predict.regions import Region
from polyp_difom.pipeline.registry import Registry


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the network says of one picture.

    Attributes:
        probability: float32 [h, w] in 0..1; the mean over the flips where there are any.
        uncertainty: float32 [h, w], standard deviation over the flips; None without them.
        mask: bool [h, w], probability at or above the threshold.
        seconds: the network's time for it.
    """

    picture: Picture
    probability: NDArray[np.float32]
    uncertainty: NDArray[np.float32] | None
    mask: NDArray[np.bool_]
    regions: list[Region]
    seconds: float


class Output(ABC):
    """One file format below an output folder.

    Args:
        folder: the output folder, which exists.
        clock: books "draw", "encode" and "write"; says how fast the work goes.
        model: name of the network.
    """

    def __init__(self, folder: Path, clock: Clock, model: str):
        self.folder, self.clock, self.model = folder, clock, model

    @abstractmethod
    def add(self, prediction: Prediction) -> None:
        """Write one prediction; RunError where the disk refuses."""

    def close(self) -> None:  # noqa: B027
        """Finish what was begun; also after an interrupt."""

    def write_png(self, file: str, values: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
        """Write one picture below the folder, lossless; RunError where the disk refuses."""
        with self.clock.section("write"):
            encoded = io.BytesIO()
            Image.fromarray(values).save(encoded, "png", compress_level=1)
            write_bytes(self.folder / file, encoded.getvalue())


OUTPUTS: Registry[type[Output]] = Registry("output", "polyp_difom.pipeline.predict")


class PartialText:
    """A text file that grows line by line under another name, and gets its own when it is whole."""

    def __init__(self, path: Path):
        self._path, self._partial = path, path.with_name(f".{path.name}.partial")
        try:
            self._file: TextIO = self._partial.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise self._refused(error) from error

    def write(self, text: str) -> None:
        """Append; RunError where the disk refuses."""
        try:
            self._file.write(text)
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Rename."""
        try:
            self._file.close()
            self._partial.replace(self._path)
        except OSError as error:
            with suppress(OSError):
                self._partial.unlink()
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> RunError:
        return RunError("cannot write", where=self._path, got=error.strerror, remedy="free some space, or write elsewhere")


class Table(Output):
    """predictions.csv: one row a picture, in the order of prediction."""

    COLUMNS = ("name", "source", "frame", "time", "width", "height", "lesion_share", "regions", "boxes",
               "max_probability", "mean_probability", "uncertainty", "seconds")  # fmt: skip

    def __init__(self, folder: Path, clock: Clock, model: str):
        super().__init__(folder, clock, model)
        self._file = PartialText(folder / "predictions.csv")
        self._row(self.COLUMNS)

    def add(self, prediction: Prediction) -> None:
        """Boxes are `left top width height`, separated by `;`; the mean probability is that of the lesion, if there is one."""
        picture, probability, mask = prediction.picture, prediction.probability, prediction.mask
        self._row(
            (
                _as_text(picture.name), _as_text(picture.source),
                "" if picture.index is None else picture.index,
                f"{picture.seconds:.3f}" if picture.film else "",
                mask.shape[1], mask.shape[0], f"{mask.mean():.6f}", len(prediction.regions),
                "; ".join(" ".join(map(str, region.box)) for region in prediction.regions),
                f"{probability.max():.4f}",
                f"{probability[mask].mean():.4f}" if mask.any() else "",
                "" if prediction.uncertainty is None else f"{prediction.uncertainty.mean():.4f}",
                f"{prediction.seconds:.4f}",
            )
        )  # fmt: skip

    def close(self) -> None:
        """See `Output.close`."""
        self._file.close()

    def _row(self, values: tuple[object, ...]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(values)
        self._file.write(line.getvalue())


@OUTPUTS.register("mask")
class Masks(Output):
    """masks/<name>.png: 0 and 255."""

    def add(self, prediction: Prediction) -> None:
        """See `Output.add`."""
        self.write_png(f"masks/{prediction.picture.name}.png", prediction.mask.astype(np.uint8) * 255)


@OUTPUTS.register("probability")
class Probabilities(Output):
    """probabilities/<name>.png: 16 bits, 65535 is 1."""

    def add(self, prediction: Prediction) -> None:
        """See `Output.add`."""
        self.write_png(f"probabilities/{prediction.picture.name}.png", _16_bits(prediction.probability))


@OUTPUTS.register("uncertainty")
class Uncertainties(Output):
    """uncertainty/<name>.png: 16 bits, 65535 is a standard deviation of 1 (0.5 is the largest there can be)."""

    def add(self, prediction: Prediction) -> None:
        """See `Output.add`."""
        assert prediction.uncertainty is not None  # noqa: S101  (settings without flips are refused)
        self.write_png(f"uncertainty/{prediction.picture.name}.png", _16_bits(prediction.uncertainty))


@OUTPUTS.register("overlay")
class Overlays(Output):
    """overlays/<name>.jpg for single pictures; overlays/<film>.mp4 for films, with the measured speed in a corner."""

    _film: FilmWriter | None = None
    _name = ""

    def add(self, prediction: Prediction) -> None:
        """See `Output.add`."""
        picture = prediction.picture
        if not picture.film:
            with self.clock.section("draw"):
                image = overlay(picture.image, None, prediction.mask)
            with self.clock.section("write"):
                encoded = io.BytesIO()
                Image.fromarray(image).save(encoded, "jpeg", quality=90)
                write_bytes(self.folder / "overlays" / f"{picture.name}.jpg", encoded.getvalue())
            return
        if picture.film != self._name:
            self.close()
            self._film, self._name = FilmWriter(self.folder / "overlays" / f"{picture.film}.mp4"), picture.film
        assert self._film is not None  # noqa: S101  (opened with its source)
        with self.clock.section("draw"):
            rates = self.clock.rates()
            pace = f"{self.clock.pace():.1f} frames/s (network {rates['network']:.1f})" if rates else "frames/s: ..."
            image = drawn(picture.image, prediction.mask, pace)
        with self.clock.section("encode"):
            self._film.add(image, picture.seconds)

    def close(self) -> None:
        """See `Output.close`."""
        if self._film is not None:
            self._film.close()
            self._film = None


def _as_text(path: str) -> str:
    """The same path, so that no spreadsheet takes it for a formula."""
    return f"./{path}" if path.startswith(("=", "+", "-", "@")) else path


def _16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    return np.round(values * 65535).astype(np.uint16)
