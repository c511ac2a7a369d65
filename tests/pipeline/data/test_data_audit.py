import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyp_difom.cache.errors import DataError
from polyp_difom.pipeline.data.audit import audit
from polyp_difom.pipeline.data.pairing import Pair
from polyp_difom.pipeline.data.sources import Source

SIDE = 48
TEST = {"t0", "t1", "t2"}


def scene(seed: int) -> np.ndarray:
    """Coarse random blobs, uint8 [48, 48, 3]: scenes of different seeds do not correlate."""
    coarse = np.random.default_rng(seed).integers(0, 200, (6, 6, 3), np.uint8)
    return coarse.repeat(8, axis=0).repeat(8, axis=1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten frames in train, three in test: t0 equals f0 under another name, t1 is f1 a little brighter, t2 is alone."""
    images = {f"f{i}": scene(i) for i in range(10)}
    images |= {"t0": images["f0"], "t1": images["f1"] + 20, "t2": scene(99)}
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:24, :24] = 255
    for folder in ("images", "masks"):
        (tmp_path / "clinic" / folder).mkdir(parents=True)
    for stem, image in images.items():
        Image.fromarray(image).save(tmp_path / "clinic" / "images" / f"{stem}.png")
        Image.fromarray(mask).save(tmp_path / "clinic" / "masks" / f"{stem}.png")
    rows = "".join(f"{stem},{'test' if stem in TEST else 'train'}\n" for stem in images)
    (tmp_path / "split.csv").write_text("stem,split\n" + rows)
    return tmp_path / "clinic"


def check(root: Path):
    return audit(root, policy=str(root.parent / "split.csv"))


def test_a_clean_set_is_described(root: Path) -> None:
    report = check(root)
    assert (report.layout, report.frames, report.errors) == ("folder", 13, [])
    assert report.per_split == {"train": 9, "val": 1, "test": 3}
    assert report.height == report.width == {"min": SIDE, "median": SIDE, "max": SIDE}
    assert report.lesion_share["median"] == 0.25
    assert report.non_binary_masks == 0
    assert report.empty_masks == []


def test_identical_frames_across_splits_are_leaks(root: Path) -> None:
    Image.open(root / "images" / "f3.png").save(root / "images" / "f4.png", compress_level=1)
    report = check(root)
    assert report.identical == [["clinic/f0", "clinic/t0"], ["clinic/f3", "clinic/f4"]]
    assert report.leaks == [["clinic/f0", "clinic/t0"]]


def test_near_twins_of_test_frames_are_found_and_strangers_are_not(root: Path) -> None:
    twins = {twin.frame: twin for twin in check(root).near_twins}
    assert set(twins) == {"clinic/t0", "clinic/t1"}
    assert twins["clinic/t1"].other == "clinic/f1"
    assert 0.95 < twins["clinic/t1"].correlation <= 1.0001


def test_even_frames_resemble_nothing(root: Path) -> None:
    for stem in ("f2", "t2"):
        Image.new("RGB", (SIDE, SIDE), (9, 9, 9) if stem == "f2" else (200, 0, 0)).save(root / "images" / f"{stem}.png")
    assert "clinic/t2" not in {twin.frame for twin in check(root).near_twins}


def test_all_bad_files_are_collected(root: Path) -> None:
    (root / "images" / "f5.png").write_bytes(b"broken")
    (root / "masks" / "f5.png").write_bytes(b"broken too")
    Image.new("L", (5, 5)).save(root / "masks" / "f6.png")
    Image.new("L", (SIDE, SIDE), 1).save(root / "masks" / "f7.png")
    errors = check(root).errors
    assert [error.id for error in errors] == ["clinic/f5", "clinic/f5", "clinic/f6", "clinic/f7"]
    assert [Path(error.path).parent.name for error in errors] == ["images", "masks", "masks", "masks"]
    assert "class labels" in errors[-1].message


def test_empty_and_non_binary_masks_are_counted(root: Path) -> None:
    Image.new("L", (SIDE, SIDE)).save(root / "masks" / "f1.png")
    Image.new("L", (SIDE, SIDE), 250).save(root / "masks" / "f2.png")
    report = check(root)
    assert report.empty_masks == ["clinic/f1"]
    assert report.non_binary_masks == 1
    assert report.lesion_share["max"] == 1.0


def test_a_set_without_one_readable_file_is_still_reported(root: Path) -> None:
    for path in root.glob("*/*.png"):
        path.write_bytes(b"")
    report = check(root)
    assert len(report.errors) == 26
    assert report.height == report.lesion_share == {}


def test_the_report_is_plain_json(root: Path) -> None:
    report = json.loads(json.dumps(dataclasses.asdict(check(root))))
    assert report["near_twins"][0]["frame"] == "clinic/t0"


def test_progress_sees_every_pair(root: Path) -> None:
    totals = []

    def progress(pairs: Sequence[Pair]) -> Iterator[Pair]:
        totals.append(len(pairs))
        yield from pairs

    assert audit(root, progress=progress).frames == 13
    assert totals == [13]


def test_frames_that_do_not_pair_stop_the_audit(root: Path) -> None:
    (root / "masks" / "f1.png").unlink()
    with pytest.raises(DataError, match="image without a mask"):
        audit(root)


def test_twins_within_a_split_are_grouped_and_mirrored_ones_belong(root: Path) -> None:
    mirrored = Image.open(root / "images" / "f5.png").transpose(Image.Transpose.ROTATE_180)
    mirrored.save(root / "images" / "f6.png")
    report = check(root)
    assert ["clinic/f5", "clinic/f6"] in report.twin_groups
    (twin,) = [twin for twin in report.twins if twin.frame == "clinic/f5"]
    assert (twin.view, twin.identical) == ("rot180", False)


def test_validation_frames_with_twins_in_train_are_named(root: Path) -> None:
    splits = dict(line.split(",") for line in (root.parent / "split.csv").read_text().splitlines()[1:])
    splits |= {"f2": "val", "f3": "train"}
    (root.parent / "split.csv").write_text("stem,split\n" + "".join(f"{stem},{split}\n" for stem, split in splits.items()))
    Image.fromarray(scene(3) + 5).save(root / "images" / "f2.png")
    assert [(twin.frame, twin.other) for twin in check(root).validation_twins] == [("clinic/f2", "clinic/f3")]


def test_frames_of_other_folders_are_found_here(root: Path, tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / "trained" / kind).mkdir(parents=True)
    for stem, image in (("a", scene(0)), ("b", scene(2)[:, ::-1] + 9), ("c", scene(55))):
        Image.fromarray(image).save(tmp_path / "trained" / "images" / f"{stem}.png")
        Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(tmp_path / "trained" / "masks" / f"{stem}.png")
    report = audit(root, policy=str(root.parent / "split.csv"), against=[Source(tmp_path / "trained")])
    (other,) = report.against
    found = {twin.frame: (twin.other, twin.view, twin.identical) for twin in other.twins}
    assert other.frames == 3
    assert found == {
        "clinic/f0": ("trained/a", "identity", True),
        "clinic/t0": ("trained/a", "identity", True),
        "clinic/f2": ("trained/b", "hflip", False),
    }
