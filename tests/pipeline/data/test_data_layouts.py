import os
from pathlib import Path

import pytest
from PIL import Image

from polyp_difom.cache.errors import DataError, UsageError
from polyp_difom.pipeline.data.layouts import LAYOUTS, detect_layout, find_pairs


def put(path: Path, size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size).save(path)


def put_all(root: Path, *names: str) -> Path:
    for name in names:
        put(root / name)
    return root


def ids(root: Path) -> list[str]:
    return [pair.id for pair in find_pairs(root)]


@pytest.fixture
def kvasir(tmp_path: Path) -> Path:
    root = put_all(tmp_path / "any", "images/b.jpg", "images/a.jpg", "masks/a.jpg", "masks/b.jpg")
    (root / "kavsir_bboxes.json").write_text("{}")
    return root


def test_kvasir_seg_is_known_by_its_box_file(kvasir: Path) -> None:
    assert detect_layout(kvasir) == "kvasir-seg"
    assert ids(kvasir) == ["kvasir-seg/a", "kvasir-seg/b"]
    assert {pair.split for pair in find_pairs(kvasir)} == {None}


@pytest.mark.parametrize("prefix", ["PNG/", "", "TIF/"])
def test_clinicdb_is_found_under_png_tif_or_directly(tmp_path: Path, prefix: str) -> None:
    suffix = "tif" if prefix == "TIF/" else "png"
    names = [f"{prefix}{folder}/{stem}.{suffix}" for folder in ("Original", "Ground Truth") for stem in (10, 2, 1)]
    root = put_all(tmp_path, *names)
    assert detect_layout(root) == "cvc-clinicdb"
    assert ids(root) == ["cvc-clinicdb/1", "cvc-clinicdb/2", "cvc-clinicdb/10"]


@pytest.mark.parametrize(
    ("name", "size", "suffix", "folders"),
    [
        ("cvc-colondb", (574, 500), "tiff", ("", "")),
        ("cvc-colondb", (574, 500), "tif", ("CVC-ColonDB/", "CVC-ColonDB/")),
        ("etis-larib", (1225, 966), "tif", ("", "")),
        ("etis-larib", (1225, 966), "tif", ("ETIS/", "Ground Truth/")),
        ("etis-larib", (1225, 966), "tif", ("Original/", "Ground Truth/")),
    ],
)
def test_colondb_and_etis_are_told_apart_by_frame_size(
    tmp_path: Path, name: str, size: tuple[int, int], suffix: str, folders
) -> None:
    for stem in ("1", "2", "10"):
        put(tmp_path / f"{folders[0]}{stem}.{suffix}", size)
        put(tmp_path / f"{folders[1]}p{stem}.{suffix}", size)
    assert detect_layout(tmp_path) == name
    pairs = find_pairs(tmp_path)
    assert [pair.id for pair in pairs] == [f"{name}/1", f"{name}/2", f"{name}/10"]
    assert [pair.mask.stem for pair in pairs] == ["p1", "p2", "p10"]
    assert {pair.split for pair in pairs} == {"test"}


def test_numbered_tiffs_of_another_size_fit_no_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no known data set layout"):
        detect_layout(put_all(tmp_path, "1.tif", "p1.tif"))


@pytest.mark.parametrize(("there", "missing"), [("images", "mask"), ("frames", "mask"), ("segmentations", "image")])
def test_a_folder_without_its_partner_is_named_as_that(tmp_path: Path, there: str, missing: str) -> None:
    with pytest.raises(DataError, match=f"no {missing} folder") as caught:
        detect_layout(put_all(tmp_path, f"{there}/1.png"))
    assert caught.value.details["got"] == f"1: {there}"


def test_frames_beside_segmentations_are_a_data_set(tmp_path: Path) -> None:
    root = put_all(tmp_path, "frames/1.png", "segmentations/1.png")
    assert detect_layout(root) == "folder"
    assert ids(root) == [f"{root.name.lower()}/1"]


def test_rarer_names_count_only_where_no_usual_one_is_there(tmp_path: Path) -> None:
    root = put_all(tmp_path, "images/1.png", "frames/2.png", "masks/1.png", "segmentations/2.png")
    assert ids(root) == [f"{root.name.lower()}/1"]


def test_a_damaged_numbered_tiff_is_named_during_detection(tmp_path: Path) -> None:
    put_all(tmp_path, "p1.tif")
    (tmp_path / "1.tif").write_bytes(b"not a tiff")
    with pytest.raises(DataError, match=r"1\.tif"):
        detect_layout(tmp_path)


def test_polypgen_pairs_across_centres_and_sequences(tmp_path: Path) -> None:
    root = put_all(
        tmp_path,
        "data_C1/images_C1/x1.jpg",
        "data_C1/masks_C1/x1_mask.jpg",
        "data_C1/bbox_image_C1/orphan_mask_bbox.jpg",
        "data_C3/images_C3/C3_00489_.jpg",
        "data_C3/masks_C3/C3_00489_mask.jpg",
        "sequenceData/positive/seq1/images_seq1/s_2.jpg",
        "sequenceData/positive/seq1/masks_seq1/s_2_mask.jpg",
        "sequenceData/negativeOnly/seq1_neg/n.jpg",
    )
    (root / "sequenceData/positive/seq1/masks_seq1/s_2.txt").write_text("polyp 1 2 3 4")
    assert detect_layout(root) == "polypgen"
    assert ids(root) == ["polypgen/C3_00489", "polypgen/s_2", "polypgen/x1"]
    assert {pair.split for pair in find_pairs(root)} == {"test"}


PRANET = (
    "TrainDataset/image/1.png",
    "TrainDataset/mask/1.png",
    "TestDataset/CVC-300/images/150.png",
    "TestDataset/CVC-300/masks/150.png",
    "TestDataset/Kvasir/images/c.png",
    "TestDataset/Kvasir/masks/c.png",
)


def test_pranet_release_fixes_train_and_test(tmp_path: Path) -> None:
    root = put_all(tmp_path, *PRANET)
    assert detect_layout(root) == "pranet"
    split = {pair.id: (pair.dataset, pair.split) for pair in find_pairs(root)}
    assert split == {
        "pranet-train/1": ("pranet-train", "train"),
        "cvc-300/150": ("cvc-300", "test"),
        "kvasir/c": ("kvasir", "test"),
    }


@pytest.mark.parametrize(("tree", "expected"), [("TrainDataset", {"train"}), ("TestDataset", {"test"})])
def test_one_tree_of_the_pranet_release_stands_alone(tmp_path: Path, tree: str, expected: set[str]) -> None:
    root = put_all(tmp_path, *PRANET) / tree
    assert detect_layout(root) == "pranet"
    assert {pair.split for pair in find_pairs(root)} == expected


def test_one_test_set_of_the_pranet_release_is_a_plain_folder(tmp_path: Path) -> None:
    root = put_all(tmp_path, *PRANET) / "TestDataset/CVC-300"
    assert detect_layout(root) == "folder"
    assert ids(root) == ["cvc-300/150"]


@pytest.mark.parametrize(
    ("images", "masks"), [("images", "masks"), ("IMG", "Ground_Truth"), ("Original", "GT"), ("image", "annotations")]
)
def test_a_folder_pair_is_found_under_the_usual_names(tmp_path: Path, images: str, masks: str) -> None:
    root = put_all(tmp_path / "Hospital A", f"{images}/b2.jpg", f"{images}/b10.jpg", f"{masks}/b10.png", f"{masks}/b2.png")
    assert ids(root) == ["hospital a/b2", "hospital a/b10"]


def test_pairs_go_by_stem_not_by_position(tmp_path: Path) -> None:
    names = ["images/1.jpg", "images/2.jpg", "images/10.jpg", "masks/1.png", "masks/2.png", "masks/10.png"]
    pairs = find_pairs(put_all(tmp_path / "d", *names))
    assert [pair.stem for pair in pairs] == ["1", "2", "10"]
    assert all(pair.image.stem == pair.mask.stem for pair in pairs)


def test_a_relative_root_is_named_like_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(put_all(tmp_path / "clinic", "images/1.jpg", "masks/1.jpg"))
    assert ids(Path(".")) == ["clinic/1"]


def test_hidden_files_and_foreign_suffixes_do_not_count(tmp_path: Path) -> None:
    root = put_all(
        tmp_path / "d", "images/1.jpg", "masks/1.png", "images/.hidden.jpg", "images/._1.jpg", "__MACOSX/images/1.jpg"
    )
    (root / "images" / "Thumbs.db").write_bytes(b"x")
    (root / "masks" / "notes.txt").write_text("x")
    assert ids(root) == ["d/1"]


def test_two_specific_layouts_ask_for_a_choice(kvasir: Path) -> None:
    put_all(kvasir, "PNG/Original/1.png", "PNG/Ground Truth/1.png")
    with pytest.raises(DataError, match="--data cvc-clinicdb="):
        find_pairs(kvasir)
    assert [pair.id for pair in find_pairs(kvasir, "cvc-clinicdb")] == ["cvc-clinicdb/1"]


def test_no_fitting_layout_lists_the_candidates_and_what_is_there(tmp_path: Path) -> None:
    put_all(tmp_path, "Kvasir-SEG/images/1.jpg")
    with pytest.raises(DataError) as caught:
        find_pairs(tmp_path)
    message = str(caught.value)
    assert "1: Kvasir-SEG" in message
    assert "--data NAME=FOLDER" in message
    assert all(name in message for name in LAYOUTS.names())


def test_an_unknown_layout_name_is_answered_with_a_close_one(kvasir: Path) -> None:
    with pytest.raises(UsageError, match="did you mean kvasir-seg"):
        find_pairs(kvasir, "kvasir")


@pytest.mark.parametrize("name", LAYOUTS.names())
def test_a_layout_forced_on_a_foreign_folder_is_a_data_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes").mkdir()
    with pytest.raises(DataError):
        find_pairs(tmp_path, name)


def test_roots_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        find_pairs(tmp_path / "missing")
    (tmp_path / "a.zip").write_bytes(b"x")
    with pytest.raises(DataError, match="not a folder"):
        find_pairs(tmp_path / "a.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the folder is empty"):
        find_pairs(tmp_path / "empty")


def test_empty_image_and_mask_folders_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="no images"):
        find_pairs(tmp_path)


def test_a_frame_without_its_mask_is_counted_and_named(tmp_path: Path) -> None:
    put_all(tmp_path, "images/1.jpg", "images/2.jpg", "images/10.jpg", "masks/1.jpg")
    with pytest.raises(DataError, match=r"image without a mask(.|\n)*images(.|\n)*2: 2\.jpg, 10\.jpg"):
        find_pairs(tmp_path)


def test_a_mask_without_its_frame_is_counted_and_named(tmp_path: Path) -> None:
    put_all(tmp_path, "images/1.jpg", "masks/1.jpg", "masks/7.jpg")
    with pytest.raises(DataError, match=r"mask without an image(.|\n)*masks(.|\n)*1: 7\.jpg"):
        find_pairs(tmp_path)


def test_two_files_of_one_stem_are_an_error(tmp_path: Path) -> None:
    put_all(tmp_path, "images/a.jpg", "images/a.png", "masks/a.jpg")
    with pytest.raises(DataError, match=r"share one stem(.|\n)*a\.jpg, a\.png"):
        find_pairs(tmp_path)


def test_two_image_folders_are_not_chosen_between(tmp_path: Path) -> None:
    put_all(tmp_path, "images/a.jpg", "img/a.jpg", "masks/a.jpg")
    with pytest.raises(DataError, match="more than one image folder"):
        find_pairs(tmp_path)


def test_a_dangling_link_is_not_dropped_in_silence(tmp_path: Path) -> None:
    put_all(tmp_path / "d", "images/1.jpg", "masks/1.jpg")
    for folder in ("images", "masks"):
        os.symlink(tmp_path / "nowhere.jpg", tmp_path / "d" / folder / "2.jpg")
    assert ids(tmp_path / "d") == ["d/1", "d/2"]
