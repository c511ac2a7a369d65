"""Pictures in, files out: sizes, names, kinds of input, and what happens to those that cannot be read."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyp_difom.cache.errors import DataError, RunError, UsageError
from polyp_difom.pipeline.predict.folder import refuse_to_lose
from polyp_difom.pipeline.predict.inputs import find_sources
from polyp_difom.pipeline.predict.run import PredictConfig, Totals, predict

from .conftest import RedModel, scene

Predicted = Callable[..., Totals]


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def test_masks_maps_and_overlays_have_the_original_size_and_the_lesions_place(predicted: Predicted, tmp_path: Path) -> None:
    box = (10, 40, 60, 110)
    totals = predicted(save(tmp_path / "a.png", scene(64, 128, box)), save=("mask", "probability", "overlay"))
    assert (totals.pictures, totals.with_lesion, totals.failures) == (1, 1, [])
    mask, probability = read(totals.out / "masks/a.png"), read(totals.out / "probabilities/a.png")
    truth = scene(64, 128, box)[..., 0] == 230
    assert mask.shape == probability.shape == read(totals.out / "overlays/a.jpg").shape[:2] == (64, 128)
    assert set(np.unique(mask)) == {0, 255}
    assert ((mask > 0) & truth).sum() / ((mask > 0) | truth).sum() > 0.85
    assert probability.dtype == np.uint16
    assert probability[25, 85] > 65000
    np.testing.assert_array_equal(mask > 0, probability / 65535 >= 0.5)


def test_the_table_has_box_area_and_probabilities_of_each_picture(predicted: Predicted, tmp_path: Path) -> None:
    save(tmp_path / "in/lesion.png", scene(64, 64, (16, 48, 16, 48)))
    save(tmp_path / "in/none.png", scene(20, 30))
    found, empty = rows(predicted(tmp_path / "in").out)
    assert [int(value) for value in found["boxes"].split()] == pytest.approx([16, 16, 32, 32], abs=2)
    assert float(found["lesion_share"]) == pytest.approx(0.25, abs=0.04)
    assert 0.5 < float(found["mean_probability"]) <= float(found["max_probability"]) <= 1
    assert (empty["regions"], empty["boxes"], empty["mean_probability"], empty["width"], empty["height"]) == (
        "0",
        "",
        "",
        "30",
        "20",
    )
    assert float(empty["seconds"]) > 0


def test_the_threshold_decides_what_is_lesion(predicted: Predicted, tmp_path: Path) -> None:
    picture = save(tmp_path / "a.png", np.full((32, 32, 3), 128, np.uint8))  # probability 0.5 everywhere
    assert predicted(picture, threshold=0.5).with_lesion == 1
    assert predicted(picture, threshold=0.51).with_lesion == 0


def test_flips_average_the_views_and_tell_how_much_they_differ(tmp_path: Path, model: RedModel) -> None:
    class Lopsided(RedModel):
        """Certain of the left half of whatever it is shown."""

        def logits(self, frames):
            logits = super().logits(frames) * 0 - 20
            logits[..., :16] = 20
            return logits

    picture = save(tmp_path / "a.png", scene(32, 32))
    totals = predict(
        Lopsided(), find_sources([str(picture)]), tmp_path / "o", PredictConfig(flips=True, save=("probability", "uncertainty"))
    )
    inner = np.s_[:, 2:14]
    np.testing.assert_allclose(read(totals.out / "probabilities/a.png")[inner] / 65535, 0.5, atol=1e-4)
    np.testing.assert_allclose(read(totals.out / "uncertainty/a.png")[inner] / 65535, 0.5, atol=1e-4)
    whole = predict(model, find_sources([str(picture)]), tmp_path / "p", PredictConfig(flips=True))
    assert read(whole.out / "uncertainty/a.png").max() == 0  # the same under every flip


def test_sub_folders_keep_their_paths_and_equal_names_never_meet(predicted: Predicted, tmp_path: Path) -> None:
    red, dark = scene(16, 16, (4, 12, 4, 12)), scene(16, 16)
    for file in ("one/a.png", "one/a.bmp", "one/sub/a.png", "two/a.png", "two/A.png"):
        save(tmp_path / file, red if file == "two/a.png" else dark)
    totals = predicted(tmp_path / "one", tmp_path / "two", tmp_path / "two/a.png", save=("mask", "coco"))
    masks = sorted(path.relative_to(totals.out / "masks").as_posix() for path in (totals.out / "masks").rglob("*.png"))
    assert masks == sorted(f"{row['name']}.png" for row in rows(totals.out))
    assert len({mask.casefold() for mask in masks}) == totals.pictures == 5
    assert "sub/a.png" in masks
    (lesion,) = (row for row in rows(totals.out) if row["regions"] == "1")
    assert lesion["source"].endswith("two/a.png")
    assert read(totals.out / "masks" / f"{lesion['name']}.png").any()
    names = [image["file_name"] for image in json.loads((totals.out / "coco.json").read_text())["images"]]
    assert len(set(names)) == 5


@pytest.mark.parametrize(
    "name", ["with space.png", "Läsion 息肉.png", "new\nline.png", "-dash.png", "br[a]ck*et.png", "a:b.png"]
)
def test_any_file_name_works(predicted: Predicted, tmp_path: Path, name: str) -> None:
    totals = predicted(save(tmp_path / "in" / name, scene(8, 8)))
    (row,) = rows(totals.out)
    assert str(Path(row["name"])) == Path(name.replace("\n", "_")).stem
    assert (totals.out / "masks" / f"{row['name']}.png").is_file()


def test_a_name_that_is_no_text_works(predicted: Predicted, tmp_path: Path) -> None:
    import os

    folder = tmp_path / "in"
    folder.mkdir()
    save(tmp_path / "a.png", scene(8, 8)).rename(os.fsdecode(os.fsencode(folder) + b"/\xff.png"))
    assert predicted(folder).pictures == 1
    assert rows(tmp_path / "out")[0]["name"] == "?"


def test_every_page_of_a_tiff_is_a_picture(predicted: Predicted, tmp_path: Path) -> None:
    pages = [Image.fromarray(scene(16, 16, (4, 12, 4, 12))), Image.fromarray(np.full((8, 8), 65535, np.uint16))]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    totals = predicted(tmp_path / "scan.tif", save=("mask", "coco"))
    assert [(row["name"], row["frame"], row["regions"]) for row in rows(totals.out)] == [
        ("scan.tif/0000", "0", "1"),
        ("scan.tif/0001", "1", "1"),
    ]
    images = json.loads((totals.out / "coco.json").read_text())["images"]
    assert [read(totals.out / image["file_name"]).shape[:2] for image in images] == [(16, 16), (8, 8)]


def test_a_damaged_page_keeps_those_before_it(predicted: Predicted, tmp_path: Path) -> None:
    noise = [Image.fromarray(np.random.default_rng(n).integers(0, 99, (40, 40, 3), dtype=np.uint8)) for n in range(3)]
    path = tmp_path / "scan.tif"
    noise[0].save(path, save_all=True, append_images=noise[1:], compression="tiff_lzw")
    data = bytearray(path.read_bytes())
    with Image.open(path) as image:
        image.seek(1)
        start = image.tag_v2[273][0]
    data[start : start + 400] = bytes(400)
    path.write_bytes(data)
    totals = predicted(path)
    assert [row["name"] for row in rows(totals.out)] == ["scan.tif/0000"]
    assert "page 1" in str(totals.failures[0])


def test_tiny_and_long_pictures_are_predicted_and_giants_refused_before_decoding(predicted: Predicted, tmp_path: Path) -> None:
    save(tmp_path / "in/tiny.png", scene(1, 1))
    save(tmp_path / "in/long.png", scene(10, 20_000))
    Image.new("1", (20_000, 20_000)).save(tmp_path / "in/giant.png")
    totals = predicted(tmp_path / "in")
    assert [(row["name"], row["width"], row["height"]) for row in rows(totals.out)] == [
        ("long", "20000", "10"),
        ("tiny", "1", "1"),
    ]
    assert "giant.png" in str(totals.failures[0])
    assert "too large" in str(totals.failures[0])


def test_an_unreadable_picture_is_reported_and_the_rest_is_done(predicted: Predicted, tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / "in" / f"{name}.png", scene(16, 16))
    (tmp_path / "in/b.png").write_bytes((tmp_path / "in/b.png").read_bytes()[:40])
    totals = predicted(tmp_path / "in", batch_size=2)
    assert [row["name"] for row in rows(totals.out)] == ["a", "c"]
    assert [Path(str(error.details["where"])).name for error in totals.failures] == ["b.png"]


def test_batches_are_of_the_asked_size_and_change_nothing(tmp_path: Path) -> None:
    for number in range(5):
        save(tmp_path / "in" / f"{number}.png", scene(16, 16 + number, (2, 9 + number, 3, 12)))
    tables = []
    for size in (1, 3):
        model = RedModel()
        out = tmp_path / f"out{size}"
        predict(model, find_sources([str(tmp_path / "in")]), out, PredictConfig(batch_size=size))
        assert model.batches[1:] == ([1] * 5 if size == 1 else [3, 2])  # the first call warms up
        tables.append([{**row, "seconds": ""} for row in rows(out)])
    assert tables[0] == tables[1]


def test_globs_and_limits_choose(predicted: Predicted, tmp_path: Path) -> None:
    for name in ("x1.png", "x2.png", "y.png", "deep/x3.png"):
        save(tmp_path / "in" / name, scene(8, 8))
    assert [row["name"] for row in rows(predicted(f"{tmp_path}/in/**/x*.png").out)] == ["deep/x3", "x1", "x2"]
    assert predicted(tmp_path / "in", limit=2).pictures == 2


def test_hidden_and_other_files_of_a_folder_are_left_out(predicted: Predicted, tmp_path: Path) -> None:
    save(tmp_path / "in/a.png", scene(8, 8))
    for name in ("._a.png", "notes.txt", "film.mp4"):
        (tmp_path / "in" / name).write_bytes(b"x")
    assert predicted(tmp_path / "in").pictures == 1


@pytest.mark.parametrize(
    ("folders", "count"),
    [(("images", "masks"), 1), (("patients", "masks"), 2), (("masks",), 1), (("PNG/Original", "PNG/Ground Truth"), 1)],
)
def test_masks_beside_images_are_no_pictures(
    folders: tuple[str, ...], count: int, predicted: Predicted, tmp_path: Path
) -> None:
    for folder in folders:
        save(tmp_path / "in" / folder / "a.png", scene(8, 8))
    assert predicted(tmp_path / "in").pictures == count


@pytest.mark.parametrize("make", ["missing", "empty folder", "text", "glob"])
def test_an_input_without_pictures_is_refused_by_name(make: str, tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    if make == "empty folder":
        path.mkdir()
    elif make == "text":
        path.write_text("no picture")
    elif make == "glob":
        path = tmp_path / "*.png"
    with pytest.raises(DataError, match=r"in\.txt|\*\.png"):
        find_sources([str(path)])


def test_a_folder_that_holds_anything_else_is_never_written_to(tmp_path: Path, model: RedModel) -> None:
    picture = save(tmp_path / "in/a.png", scene(8, 8))
    sources = find_sources([str(picture)])
    out = tmp_path / "out"
    refuse_to_lose(out, False, [str(picture)], sources)
    predict(model, sources, out, PredictConfig())
    with pytest.raises(RunError, match="--overwrite"):
        refuse_to_lose(out, False, [str(picture)], sources)
    refuse_to_lose(out, True, [str(picture)], sources)
    (out / "thesis.docx").touch()
    with pytest.raises(RunError, match=r"thesis\.docx"):
        refuse_to_lose(out, True, [str(picture)], sources)
    foreign = save(tmp_path / "set/masks/a.png", scene(8, 8)).parent.parent
    with pytest.raises(RunError, match="no prediction wrote"):
        refuse_to_lose(foreign, True, [str(picture)], sources)


@pytest.mark.parametrize("out", ["in", "in/out", "."])
def test_outputs_never_lie_among_inputs(tmp_path: Path, out: str) -> None:
    save(tmp_path / "in/a.png", scene(8, 8))
    with pytest.raises(UsageError, match="one folder"):
        refuse_to_lose(tmp_path / out, True, [str(tmp_path / "in")], find_sources([str(tmp_path / "in")]))


def test_a_network_that_says_no_number_stops_with_its_picture(tmp_path: Path) -> None:
    class Broken(RedModel):
        def logits(self, frames):
            return super().logits(frames) * float("nan")

    picture = save(tmp_path / "a.png", scene(8, 8))
    with pytest.raises(RunError, match=r"no number[\s\S]*a\.png"):
        predict(Broken(), find_sources([str(picture)]), tmp_path / "out", PredictConfig())


def test_outputs_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean mask"):
        PredictConfig(save=("masks",)).require_outputs()
    with pytest.raises(UsageError, match="--flips"):
        PredictConfig(save=("uncertainty",)).require_outputs()


def test_a_full_disk_leaves_no_partial_file(predicted: Predicted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from polyp_difom.pipeline import files

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    picture = save(tmp_path / "a.png", scene(8, 8))
    with pytest.raises(RunError, match="No space left"):
        predicted(picture)
    assert not list((tmp_path / "out").rglob("*.partial"))
