"""DICOM: grey both ways round, windows, colour, palettes, many frames, films inside, damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from polyp_difom.cache.errors import DataError
from polyp_difom.pipeline.predict.inputs import find_sources

from .conftest import Write, scene

pydicom = pytest.importorskip("pydicom")

EXPLICIT = "1.2.840.10008.1.2.1"


def write(path: Path, values: np.ndarray, kind: str, frames: int = 1, syntax: str = EXPLICIT, **tags: object) -> Path:
    """A minimal secondary capture."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset: Dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    colour = kind not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    height, width = values.shape[1:3] if frames > 1 else values.shape[:2]
    defaults = {
        "SOPClassUID": meta.MediaStorageSOPClassUID, "SOPInstanceUID": "1.2.3", "Rows": height, "Columns": width,
        "SamplesPerPixel": 3 if colour else 1, "PhotometricInterpretation": kind, "PixelRepresentation": 0,
        "BitsAllocated": 8 * values.dtype.itemsize, "BitsStored": 8 * values.dtype.itemsize,
    }  # fmt: skip
    defaults |= {"PlanarConfiguration": 0} if colour else {}
    defaults |= {"NumberOfFrames": frames} if frames > 1 else {}
    for name, value in (defaults | {"HighBit": (defaults | tags)["BitsStored"] - 1} | tags).items():
        setattr(dataset, name, value)
    if "PixelData" not in tags:
        dataset.PixelData = values.tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def images(path: Path) -> list[np.ndarray]:
    (source,) = find_sources([str(path)])
    return [picture.image for picture in source.pictures(1)]


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_monochrome_1_is_monochrome_2_inverted(tmp_path: Path) -> None:
    (plain,) = images(write(tmp_path / "a.dcm", RAMP, "MONOCHROME2"))
    (inverted,) = images(write(tmp_path / "b.dcm", RAMP, "MONOCHROME1"))
    np.testing.assert_array_equal(plain, np.repeat(RAMP[..., None], 3, axis=2))
    np.testing.assert_array_equal(inverted, 255 - plain)


def test_stored_bits_and_windows_span_black_to_white(tmp_path: Path) -> None:
    twelve = RAMP.astype(np.uint16) * 16
    (whole,) = images(write(tmp_path / "a.dcm", twelve, "MONOCHROME2", BitsStored=12))
    np.testing.assert_allclose(whole[..., 0], RAMP, atol=1)
    (window,) = images(write(tmp_path / "b.dcm", twelve, "MONOCHROME2", BitsStored=12, WindowCenter=1024, WindowWidth=1024))
    assert (window[twelve < 512] == 0).all()
    assert (window[twelve > 1536] == 255).all()
    assert window[4, 0, 0] == pytest.approx(128, abs=2)  # 1024, the centre


def test_rescaled_values_keep_their_span(tmp_path: Path) -> None:
    signed = RAMP.astype(np.int16) - 128
    path = write(
        tmp_path / "a.dcm", signed, "MONOCHROME2", BitsStored=8, PixelRepresentation=1, RescaleSlope=2, RescaleIntercept=-50
    )
    np.testing.assert_array_equal(images(path)[0][..., 0], RAMP)


@pytest.mark.parametrize("kind", ["RGB", "YBR_FULL"])
def test_colour_is_rgb_in_the_end(tmp_path: Path, kind: str) -> None:
    from pydicom.pixels import convert_color_space

    image = scene(16, 24, (4, 12, 4, 12))
    stored = image if kind == "RGB" else convert_color_space(image, "RGB", kind)
    np.testing.assert_allclose(images(write(tmp_path / "a.dcm", stored, kind))[0], image, atol=2)


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    table = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 16] for name in ("Red", "Green", "Blue")}
    table |= {
        f"{name}PaletteColorLookupTableData": (RAMP.ravel().astype(np.uint16) * 257).tobytes() for name in ("Red", "Green")
    }
    table |= {"BluePaletteColorLookupTableData": bytes(512)}
    (image,) = images(write(tmp_path / "a.dcm", RAMP, "PALETTE COLOR", **table))
    np.testing.assert_array_equal(image, np.stack([RAMP, RAMP, np.zeros_like(RAMP)], axis=2))


def test_frames_are_pictures_and_content_counts_without_a_suffix(tmp_path: Path) -> None:
    stack = np.stack([scene(16, 16), scene(16, 16, (4, 12, 4, 12)), scene(16, 16)])
    (source,) = find_sources([str(write(tmp_path / "IM0001", stack, "RGB", frames=3))])
    found = list(source.pictures(1))
    assert [picture.name for picture in found] == ["IM0001/0000", "IM0001/0001", "IM0001/0002"]
    assert source.count(1) == 3
    np.testing.assert_array_equal([picture.image for picture in found], stack)
    write(tmp_path / "folder.dcm", stack[0], "RGB")
    assert len(find_sources([str(tmp_path)])) == 2


def test_a_film_inside_a_dicom_file_is_a_film(tmp_path: Path, write_film: Write) -> None:
    from pydicom.encaps import encapsulate

    film = write_film(tmp_path / "film.mp4", [scene(32, 48)] * 5).read_bytes()
    path = write(
        tmp_path / "a.dcm", scene(32, 48), "YBR_PARTIAL_420", syntax="1.2.840.10008.1.2.4.102", PixelData=encapsulate([film]),
        NumberOfFrames=5,
    )  # fmt: skip
    (source,) = find_sources([str(path)])
    found = list(source.pictures(1))
    assert [picture.seconds for picture in found] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])
    assert {picture.film for picture in found} == {"a"}
    assert found[0].image.shape == (32, 48, 3)


@pytest.mark.parametrize("keep", [10, 200, 500])
def test_a_truncated_file_is_an_error_with_its_path(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "a.dcm", scene(16, 24), "RGB")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"a\.dcm"):
        images(path)


def test_giants_are_refused_before_decoding(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too large"):
        images(write(tmp_path / "a.dcm", scene(16, 24), "RGB", Rows=20_000, Columns=20_000))


def test_a_frame_is_saved_where_annotations_point_at_it(tmp_path: Path, predicted: Callable) -> None:
    totals = predicted(write(tmp_path / "a.dcm", scene(16, 24, (4, 12, 4, 12)), "RGB"), save=("mask", "coco"))
    assert totals.with_lesion == 1
    assert (totals.out / "frames/a.png").is_file()
    assert (totals.out / "masks/a.png").is_file()
