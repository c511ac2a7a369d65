import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyp_difom.cache.errors import DataError, UsageError
from polyp_difom.pipeline.data.frames import VIEWS, flip, flip_axes, read_frame, read_image, read_mask, views
from polyp_difom.pipeline.data.pairing import Pair

RED, BLUE = (200, 10, 20), (10, 20, 200)


@pytest.fixture
def halves() -> Image.Image:
    """6 wide, 4 high: left half red, right half blue."""
    image = Image.new("RGB", (6, 4), RED)
    image.paste(BLUE, (3, 0, 6, 4))
    return image


def grey(values: np.ndarray, path: Path) -> Path:
    Image.fromarray(values).save(path)
    return path


def pair_of(tmp_path: Path, image: Image.Image, mask: Image.Image) -> Pair:
    image.save(tmp_path / "i.png")
    mask.save(tmp_path / "m.png")
    return Pair("d/i", tmp_path / "i.png", tmp_path / "m.png", "d")


def test_rgb_is_read_as_stored(tmp_path: Path, halves: Image.Image) -> None:
    halves.save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (4, 6, 3)
    assert image.dtype == np.uint8
    assert tuple(image[0, 0]) == RED
    assert tuple(image[0, 5]) == BLUE


def test_alpha_is_dropped_not_blended(tmp_path: Path, halves: Image.Image) -> None:
    halves.putalpha(0)
    halves.save(tmp_path / "a.png")
    assert tuple(read_image(tmp_path / "a.png")[0, 0]) == RED


def test_palette_grey_and_cmyk_become_rgb(tmp_path: Path, halves: Image.Image) -> None:
    halves.quantize(2).save(tmp_path / "p.png")
    assert tuple(read_image(tmp_path / "p.png")[0, 5]) == BLUE
    Image.new("L", (3, 2), 77).save(tmp_path / "l.png")
    assert (read_image(tmp_path / "l.png") == 77).all()
    Image.new("CMYK", (3, 2), (0, 0, 0, 0)).save(tmp_path / "c.jpg")
    assert (read_image(tmp_path / "c.jpg") == 255).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_divided_by_257(tmp_path: Path, suffix: str) -> None:
    path = grey(np.array([[0, 257, 32896, 65535]], np.uint16), tmp_path / f"a.{suffix}")
    assert read_image(path)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_grey_beyond_sixteen_bits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"beyond 16 bits(.|\n)*a\.tif"):
        read_image(grey(np.array([[0, 70000]], np.int32), tmp_path / "a.tif"))


def test_floating_point_grey_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"floating-point(.|\n)*a\.tif"):
        read_image(grey(np.array([[0.0, 1.0]], np.float32), tmp_path / "a.tif"))


def test_exif_orientation_turns_image_and_mask_alike(tmp_path: Path, halves: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise
    halves.save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    assert image.shape == (6, 4, 3)
    assert tuple(image[0, 0]) == RED
    mask = Image.new("L", (6, 4))
    mask.paste(255, (0, 0, 3, 4))
    mask.save(tmp_path / "m.png", exif=exif)
    assert read_mask(tmp_path / "m.png", (6, 4))[:, 0].tolist() == [True] * 3 + [False] * 3


def test_an_animated_image_is_refused(tmp_path: Path) -> None:
    first, second = Image.new("L", (4, 4), 0), Image.new("L", (4, 4), 255)
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    with pytest.raises(DataError, match=r"several images(.|\n)*a\.tif(.|\n)*2 images"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_a_truncated_image_is_refused_with_its_path(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    grey(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"cannot decode(.|\n)*a\.{suffix}"):
        read_image(path)


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_bytes_that_are_no_image_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DataError, match=rf"cannot decode(.|\n)*a\.png(.|\n)*{len(data)} bytes"):
        read_image(tmp_path / "a.png")


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read(.|\n)*a\.png(.|\n)*No such file"):
        read_image(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [12, 20])  # 24 pixels: twice the limit and more is refused by the decoder itself
def test_a_decompression_bomb_is_refused(
    tmp_path: Path, halves: Image.Image, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    halves.save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit - 1)
    with pytest.raises(DataError, match=r"a\.png"):
        read_image(tmp_path / "a.png")


def test_a_jpeg_mask_is_thresholded_above_127(tmp_path: Path) -> None:
    truth = np.zeros((64, 64), np.uint8)
    truth[20:45, 13:39] = 255
    Image.fromarray(truth).save(tmp_path / "m.jpg", quality=30)
    assert len(np.unique(np.asarray(Image.open(tmp_path / "m.jpg")))) > 2
    mask = read_mask(tmp_path / "m.jpg", (64, 64))
    assert mask.dtype == np.bool_
    assert (mask == (truth > 0)).all()


def test_the_threshold_lies_between_127_and_128(tmp_path: Path) -> None:
    path = grey(np.array([[0, 127, 128, 255]], np.uint8), tmp_path / "m.png")
    assert read_mask(path, (1, 4)).tolist() == [[False, False, True, True]]


def test_a_colour_mask_counts_its_brightest_channel(tmp_path: Path) -> None:
    mask = Image.new("RGB", (2, 1))
    mask.putpixel((1, 0), (0, 0, 200))  # its luminance is 23
    mask.save(tmp_path / "m.png")
    mask.quantize(2).save(tmp_path / "p.png")
    assert read_mask(tmp_path / "m.png", (1, 2)).tolist() == [[False, True]]
    assert read_mask(tmp_path / "p.png", (1, 2)).tolist() == [[False, True]]


def test_one_bit_and_transparent_masks_are_read(tmp_path: Path) -> None:
    values = Image.fromarray(np.array([[0, 255]], np.uint8))
    values.convert("1").save(tmp_path / "b.png")
    values.putalpha(0)
    values.save(tmp_path / "t.png")
    assert read_mask(tmp_path / "b.png", (1, 2)).tolist() == [[False, True]]
    assert read_mask(tmp_path / "t.png", (1, 2)).tolist() == [[False, True]]


@pytest.mark.parametrize("highest", [1, 127])
def test_a_mask_of_class_labels_is_refused(tmp_path: Path, highest: int) -> None:
    with pytest.raises(DataError, match=rf"class labels(.|\n)*m\.png(.|\n)*highest value {highest}\n"):
        read_mask(grey(np.array([[0, highest]], np.uint8), tmp_path / "m.png"), (1, 2))


def test_an_all_zero_mask_is_a_frame_without_a_lesion(tmp_path: Path) -> None:
    assert not read_mask(grey(np.zeros((2, 2), np.uint8), tmp_path / "m.png"), (2, 2)).any()


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"m\.png(.|\n)*2 x 3(.|\n)*3 x 2"):
        read_mask(grey(np.zeros((2, 3), np.uint8), tmp_path / "m.png"), (3, 2))


def test_a_frame_is_the_whole_image_squared(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 32), RED)
    image.paste(BLUE, (32, 0, 64, 32))
    mask = Image.new("L", (64, 32))
    mask.paste(255, (32, 0, 64, 32))
    pair = pair_of(tmp_path, image, mask)
    frame = read_frame(pair, 16)
    assert frame.image.shape == (3, 16, 16)
    assert frame.mask.shape == (16, 16)
    assert frame.image.dtype == frame.mask.dtype == np.uint8
    assert (frame.height, frame.width) == (32, 64)
    assert (frame.mask[:, :8] == 0).all()
    assert (frame.mask[:, 8:] == 1).all()
    assert tuple(frame.image[:, 0, 0]) == RED
    assert tuple(frame.image[:, 15, 15]) == BLUE
    assert frame.sha256 == hashlib.sha256(pair.image.read_bytes()).hexdigest()


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    frame = read_frame(pair_of(tmp_path, Image.fromarray(stripes), Image.new("L", (64, 64))), 8)
    assert frame.image.min() > 100
    assert frame.image.max() < 155


def test_a_frame_side_below_one_is_refused(tmp_path: Path, halves: Image.Image) -> None:
    with pytest.raises(UsageError, match="positive"):
        read_frame(pair_of(tmp_path, halves, Image.new("L", (6, 4))), 0)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ("identity", [[0, 1, 2], [3, 4, 5]]),
        ("hflip", [[2, 1, 0], [5, 4, 3]]),
        ("vflip", [[3, 4, 5], [0, 1, 2]]),
        ("rot180", [[5, 4, 3], [2, 1, 0]]),
    ],
)
def test_views_reverse_the_last_two_axes_and_undo_themselves(view: str, expected: list[list[int]]) -> None:
    array = np.arange(6).reshape(2, 3)
    stacked = np.stack([array, array + 10])
    flipped = flip(stacked, view)
    assert flipped[0].tolist() == expected
    assert flipped.flags.c_contiguous
    assert (flip(flipped, view) == stacked).all()
    assert flip_axes(view) == {"identity": (), "hflip": (-1,), "vflip": (-2,), "rot180": (-2, -1)}[view]


def test_one_two_or_four_views() -> None:
    assert [views(count) for count in (1, 2, 4)] == [VIEWS[:1], VIEWS[:2], VIEWS]
    with pytest.raises(UsageError, match="1, 2 or 4"):
        views(3)
    with pytest.raises(UsageError, match="no such view"):
        flip_axes("rot90")
