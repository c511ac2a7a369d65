"""The synthetic generator: repeatable, varied, exactly labelled, not solved by a threshold, written all or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyp_difom.cache.errors import DataError, UsageError
from polyp_difom.pipeline.data import synthetic
from polyp_difom.pipeline.data.lesions import place_lesions, shape_of
from polyp_difom.pipeline.data.mucosa import smooth_noise
from polyp_difom.pipeline.data.synthetic import Scene, compose, draw, write_dataset


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [compose(seed, 96) for seed in range(60)]


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    return 2 * float((found & truth).sum()) / float(found.sum() + truth.sum())


def test_the_same_seed_and_size_draw_the_same_frame() -> None:
    first, second = draw(7, 96), draw(7, 96)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_a_frame_is_rgb_bytes_with_a_boolean_mask_of_the_asked_size() -> None:
    image, mask = draw(1, 80)
    assert (image.shape, image.dtype) == ((80, 80, 3), np.uint8)
    assert (mask.shape, mask.dtype) == ((80, 80), np.bool_)
    assert draw(1)[1].shape == (352, 352)


def test_different_seeds_draw_different_frames(scenes: list[Scene]) -> None:
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)
    assert len({scene.mask.tobytes() for scene in scenes if scene.mask.any()}) == sum(scene.mask.any() for scene in scenes)


def test_one_seed_shows_the_same_lesion_at_every_size() -> None:
    small, large = draw(2, 96)[1], draw(2, 192)[1]
    assert small.any()
    assert dice(large[::2, ::2], small) > 0.9


def test_most_frames_hold_a_lesion_and_a_few_hold_none() -> None:
    empty = [not place_lesions(np.random.default_rng(seed), np.ones((64, 64), dtype=bool)) for seed in range(600)]
    assert 0.015 < np.mean(empty) < 0.08


def test_lesion_areas_span_a_wide_range(scenes: list[Scene]) -> None:
    shares = np.array([scene.mask.mean() for scene in scenes if scene.mask.any()])
    assert len(shares) >= 50
    assert shares.min() < 0.015
    assert shares.max() > 0.18
    assert shares.max() < 0.45
    assert np.quantile(shares, 0.75) > 3 * np.quantile(shares, 0.25)


def test_lesions_lie_inside_the_field_of_view(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert not (scene.mask & ~scene.field).any()


def test_outside_the_field_of_view_a_frame_is_black_but_for_lettering(scenes: list[Scene]) -> None:
    outside = np.concatenate([scene.image[~scene.field] for scene in scenes])
    inside = np.concatenate([scene.image[scene.field] for scene in scenes])
    assert len(outside) > 0.1 * len(inside)
    assert np.mean(outside.max(axis=1) < 40) > 0.9
    assert np.mean(inside.max(axis=1) < 40) < 0.1


def test_the_mask_is_where_the_lesion_makes_up_more_than_half_of_the_blend() -> None:
    kinds = set()
    for seed in range(25):
        rng = np.random.default_rng(seed)
        for lesion in place_lesions(rng, np.ones((64, 64), dtype=bool)):
            shape = shape_of(lesion, rng, 128)
            np.testing.assert_array_equal(shape.alpha > 0.5, shape.inside > 0)
            kinds.add(lesion.kind)
    assert kinds == {"sessile", "flat", "pedunculated"}


def test_a_pedunculated_mask_covers_the_stalk() -> None:
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(40):
        for lesion in place_lesions(rng, np.ones((64, 64), dtype=bool)):
            if lesion.kind == "pedunculated":
                x, y = lesion.x + lesion.stalk[0], lesion.y + lesion.stalk[1]
                assert shape_of(lesion, rng, 128).alpha[int((y + 1) * 64), int((x + 1) * 64)] > 0.5
                found += 1
    assert found > 2


@pytest.mark.parametrize("channel", ["red", "brightness", "redness"])
def test_no_global_threshold_segments_the_lesions(scenes: list[Scene], channel: str) -> None:
    reading = {
        "red": lambda image: image[..., 0],
        "brightness": lambda image: image.mean(axis=-1),
        "redness": lambda image: 255 * image[..., 0] / (image.sum(axis=-1) + 1.0),
    }[channel]
    pairs = [(reading(scene.image), scene.mask) for scene in scenes if scene.mask.any()][:40]
    levels = np.linspace(0, 250, 26)
    above = max(np.mean([dice(values > level, mask) for values, mask in pairs]) for level in levels)
    below = max(np.mean([dice(values <= level, mask) for values, mask in pairs]) for level in levels)
    assert max(above, below) < 0.4


def test_a_lesion_changes_the_picture_where_the_mask_says(scenes: list[Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_add_lesion", lambda *_: None)
    inside, outside = [], []
    for seed, scene in enumerate(scenes[:30]):
        change = np.abs(compose(seed, 96).image.astype(float) - scene.image).mean(axis=-1)
        if scene.mask.any():
            inside.append(change[scene.mask].mean())
            outside.append(change[scene.field & ~scene.mask].mean())
    assert np.median(inside) > 15
    assert np.median(inside) > 3 * np.median(outside)
    assert np.mean(np.array(inside) > np.array(outside)) > 0.9


def test_smooth_noise_has_about_unit_variance() -> None:
    rng = np.random.default_rng(0)
    assert np.mean([smooth_noise(rng, 64, 8).var() for _ in range(50)]) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(("seed", "size"), [(-1, 96), (0, 31)])
def test_a_frame_that_cannot_be_drawn_is_refused(seed: int, size: int) -> None:
    with pytest.raises(UsageError, match="seed of 0 or more"):
        draw(seed, size)


def test_a_data_set_is_a_folder_pair_with_a_note(tmp_path: Path) -> None:
    seen: list[int] = []
    write_dataset(tmp_path / "new" / "synth", count=3, size=64, seed=5, progress=seen.append)
    names = ["images", *(f"images/000{i}.jpg" for i in range(3)), "masks", *(f"masks/000{i}.png" for i in range(3))]
    assert tree(tmp_path / "new" / "synth") == [*names, "synthetic.json"]
    assert tree(tmp_path / "new") == ["synth", *(f"synth/{name}" for name in [*names, "synthetic.json"])]
    assert seen == [1, 2, 3]
    note = json.loads((tmp_path / "new/synth/synthetic.json").read_text())
    assert (note["synthetic"], note["seed"], note["count"], note["size"]) == (True, 5, 3, 64)
    assert note["generator_version"] == synthetic.VERSION
    for index in range(3):
        with Image.open(tmp_path / f"new/synth/images/000{index}.jpg") as image:
            assert (image.size, image.mode) == ((64, 64), "RGB")
        mask = np.asarray(Image.open(tmp_path / f"new/synth/masks/000{index}.png"))
        assert mask.shape == (64, 64)
        assert set(np.unique(mask)) <= {0, 255}


def test_a_data_set_is_fixed_by_its_seed_and_shares_no_frame_with_another(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_dataset(tmp_path / name, count=4, size=48, seed=seed)
    a, b, c = ([path.read_bytes() for path in sorted((tmp_path / name / "images").iterdir())] for name in "abc")
    assert a == b
    assert not set(a) & set(c)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "synth").mkdir()
    write_dataset(tmp_path / "synth", count=1, size=48)
    assert tree(tmp_path) == [
        "synth",
        *(f"synth/{n}" for n in ("images", "images/0000.jpg", "masks", "masks/0000.png", "synthetic.json")),
    ]


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "synth").mkdir()
    (tmp_path / "synth" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="another folder, or delete"):
        write_dataset(tmp_path / "synth", count=1, size=48)
    assert tree(tmp_path) == ["synth", "synth/mine.txt"]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "synth").write_text("keep")
    with pytest.raises(UsageError):
        write_dataset(tmp_path / "synth", count=1, size=48)
    assert (tmp_path / "synth").read_text() == "keep"


def test_an_interrupted_writing_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        assert not (tmp_path / "synth").exists()
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "synth", count=3, size=48, progress=interrupt)
    assert tree(tmp_path) == []


def test_a_place_that_cannot_be_written_is_reported_with_the_systems_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Not a directory"):
        write_dataset(tmp_path / "file" / "synth", count=1, size=48)


@pytest.mark.parametrize(("count", "size", "seed"), [(0, 64, 0), (1, 8, 0), (1, 64, -1)])
def test_numbers_out_of_range_are_refused_before_anything_is_written(tmp_path: Path, count: int, size: int, seed: int) -> None:
    with pytest.raises(UsageError, match=f"count {count}, seed {seed}, side {size}"):
        write_dataset(tmp_path / "synth", count, size, seed)
    assert tree(tmp_path) == []
