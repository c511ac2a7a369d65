"""DICOM files as a stream of pictures: grey and colour, one frame or many, or a whole film inside.

Needs the extra `dicom` (pydicom). Which values mean black and white follows DICOM PS3.3, C.11.1 (modality) and C.11.2 (VOI).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from polyp_difom.cache.errors import DataError, first_line
from polyp_difom.pipeline.data.frames import refuse_giant
from polyp_difom.pipeline.data.pairing import printable
from polyp_difom.pipeline.predict.films import film_in_memory
from polyp_difom.pipeline.predict.pictures import Found, Picture, Source, need

if TYPE_CHECKING:
    from pydicom import Dataset


class DicomSource(Source):
    """A DICOM file whose frames are single pictures."""

    def __init__(self, found: Found, frames: int):
        self._found, self.path, self.source, self._count = found, found.path, printable(found.path), frames

    def count(self, every: int) -> int:
        """See `Source.count`."""
        return self._count

    def pictures(self, every: int) -> Iterator[Picture]:
        """See `Source.pictures`."""
        from pydicom import dcmread
        from pydicom.pixels import iter_pixels

        found, index = self._found, 0
        try:
            _refuse_deflated(found.path)
            header = dcmread(found.path, stop_before_pixels=True)
            refuse_giant(header.Columns, header.Rows, found.path)
            if header.SamplesPerPixel not in (1, 3):
                raise _unfit(found.path, f"{header.SamplesPerPixel} samples a pixel", "1 or 3")
            for values in iter_pixels(found.path):
                name = f"{found.inner}/{index:04d}" if self._count > 1 else found.name
                yield Picture(name, _rgb(values, header, found.path), self.source, found.file, index=index)
                index += 1
        except DataError:
            raise
        except Exception as error:  # pydicom and the decoders behind it raise whatever a damaged file leads them to
            raise _unreadable(found, error, index) from error


def dicom(found: Found) -> Source:
    """The source for a DICOM file."""
    need("pydicom", "dicom")
    from pydicom import dcmread
    from pydicom.uid import MPEGTransferSyntaxes

    try:
        _refuse_deflated(found.path)
        header = dcmread(found.path, stop_before_pixels=True)
        frames = int(header.get("NumberOfFrames") or 1)
        is_film = header.file_meta.TransferSyntaxUID in MPEGTransferSyntaxes
    except Exception:  # as above; reading its pictures says what is wrong
        return DicomSource(found, 1)
    if is_film:
        return film_in_memory(found, lambda: _film_inside(found))
    return DicomSource(found, frames)


def _film_inside(found: Found) -> bytes:
    from pydicom import dcmread
    from pydicom.encaps import generate_frames

    try:
        return next(generate_frames(dcmread(found.path).PixelData, number_of_frames=1))
    except Exception as error:  # as above
        raise _unreadable(found, error, 0) from error


def _refuse_deflated(path: Path) -> None:
    """Raise DataError for a file that is compressed as a whole: it unpacks in memory, to up to a thousand times its size."""
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise _unfit(path, DeflatedExplicitVRLittleEndian.name, "any other transfer syntax")


def _unfit(path: Path, got: str, wanted: str) -> DataError:
    return DataError(
        "DICOM pixels that cannot be used",
        where=printable(path),
        got=got,
        wanted=wanted,
        remedy="export it uncompressed, as RGB",
    )


def _unreadable(found: Found, error: Exception, frames: int) -> DataError:
    from pydicom.errors import InvalidDicomError

    reason = "no DICOM header" if isinstance(error, InvalidDicomError) else first_line(error)
    return DataError(
        "cannot read the DICOM file", where=printable(found.path), got=f"{reason} (after {frames} frames)"[:240],
        remedy="replace it by an intact copy, or export it uncompressed",
    )  # fmt: skip


def _rgb(values: NDArray, header: Dataset, path: Path) -> NDArray[np.uint8]:
    """Pixel data [h, w] or [h, w, 3] -> RGB, uint8 [h, w, 3]."""
    from pydicom.pixels import apply_color_lut

    kind = header.PhotometricInterpretation
    if kind in ("MONOCHROME1", "MONOCHROME2") and values.ndim == 2:
        grey = _grey(values, header, path)
        return np.repeat((255 - grey if kind == "MONOCHROME1" else grey)[..., None], 3, axis=2)
    bits = header.BitsStored
    if kind == "PALETTE COLOR":
        values, bits = apply_color_lut(values, header), header.RedPaletteColorLookupTableDescriptor[2]
    if values.ndim != 3 or values.shape[2] != 3 or not kind.startswith(("RGB", "YBR", "PALETTE")):
        raise DataError(
            "DICOM pixels that are neither grey nor colour", where=printable(path), got=f"{kind} {list(values.shape)}",
            wanted="MONOCHROME1, MONOCHROME2, RGB, YBR or PALETTE COLOR", remedy="export it as RGB",
        )  # fmt: skip
    return values if bits == 8 and values.dtype == np.uint8 else _to_8_bits(values, 0, 2**bits - 1, path)


def _grey(values: NDArray, header: Dataset, path: Path) -> NDArray[np.uint8]:
    """Grey values through the file's own rescaling and window (or table), then their whole range to 0..255."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    bits, signed = header.BitsStored, header.PixelRepresentation == 1
    span = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1], np.float64)
    low, high = span * float(header.get("RescaleSlope", 1)) + float(header.get("RescaleIntercept", 0))
    if table := header.get("VOILUTSequence") or header.get("ModalityLUTSequence"):
        low, high = 0, 2 ** table[0].LUTDescriptor[2] - 1
    return _to_8_bits(apply_voi_lut(apply_modality_lut(values, header), header), low, high, path)


def _to_8_bits(values: NDArray, low: float, high: float, path: Path) -> NDArray[np.uint8]:
    if low == high or not np.isfinite([low, high]).all() or not np.isfinite(values).all():
        raise _unfit(path, f"values of {low:g} to {high:g}, or no numbers", "values of a finite range")
    return np.round(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
