"""Twins: all pairs above the threshold, mirrored ones too, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyp_difom.pipeline.data import twins as module
from polyp_difom.pipeline.data.frames import VIEWS, flip, pixel_digest
from polyp_difom.pipeline.data.pairing import Pair
from polyp_difom.pipeline.data.twins import Looks, Twin, closest_twins, groups, look, stacked, thumbnail, twins_within


def scene(seed: int, height: int = 60, width: int = 90) -> np.ndarray:
    """Coarse random blobs, uint8 [h, w, 3]; scenes of different seeds do not correlate."""
    coarse = np.random.default_rng(seed).integers(0, 200, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def looks_of(images: dict[str, np.ndarray]) -> Looks:
    digests = [pixel_digest(image) for image in images.values()]
    return Looks(list(images), digests, stacked([thumbnail(image) for image in images.values()]))


@pytest.mark.parametrize("view", VIEWS)
def test_a_mirrored_frame_is_a_twin_and_its_view_is_named(view: str) -> None:
    mirrored = np.ascontiguousarray(flip(scene(0).transpose(2, 0, 1), view).transpose(1, 2, 0))
    brighter = (mirrored * 0.9 + 10).astype(np.uint8)
    (twin,) = closest_twins(looks_of({"a": brighter}), looks_of({"x": scene(5), "b": scene(0)}))
    assert (twin.frame, twin.other, twin.view, twin.identical) == ("a", "b", view, False)
    assert twin.correlation > 0.99


def test_correlations_are_pearsons_of_the_thumbnails() -> None:
    rng = np.random.default_rng(0)
    first = scene(1)
    other = np.clip(first.astype(int) + rng.integers(-40, 40, first.shape), 0, 255).astype(np.uint8)
    looks = looks_of({"a": first, "b": other})
    wanted = np.corrcoef(looks.thumbnails.reshape(2, -1))[0, 1]
    (twin,) = twins_within(looks)
    assert twin.correlation == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("cells", [1, 64, 2**24])
def test_all_pairs_are_found_once_in_blocks_of_any_size(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CELLS", cells)
    images = {f"{seed}{letter}": scene(seed) + add for seed in range(5) for letter, add in (("", 0), ("b", 5), ("c", 9))}
    found = sorted((twin.frame, twin.other) for twin in twins_within(looks_of(images)))
    assert found == sorted((f"{s}{a}", f"{s}{b}") for s in range(5) for a, b in (("", "b"), ("", "c"), ("b", "c")))


def test_even_pictures_are_twins_of_equal_ones_alone() -> None:
    grey, red = np.full((40, 40, 3), 99, np.uint8), np.zeros((40, 40, 3), np.uint8)
    looks = looks_of({"a": grey, "b": grey.copy(), "c": red, "d": scene(3, 40, 40)})
    assert twins_within(looks) == [Twin("a", "b", 1.0, "identity", True)]
    assert [twin.other for twin in closest_twins(looks_of({"e": grey}), looks)] != []


def test_an_identical_frame_is_closer_than_a_near_one() -> None:
    others = {"near": scene(1) + 3, "same": scene(1), "near2": scene(1) + 1}
    (twin,) = closest_twins(looks_of({"a": scene(1)}), looks_of(others))
    assert (twin.other, twin.identical) == ("same", True)


def test_twins_of_twins_form_one_group() -> None:
    pairs = [("a", "b"), ("c", "b"), ("d", "e")]
    assert groups(Twin(a, b, 1.0, "identity", False) for a, b in pairs) == [["a", "b", "c"], ["d", "e"]]
    assert groups([]) == []


def test_no_frames_have_no_twins(tmp_path: Path) -> None:
    nothing = look([])
    assert twins_within(nothing) == closest_twins(nothing, looks_of({"a": scene(0)})) == []
    assert closest_twins(looks_of({"a": scene(0)}), nothing) == []


def test_frames_are_looked_at_in_order(tmp_path: Path) -> None:
    pairs = []
    for number in range(3):
        Image.fromarray(scene(number)).save(tmp_path / f"{number}.png")
        pairs.append(Pair(f"set/{number}", tmp_path / f"{number}.png", tmp_path, "set"))
    found = look(pairs)
    assert found.ids == ["set/0", "set/1", "set/2"]
    assert found.digests[1] == pixel_digest(scene(1))
    assert found.only([False, True, True]).ids == ["set/1", "set/2"]
    assert Looks.joined([found, found.only([True, False, False])]).thumbnails.shape == (4, 32, 32)
