"""One picture must not lie in two splits, under whatever name or file format."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polyp_difom.cache.errors import DataError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.data.layouts import find_pairs
from polyp_difom.pipeline.data.sources import Source, gather
from polyp_difom.pipeline.data.synthetic import draw, write_dataset
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.evaluation.evaluate import Evaluation, evaluate
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.plan import ExtractConfig

Extracting = Callable[..., ExtractConfig]


def copy_as_png(frames: Path, folder: Path, stem: str) -> None:
    """A data set of one picture and its neighbours in the original, under other names."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    Image.open(frames / "images" / f"{stem}.jpg").save(folder / "images" / "other.png")
    shutil.copy(frames / "masks" / f"{stem}.png", folder / "masks" / "other.png")


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_picture_in_two_splits_stops_the_extraction_before_anything_is_written(
    split: str, frames: Path, extracting: Extracting, tmp_path: Path
) -> None:
    found = gather((Source(frames),), {split})
    copy_as_png(frames, tmp_path / "twin", found.pairs[0].stem)
    table = tmp_path / "split.csv"
    every = gather((Source(frames),), {"train", "val", "test"}).pairs
    table.write_text("stem,split\n" + "".join(f"{pair.stem},{pair.split}\n" for pair in every) + "other,train\n")
    sources = (Source(frames), Source(tmp_path / "twin"))
    with pytest.raises(DataError, match="same picture lies in two splits") as caught:
        extract(extracting(frames, tmp_path / "s.zarr", sources=sources, split_by=str(table)))
    assert "twin/other" in str(caught.value)
    assert not (tmp_path / "s.zarr").exists()


def test_a_picture_twice_in_one_split_is_no_leak(
    frames: Path, extracting: Extracting, store: FeatureStore, tmp_path: Path
) -> None:
    train = next(name for name, split in zip(store.samples.ids, store.samples.split, strict=True) if split == "train")
    copy_as_png(frames, tmp_path / "twin", train.partition("/")[2])
    table = tmp_path / "split.csv"
    every = gather((Source(frames),), {"train", "val", "test"}).pairs
    table.write_text("stem,split\n" + "".join(f"{pair.stem},{pair.split}\n" for pair in every) + "other,train\n")
    sources = (Source(frames), Source(tmp_path / "twin"))
    made = extract(extracting(frames, tmp_path / "s.zarr", sources=sources, split_by=str(table)))
    assert len(made) == len(store) + 1
    assert made.manifest.split.policy.startswith("csv:")


def test_one_test_set_of_pranets_release_is_all_test(frames: Path, tmp_path: Path) -> None:
    shutil.copytree(frames, tmp_path / "TestDataset" / "CVC-300")
    found = gather((Source(tmp_path / "TestDataset" / "CVC-300"),), {"test"})
    assert len(found.pairs) == 24
    assert not found.invented


def test_a_run_of_a_split_file_is_scored_by_that_file_alone(
    frames: Path, extracting: Extracting, distilling: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    every = gather((Source(frames),), {"train", "val", "test"}).pairs
    table, other = tmp_path / "split.csv", tmp_path / "other.csv"
    table.write_text("stem,split\n" + "".join(f"{pair.stem},{pair.split}\n" for pair in every))
    other.write_text("stem,split\n" + "".join(f"{pair.stem},{pair.split}\n" for pair in reversed(every)))
    store = extract(extracting(frames, tmp_path / "s.zarr", split_by=str(table)))
    run = distill(distilling(cache=str(store.location), epochs=1), tmp_path / "run").path
    for wrong in (None, str(other)):
        with pytest.raises(UsageError, match="was split by"):
            evaluate(run, (Source(frames),), split_by=wrong, overlays=0, device="cpu")
    assert evaluate(run, (Source(frames),), split_by=str(table), overlays=0, device="cpu").seen == {}
    whole = evaluate(run, (Source(frames),), split="all", overlays=0, device="cpu")
    assert [summary.images for summary in whole.summaries] == [24]
    assert whole.policy == "all frames, whatever their split"
    write_dataset(tmp_path / "few", count=1, size=64, seed=3)
    assert len(evaluate(run, (Source(tmp_path / "few"),), split="all", overlays=0, device="cpu").scores) == 1


def test_a_split_file_may_be_about_further_data_sets(
    frames: Path, extracting: Extracting, distilling: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    write_dataset(tmp_path / "more", count=3, size=64, seed=9)
    for file in sorted((tmp_path / "more").glob("*/*")):
        file.rename(file.with_stem(f"more-{file.stem}"))
    sources = (Source(frames), Source(tmp_path / "more"))
    stems = {"frames": gather(sources[:1], {"train", "val", "test"}).pairs, "more": find_pairs(tmp_path / "more")}
    table = tmp_path / "split.csv"
    rows = [f"{pair.stem},{pair.split}" for pair in stems["frames"]] + [f"{pair.stem},train" for pair in stems["more"]]
    table.write_text("\n".join(["stem,split", *rows]) + "\n")
    store = extract(extracting(frames, tmp_path / "s.zarr", sources=sources, split_by=str(table)))
    run = distill(distilling(cache=str(store.location), epochs=1), tmp_path / "run").path
    with pytest.raises(DataError, match="no frames in these splits"):  # of further sets alone: none is carved out of these
        evaluate(run, sources[1:], split="val", split_by=str(table), overlays=0, device="cpu")
    found = evaluate(run, sources[:1], split_by=str(table), overlays=0, device="cpu")
    assert [summary.images for summary in found.summaries] == [sum(pair.split == "test" for pair in stems["frames"])]


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def strangers(tmp_path: Path) -> Path:
    """Three frames that no run has seen."""
    write_dataset(tmp_path / "strangers", count=3, size=64, seed=7)
    return tmp_path / "strangers"


def scored(target: Path, folder: Path, **options: Any) -> Evaluation:
    chosen: dict[str, Any] = {"split": "all", "overlays": 0, "measures": "overlap", **options}
    return evaluate(target, (Source(folder),), device="cpu", **chosen)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_frames_of_the_run_and_their_mirrored_twins_are_left_out(run: Path, frames: Path, tmp_path: Path) -> None:
    """One frame mirrored, one brightened a little; the run's own frames are found through its list of pixel digests."""
    for kind in ("images", "masks"):
        (tmp_path / "new" / kind).mkdir(parents=True)
    train = sorted((frames / "images").iterdir())[:2]
    for number, path in enumerate(train):
        image, mask = Image.open(path), Image.open(frames / "masks" / f"{path.stem}.png")
        if number == 0:
            image, mask = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        else:
            image = image.point(lambda value: min(255, value + 6))
        image.save(tmp_path / f"new/images/{number}.png")
        mask.save(tmp_path / f"new/masks/{number}.png")
    stranger, mask = draw(4242, 64)
    Image.fromarray(stranger).save(tmp_path / "new/images/2.png")
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "new/masks/2.png")
    result = scored(run, tmp_path / "new", exclude_leaks=True, train=(Source(frames),))
    assert result.leaks is not None
    found = {twin.frame: twin for twin in result.leaks.twins}
    assert set(found) == {"new/0", "new/1"}
    assert (found["new/0"].view, found["new/0"].identical) == ("hflip", False)
    (without,) = result.without_leaks
    (kept,) = [row for row in result.scores if row.id == "new/2"]
    assert (without.images, without.mdice) == (1, kept.dice)
    assert [(row["images"], row["left_out"]) for row in rows_of(run / "results.csv")] == [("3", "0"), ("1", "2")]
    again = scored(run, tmp_path / "new")
    assert again.without_leaks == []
    assert [row["left_out"] for row in rows_of(run / "results.csv")] == ["0"]


def test_leaks_whose_pictures_were_not_given_are_said(run: Path, strangers: Path) -> None:
    result = scored(run, strangers, exclude_leaks=True)
    assert result.leaks is not None
    assert result.leaks.unseen == ["synthetic"]
    assert "--train" in result.leaks.told()[1]


def test_leaks_of_a_tool_that_nothing_is_known_of_need_its_training_frames(strangers: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing is known") as caught:
        scored(strangers / "masks", strangers, exclude_leaks=True, out=tmp_path / "ev")
    assert "--train" in str(caught.value)
    assert not (tmp_path / "ev").exists()
    result = scored(strangers / "masks", strangers, exclude_leaks=True, out=tmp_path / "ev", train=(Source(strangers),))
    assert result.leaks is not None
    assert all(twin.identical for twin in result.leaks.twins)
    assert len(result.leaks.twins) == 3
