"""Which frames an export is compared on: never test frames, and what they are is said."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyp_difom.cache.errors import DataError, RunError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.data.frames import pixel_digest
from polyp_difom.pipeline.data.layouts import find_pairs
from polyp_difom.pipeline.data.sources import Source
from polyp_difom.pipeline.data.splitting import assign_splits
from polyp_difom.pipeline.export import frames as choosing
from polyp_difom.pipeline.export.frames import choose_frames
from polyp_difom.pipeline.models.loading import load_model


@pytest.fixture
def header(run: Path) -> dict[str, Any]:
    return load_model(run, "cpu").info.header


def chosen(header: dict[str, Any], *folders: Path, precision: str = "float32", stretch: bool = False, **changes: Any):
    learned = {"synthetic"}
    return choose_frames(tuple(map(Source, folders)), {**header, **changes}, learned, precision, stretch)


def digests(images: list[np.ndarray]) -> set[str]:
    return {pixel_digest(image) for image in images}


def test_given_data_gives_its_validation_frames_and_never_its_test_frames(header: dict[str, Any], frames: Path) -> None:
    from polyp_difom.pipeline.data.frames import read_image

    found = chosen(header, frames, precision="int8")
    pairs, _ = assign_splits(find_pairs(frames))
    by_split = {name: digests([read_image(p.image) for p in pairs if p.split == name]) for name in ("train", "val", "test")}
    assert digests(found.images) == by_split["val"]
    assert len(found.calibration) == 20
    seen = digests([np.ascontiguousarray(frame.transpose(1, 2, 0)) for frame in found.calibration])
    assert seen == by_split["train"]
    assert not (seen | digests(found.images)) & by_split["test"]


def test_without_data_the_frames_of_the_runs_store_are_taken(header: dict[str, Any], store: FeatureStore) -> None:
    found = chosen(header, precision="int8")
    rows = np.array([i for i, split in enumerate(store.samples.split) if split == "val"])
    np.testing.assert_array_equal(np.stack(found.images).transpose(0, 3, 1, 2), store.read(schema.IMAGE, rows))
    np.testing.assert_array_equal(np.stack(found.masks), store.read(schema.MASK, rows).astype(bool))
    assert found.words == "2 val frames of the run's store"
    assert len(found.calibration) == 20


def test_squared_frames_are_stretched_where_resizing_is_to_be_tried(header: dict[str, Any]) -> None:
    found = chosen(header, stretch=True)
    assert {image.shape for image in found.images} == {(96, 128, 3), (128, 161, 3)}
    assert [mask.shape for mask in found.masks] == [image.shape[:2] for image in found.images]
    assert "stretched" in found.words


@pytest.mark.parametrize("changes", [
    {"cache": "nowhere.zarr"}, {"reads": {"frames": "another"}}, {"reads": {}, "signature": "another"}, {"cache": None}
])  # fmt: skip
def test_where_the_store_is_out_of_reach_frames_are_drawn_and_that_is_said(
    header: dict[str, Any], changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "DRAWN", 2)
    found = chosen(header, **changes)
    assert found.words.startswith("2 synthetic frames (")
    assert "--data DIR" in found.words
    assert found.calibration == []


def test_int8_needs_real_train_frames(header: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="int8 needs train frames"):
        chosen(header, precision="int8", cache="nowhere.zarr")


def test_a_set_that_the_run_did_not_learn_from_is_test_data(header: dict[str, Any], frames: Path, tmp_path: Path) -> None:
    foreign = Path(shutil.copytree(frames, tmp_path / "foreign"))
    with pytest.raises(UsageError, match=r"'foreign'.*test data"):
        chosen(header, foreign)


def test_a_split_that_cannot_be_made_again_is_refused(header: dict[str, Any], frames: Path) -> None:
    with pytest.raises(UsageError, match="split by a file"):
        chosen(header, frames, split={"policy": "csv:00", "seed": 0, "val_fraction": 0.1})
    del header["split"]
    with pytest.raises(RunError, match="how its frames were split"):
        chosen(header, frames)


def test_a_folder_without_data_is_refused(header: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError):
        chosen(header, tmp_path / "nowhere")
