"""Distance between borders against a brute force, number of lesions, and how fast all scores are."""

from __future__ import annotations

import numpy as np
import pytest

from polyp_difom.pipeline.bench.metrics import bench_metrics, blob_case
from polyp_difom.pipeline.evaluation.measures import count_lesions, hausdorff95


def brute_border(mask: np.ndarray) -> list[tuple[int, int]]:
    height, width = mask.shape
    return [
        (y, x)
        for y, x in np.ndindex(height, width)
        if mask[y, x]
        and any(
            not (0 <= y + dy < height and 0 <= x + dx < width) or not mask[y + dy, x + dx]
            for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))
        )
    ]


def brute_hausdorff95(a: np.ndarray, b: np.ndarray) -> float:
    first, second = brute_border(a), brute_border(b)
    ways = [
        [min(np.hypot(y - v, x - u) for v, u in there) for y, x in here] for here, there in ((first, second), (second, first))
    ]
    return max(np.percentile(way, 95) for way in ways)


@pytest.mark.parametrize("seed", range(30))
def test_hd95_agrees_with_a_brute_force_over_all_border_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(2, 14, 2))
    a, b = (rng.random(shape) < rng.uniform(0.1, 0.95) for _ in range(2))
    a[0, 0] = b[-1, -1] = True
    assert hausdorff95(a, b) == pytest.approx(brute_hausdorff95(a, b))
    assert hausdorff95(a, b) == hausdorff95(b, a)


def test_hd95_of_a_moved_square_is_the_move() -> None:
    truth, moved = np.zeros((2, 60, 80), bool)
    truth[20:40, 20:40] = moved[20:40, 27:47] = True
    assert hausdorff95(moved, truth) == 7
    assert hausdorff95(truth, truth) == 0


def test_hd95_forgives_a_speck_far_away_but_not_a_second_lesion() -> None:
    truth = np.zeros((100, 100), bool)
    truth[40:60, 40:60] = True
    speck, second = truth.copy(), truth.copy()
    speck[5, 5] = True
    second[5:15, 5:15] = True
    assert hausdorff95(speck, truth) == 0
    assert hausdorff95(second, truth) > 40


def test_hd95_of_empty_masks_is_defined() -> None:
    empty, some = np.zeros((30, 40), bool), np.ones((30, 40), bool)
    assert hausdorff95(empty, empty) == 0
    assert hausdorff95(empty, some) == hausdorff95(some, empty) == 50


def test_lesions_that_touch_at_a_corner_are_one_and_specks_count() -> None:
    truth = np.zeros((20, 20), bool)
    assert count_lesions(truth) == 0
    truth[2:5, 2:5] = truth[5:8, 5:8] = True
    assert count_lesions(truth) == 1
    truth[15, 15] = True
    assert count_lesions(truth) == 2


def test_every_score_is_timed_and_overlap_is_fast_enough() -> None:
    speeds = {(speed.name, speed.protocol): speed.maps_per_second for speed in bench_metrics(count=6)}
    assert {name for name, _ in speeds} == {
        *("overlap", "S-measure", "weighted F", "E-measure", "HD95", "calibration", "lesions"),
    }  # fmt: skip
    assert {protocol for name, protocol in speeds if name == "overlap"} == {"per-image", "pranet", "pooled-6"}
    assert speeds["overlap", "per-image"] > 100
    assert all(rate > 0 for rate in speeds.values())


def test_drawn_blobs_repeat_differ_by_seed_and_are_neither_missed_nor_perfect() -> None:
    first, again, other = (blob_case(96, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.probability, again.probability)
    assert (first.truth != other.truth).any()
    for case in (first, other):
        prediction = case.probability >= 0.5
        shared = 2 * (prediction & case.truth).sum() / (prediction.sum() + case.truth.sum())
        assert 0.5 < shared < 1
