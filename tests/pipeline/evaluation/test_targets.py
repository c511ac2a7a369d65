"""Folders of maps: found by stem and data set, refused with a path where they cannot be scored; models of every kind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polyp_difom.cache.errors import DataError, RunError
from polyp_difom.pipeline.data.maps import read_map
from polyp_difom.pipeline.data.pairing import Pair
from polyp_difom.pipeline.data.sources import Source
from polyp_difom.pipeline.evaluation.evaluate import Evaluation, evaluate
from polyp_difom.pipeline.evaluation.targets import open_target

SHAPE = (20, 30)


def truth(number: int) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[2 : 8 + number, 4:20] = 255
    return mask


def make_set(root: Path, count: int = 3) -> Path:
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for number in range(count):
        picture = np.random.default_rng(number).integers(0, 256, (*SHAPE, 3), np.uint8)
        Image.fromarray(picture).save(root / "images" / f"{number}.png")
        Image.fromarray(truth(number)).save(root / "masks" / f"{number}.png")
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_set(tmp_path / "data" / "clinic")


@pytest.fixture
def maps(data: Path, tmp_path: Path) -> Path:
    """Perfect maps of `data`, directly in a folder."""
    return Path(shutil.copytree(data / "masks", tmp_path / "tool"))


def scored(maps: Path, *data: Path, out: Path, **options: Any) -> Evaluation:
    return evaluate(maps, tuple(map(Source, data)), split="all", out=out, **{"overlays": 0, "measures": "overlap", **options})


@pytest.mark.parametrize(
    ("convert", "highest"),
    [
        (lambda values: Image.fromarray(values), 255),
        (lambda values: Image.fromarray(values).convert("1"), 1),
        (lambda values: Image.fromarray(values.astype(np.uint16) * 257), 65535),
        (lambda values: Image.fromarray(values).convert("LA"), 255),
        (lambda values: Image.fromarray(values).convert("RGB"), 255),
        (lambda values: Image.fromarray(values).convert("RGBA"), 255),
        (lambda values: Image.fromarray(values).convert("P"), 255),
    ],
    ids=["8", "1", "16", "LA", "RGB", "RGBA", "P"],
)
def test_a_map_is_its_value_over_the_highest_of_its_format(convert: Any, highest: int, tmp_path: Path) -> None:
    values = truth(1)
    values[0, 0] = 0 if highest == 1 else 51
    convert(values).save(tmp_path / "map.png")
    np.testing.assert_allclose(read_map(tmp_path / "map.png"), values / 255, atol=1e-6)


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    Image.fromarray(np.full(SHAPE, 32769, np.uint16)).save(tmp_path / "map.png")
    assert read_map(tmp_path / "map.png")[0, 0] == np.float32(32769 / 65535)


def test_perfect_maps_score_one_and_half_of_a_map_does_not(maps: Path, data: Path, tmp_path: Path) -> None:
    assert scored(maps, data, out=tmp_path / "ev").summaries[0].mdice == 1
    half = truth(0) // 255 * np.uint8(127)
    Image.fromarray(half).save(maps / "0.png")
    result = scored(maps, data, out=tmp_path / "ev")
    assert [row.dice for row in result.scores] == [0, 1, 1]


@pytest.mark.parametrize(
    ("folder", "dataset"),
    [("Clinic", "clinic"), ("CVC-ColonDB", "cvc_colondb"), ("ETIS-LaribPolypDB", "etis-larib"), ("Kvasir", "kvasir-seg")],
)
def test_a_sub_folder_is_matched_to_its_data_set_whatever_its_spelling(folder: str, dataset: str, tmp_path: Path) -> None:
    one, two = make_set(tmp_path / "d" / dataset), make_set(tmp_path / "d" / "other", 4)
    shutil.copytree(one / "masks", tmp_path / "tool" / folder)
    shutil.copytree(two / "masks", tmp_path / "tool" / "other")
    result = scored(tmp_path / "tool", one, two, out=tmp_path / "ev")
    assert {summary.dataset: summary.images for summary in result.summaries} == {dataset: 3, "other": 4}
    assert [summary.mdice for summary in result.summaries] == [1, 1]


def test_several_data_sets_need_a_sub_folder_each(maps: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not one folder of maps") as caught:
        scored(maps, data, make_set(tmp_path / "d" / "other"), out=tmp_path / "ev")
    assert "one sub-folder for each data set" in str(caught.value)


def test_two_sub_folders_of_one_data_set_are_refused(maps: Path, data: Path, tmp_path: Path) -> None:
    for name in ("Clinic", "clinic_"):
        shutil.copytree(data / "masks", maps / name)
    with pytest.raises(DataError, match="not one folder of maps"):
        scored(maps, data, out=tmp_path / "ev")


def spoil_missing(maps: Path) -> str:
    (maps / "1.png").unlink()
    return "1.png"


def spoil_size(maps: Path) -> str:
    Image.new("L", (30, 21)).save(maps / "1.png")
    return "21 x 30"


def spoil_twice(maps: Path) -> str:
    Image.new("L", SHAPE[::-1]).save(maps / "1.bmp")
    return "1.bmp and 1.png"


def spoil_unreadable(maps: Path) -> str:
    (maps / "1.png").write_bytes((maps / "1.png").read_bytes()[:40])
    return "1.png"


def spoil_colour(maps: Path) -> str:
    Image.new("RGB", SHAPE[::-1], (200, 10, 10)).save(maps / "1.png")
    return "a colour picture"


def spoil_labels(maps: Path) -> str:
    for path in maps.iterdir():
        Image.fromarray(np.asarray(Image.open(path)) // 255).save(path)
    return "class labels"


def spoil_small_values(maps: Path) -> str:
    for path in maps.iterdir():
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16)).save(path)
    return "class labels"


@pytest.mark.parametrize(
    "spoil",
    [spoil_missing, spoil_size, spoil_twice, spoil_unreadable, spoil_colour, spoil_labels, spoil_small_values],
    ids=lambda spoil: spoil.__name__.removeprefix("spoil_"),
)
def test_a_map_that_cannot_be_scored_is_an_error_with_its_path_and_nothing_is_written(
    spoil: Any, maps: Path, data: Path, tmp_path: Path
) -> None:
    said = spoil(maps)
    with pytest.raises(DataError) as caught:
        scored(maps, data, out=tmp_path / "ev")
    assert said in str(caught.value)
    assert str(maps) in str(caught.value)
    assert not (tmp_path / "ev").exists()


def test_one_faint_map_among_others_is_scored_as_empty_and_said(maps: Path, data: Path, tmp_path: Path) -> None:
    Image.fromarray(truth(1) // 255).save(maps / "1.png")
    target = open_target(maps, out=tmp_path / "ev")
    for number in range(3):
        pair = Pair(f"clinic/{number}", data / f"images/{number}.png", data / f"masks/{number}.png", "clinic")
        target.probability(pair, np.zeros((*SHAPE, 3), np.uint8))
    (line,) = target.verify()
    assert str(maps / "1.png") in line


def test_files_of_no_frame_are_said_and_left_alone(maps: Path, data: Path) -> None:
    shutil.copy(maps / "0.png", maps / "99.png")
    pairs = [Pair(f"clinic/{number}", data, data, "clinic") for number in range(3)]
    (line,) = open_target(maps).prepare(pairs)
    assert "1 more files" in line


def test_pooled_maps_are_squared(maps: Path, data: Path, tmp_path: Path) -> None:
    result = scored(maps, data, out=tmp_path / "ev", protocol="pooled-6")
    assert [(row.height, row.width, row.frames) for row in result.scores] == [(352, 352, 3)]
    assert result.summaries[0].mdice > 0.98


def test_an_empty_folder_is_nothing_to_evaluate(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing to evaluate"):
        open_target(tmp_path)


def test_an_onnx_file_is_scored_like_its_run(finished_run: Path, frames: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from polyp_difom.pipeline.export.exporting import export

    copy = Path(shutil.copytree(finished_run, tmp_path / "run"))
    file = tmp_path / "tiny.onnx"
    export(copy, "onnx", out=file, sources=(Source(frames),))
    options: dict[str, Any] = {"split": "test", "overlays": 0, "device": "cpu", "measures": "overlap"}
    ours = evaluate(copy, (Source(frames),), **options)
    theirs = evaluate(file, (Source(frames),), out=tmp_path / "ev", **options)
    assert theirs.summaries[0].mdice == pytest.approx(ours.summaries[0].mdice, abs=1e-4)
    assert theirs.target.kind == "onnx"
