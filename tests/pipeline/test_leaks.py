"""One picture must not lie in two splits, under whatever name or file format."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from polyp_difom.cache.errors import DataError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.data.sources import Source, gather
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.evaluate import evaluate
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
