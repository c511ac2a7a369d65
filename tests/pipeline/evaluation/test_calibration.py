"""Calibration in a band around the lesion, against loops and numbers worked out by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from polyp_difom.pipeline.evaluation.calibration import BAND, BINS, Calibration, band, band_bins, calibration


def disc(size: int = 80, radius: int = 18, centre: tuple[int, int] = (40, 36)) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return np.hypot(rows - centre[0], columns - centre[1]) <= radius


def whole_band(truth: np.ndarray) -> np.ndarray:
    found = band(truth)
    mask = np.zeros_like(truth)
    if found is not None:
        mask[found[0]] = found[1]
    return mask


def of(probability: np.ndarray, truth: np.ndarray) -> Calibration:
    found = calibration([band_bins(probability, truth)])
    assert found is not None
    return found


@pytest.mark.parametrize("centre", [(40, 36), (2, 45), (59, 0)])
def test_the_band_is_every_pixel_within_the_radius_of_the_other_class(centre: tuple[int, int]) -> None:
    truth = disc(60, 9, centre)[:, :50]
    expected = np.zeros_like(truth)
    for y, x in np.ndindex(truth.shape):
        other = np.argwhere(truth != truth[y, x])
        expected[y, x] = np.hypot(*(other - (y, x)).T).min() <= BAND * 50
    np.testing.assert_array_equal(whole_band(truth), expected)
    assert expected.any()
    assert not expected.all()


def test_a_band_is_never_thinner_than_the_border_pixels() -> None:
    truth = np.zeros((10, 10), bool)
    truth[3:7, 3:7] = True
    assert whole_band(truth).sum() == 12 + 16  # inside; outside without the corners


@pytest.mark.parametrize("truth", [np.zeros((40, 40), bool), np.ones((40, 40), bool)], ids=["empty", "full"])
def test_a_frame_without_a_border_leaves_no_band_and_does_not_disturb_the_others(truth: np.ndarray) -> None:
    nothing = band_bins(np.full((40, 40), 0.5), truth)
    assert not nothing.any()
    assert calibration([nothing]) is None
    some = band_bins(np.full((80, 80), 0.5), disc())
    assert calibration([nothing, some]) == calibration([some])


def test_a_constant_map_is_wrong_by_its_distance_from_the_share_of_lesion() -> None:
    truth = disc()
    share = truth[whole_band(truth)].mean()
    found = of(np.full(truth.shape, 0.9), truth)
    (row,) = found.rows
    assert (row.confidence, row.accuracy, row.count) == pytest.approx((0.9, share, whole_band(truth).sum()))
    assert found.ece == pytest.approx(0.9 - share)
    assert of(np.full(truth.shape, share), truth).ece == pytest.approx(0, abs=1e-12)


def test_ece_and_rows_agree_with_a_loop_over_bins() -> None:
    truth = disc()
    probability = np.random.default_rng(0).random(truth.shape).astype(np.float32)
    probability[0, :2] = 0, 1
    chosen = whole_band(truth)
    values, lesion = probability[chosen].astype(float), truth[chosen]
    edges = [k / BINS for k in range(BINS)] + [1.0001]
    rows, ece = [], 0.0
    for low, high in pairwise(edges):
        inside = (values >= low) & (values < high)
        rows.append((values[inside].mean(), lesion[inside].mean(), inside.sum()))
        ece += inside.mean() * abs(values[inside].mean() - lesion[inside].mean())
    found = of(probability, truth)
    assert [(row.confidence, row.accuracy, row.count) for row in found.rows] == [pytest.approx(row) for row in rows]
    assert found.ece == pytest.approx(ece)
    assert found.pixels == chosen.sum()


def test_a_certain_and_right_map_is_calibrated_and_a_certain_and_wrong_one_is_not() -> None:
    truth = disc()
    assert of(truth.astype(np.float32), truth).ece == 0
    assert of((~truth).astype(np.float32), truth).ece == 1


def test_pixels_outside_the_band_do_not_count() -> None:
    truth = disc()
    probability = np.random.default_rng(1).random(truth.shape)
    changed = np.where(whole_band(truth), probability, 1 - probability)
    assert of(changed, truth) == of(probability, truth)


def test_a_set_pools_the_pixels_of_its_frames_before_comparing() -> None:
    truth = disc()
    over, under = (band_bins(np.where(truth, wrong, 1 - wrong), truth) for wrong in (0.9, 0.5))
    together = calibration([over, under])
    assert together is not None
    assert together.pixels == 2 * whole_band(truth).sum()
    assert sum(row.count for row in together.rows) == together.pixels
