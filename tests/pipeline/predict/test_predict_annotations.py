"""Regions, COCO and Label Studio files: valid, and the same regions as the mask's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image, ImageDraw

from polyp_difom.pipeline.predict.regions import find_regions, polygons, run_lengths
from polyp_difom.pipeline.predict.run import Totals

from .conftest import scene


def decoded(counts: list[int], size: tuple[int, int]) -> np.ndarray:
    """COCO's definition: alternate runs of 0 and 1 down the columns."""
    values = np.repeat(np.arange(len(counts)) % 2, counts)
    return values.reshape(size[::-1]).T.astype(bool)


def random_mask(seed: int, size: tuple[int, int] = (23, 31)) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(np.random.default_rng(seed).standard_normal(size), 2) > 0.05


@pytest.mark.parametrize("seed", range(8))
def test_run_lengths_of_all_regions_make_the_mask_again(seed: int) -> None:
    mask = random_mask(seed)
    regions = find_regions(mask, mask.astype(np.float32))
    parts = [decoded(run_lengths(region, mask.shape), mask.shape) for region in regions]
    np.testing.assert_array_equal(np.sum(parts, axis=0), mask)  # each pixel once
    assert (
        [part.sum() for part in parts] == [region.area for region in regions] == sorted((p.sum() for p in parts), reverse=True)
    )
    for part, region in zip(parts, regions, strict=True):
        left, top, width, height = region.box
        ys, xs = np.nonzero(part)
        assert (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1) == (left, top, width, height)


@pytest.mark.parametrize("corner", [(0, 0), (-1, -1)])
def test_run_lengths_begin_outside_and_fill_the_picture(corner: tuple[int, int]) -> None:
    mask = np.zeros((4, 5), bool)
    mask[corner] = True
    (region,) = find_regions(mask, mask.astype(np.float32))
    assert run_lengths(region, mask.shape) == ([0, 1, 19] if corner == (0, 0) else [19, 1])


def test_diagonal_neighbours_are_one_region() -> None:
    assert len(find_regions(np.eye(5, dtype=bool), np.ones((5, 5), np.float32))) == 1


@pytest.mark.parametrize("seed", range(4))
def test_polygons_are_short_and_cover_the_region(seed: int) -> None:
    y, x = np.mgrid[:200, :300]
    angle = np.arctan2(y - 90, x - 140)
    mask = np.hypot(y - 90, x - 140) < 60 + 12 * np.sin(3 * angle + seed)
    (region,) = find_regions(mask, mask.astype(np.float32))
    (polygon,) = polygons(region)
    canvas = Image.new("1", (300, 200))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in polygon - 0.5], fill=1)  # corners to pixel centres
    drawn = np.array(canvas)
    assert (drawn & mask).sum() / (drawn | mask).sum() > 0.97
    assert len(polygon) < 60


def test_holes_have_no_polygon_and_single_pixels_have_one() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:12, 2:12] = True
    mask[5:8, 5:8] = False
    mask[16, 16] = True
    ring, dot = find_regions(mask, mask.astype(np.float32))
    assert sorted(map(tuple, polygons(ring)[0].tolist())) == [(2, 2), (2, 12), (12, 2), (12, 12)]
    assert len(polygons(ring)) == 1
    assert len(polygons(dot)[0]) >= 3


@pytest.fixture
def outputs(predicted: Callable[..., Totals], tmp_path: Path) -> Path:
    (tmp_path / "in dir").mkdir()
    two = scene(40, 60, (5, 20, 5, 25))
    two[25:38, 35:55] = (230, 40, 40)
    Image.fromarray(two).save(tmp_path / "in dir/two.png")
    Image.fromarray(scene(30, 20)).save(tmp_path / "in dir/none.png")
    return predicted(tmp_path / "in dir", save=("mask", "coco", "label-studio")).out


def test_coco_holds_images_categories_and_an_annotation_a_region(outputs: Path) -> None:
    coco = json.loads((outputs / "coco.json").read_text())
    assert coco["categories"] == [{"id": 1, "name": "polyp", "supercategory": ""}]
    images = {image["file_name"]: image for image in coco["images"]}
    assert {name: (i["width"], i["height"]) for name, i in images.items()} == {"none.png": (20, 30), "two.png": (60, 40)}
    assert [annotation["id"] for annotation in coco["annotations"]] == [1, 2]
    with Image.open(outputs / "masks/two.png") as mask:
        truth = np.array(mask) > 0
    together = np.zeros_like(truth)
    for annotation in coco["annotations"]:
        assert (annotation["image_id"], annotation["category_id"], annotation["iscrowd"]) == (images["two.png"]["id"], 1, 0)
        assert 0.5 <= annotation["score"] <= 1
        part = decoded(annotation["segmentation"]["counts"], tuple(annotation["segmentation"]["size"]))
        assert part.sum() == annotation["area"]
        together |= part
    np.testing.assert_array_equal(together, truth)


def test_label_studio_tasks_point_at_the_pictures_in_percent(outputs: Path, tmp_path: Path) -> None:
    none, two = json.loads((outputs / "label-studio.json").read_text())
    served = "/data/local-files/?d="
    assert none["data"]["image"].startswith(served)
    assert Path("/" + unquote(two["data"]["image"].removeprefix(served))) == tmp_path / "in dir/two.png"
    assert none["predictions"][0]["result"] == []
    assert two["predictions"][0]["model_version"] == "red"
    results = two["predictions"][0]["result"]
    assert len({result["id"] for result in results}) == 2
    for result in results:
        assert (result["type"], result["original_width"], result["original_height"]) == ("polygonlabels", 60, 40)
        points = np.array(result["value"]["points"])
        assert result["value"]["polygonlabels"] == ["polyp"]
        assert ((points >= 0) & (points <= 100)).all()
    largest = np.array(results[0]["value"]["points"]) * (0.6, 0.4)
    assert (*largest.min(axis=0), *largest.max(axis=0)) == pytest.approx((5, 5, 25, 20), abs=2) or (
        *largest.min(axis=0), *largest.max(axis=0)
    ) == pytest.approx((35, 25, 55, 38), abs=2)  # fmt: skip
