"""Scores against values worked out by hand, and protocols against literal loops and against pysodmetrics."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from polyp_difom.cache.errors import DataError, UsageError
from polyp_difom.pipeline.evaluation.metrics import SetScores, score_set, summarise
from polyp_difom.pipeline.evaluation.scoring import PROTOCOLS, Case, ImageScore, Measures

sod = pytest.importorskip("py_sod_metrics")


def block(rows: slice, columns: slice, shape: tuple[int, int] = (8, 10)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


def score(probability: np.ndarray, truth: np.ndarray, protocol: str = "per-image", measures: Measures = "all") -> ImageScore:
    case = Case("a", "kvasir", probability.astype(np.float32), truth)
    return score_set(protocol, "kvasir", [case], measures).rows[0]


def overlap(row: ImageScore) -> tuple[float, float, float, float]:
    return row.dice, row.iou, row.precision, row.recall


def blurred_case(seed: int) -> Case:
    noise = np.random.default_rng(seed)
    truth = block(slice(2, 6), slice(2, 7))
    return Case(f"f{seed}", "kvasir", np.clip(0.55 * truth + noise.random(truth.shape) * 0.4, 0, 1).astype(np.float32), truth)


def test_two_overlapping_rectangles_score_what_the_formulas_say() -> None:
    truth, prediction = block(slice(0, 4), slice(0, 5)), block(slice(0, 4), slice(2, 10))  # 20 and 32 pixels, 12 shared
    row = score(prediction, truth)
    assert overlap(row) == pytest.approx((24 / 52, 12 / 40, 12 / 32, 12 / 20))
    assert (row.mae, row.lesion_share) == pytest.approx((28 / 80, 20 / 80))
    assert (row.id, row.dataset, row.height, row.width, row.frames, row.lesions) == ("a", "kvasir", 8, 10, 1, 1)


def test_a_pixel_at_the_threshold_is_foreground() -> None:
    truth = block(slice(0, 2), slice(0, 2))
    assert score(truth * 0.5, truth).dice == 1
    assert score(truth * 0.499, truth).dice == 0


@pytest.mark.parametrize(("truth_empty", "prediction_empty", "expected"), [(True, True, 1), (True, False, 0), (False, True, 0)])
def test_empty_masks_are_scored_and_not_skipped(truth_empty: bool, prediction_empty: bool, expected: int) -> None:
    full, empty = block(slice(3, 5), slice(3, 7)), np.zeros((8, 10), bool)
    row = score(empty if prediction_empty else full, empty if truth_empty else full)
    assert overlap(row) == (expected,) * 4
    assert row.weighted_f == pytest.approx(expected)
    assert row.hd95 == (0 if expected else pytest.approx(np.hypot(8, 10)))


def test_a_faint_map_on_a_frame_without_lesion_is_an_empty_answer_that_the_graded_measures_still_grade() -> None:
    empty = np.zeros((8, 10), bool)
    row = score(np.full((8, 10), 0.2), empty)
    assert (row.dice, row.weighted_f, row.hd95, row.lesions) == (1, 1, 0, 0)
    assert (row.mae, row.s_measure) == pytest.approx((0.2, 0.8))
    assert row.e_mean == pytest.approx((255 - 51) / 256)  # found empty at the thresholds 52/255 to 1; 0.2 is 51/255
    # PraNet's code knows no perfect empty answer
    row = score(np.zeros((8, 10)), empty, "pranet")
    assert (row.dice, row.weighted_f) == (0, 0)


@pytest.mark.parametrize("value", [np.nan, -0.01, 1.01, np.inf])
@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_a_map_that_is_no_probability_is_refused_by_every_protocol(protocol: str, value: float) -> None:
    probability = np.full((8, 8), 0.5)
    probability[3, 3] = value
    with pytest.raises(DataError, match="no probability map"):
        score(probability, np.ones((8, 8), bool), protocol)


def test_a_map_of_another_shape_and_a_grey_mask_are_refused_with_their_frame() -> None:
    with pytest.raises(DataError, match=r"kvasir/a[\s\S]*\[8, 10\], mask \[10, 8\]"):
        score(np.zeros((8, 10)), np.zeros((10, 8), bool))
    with pytest.raises(DataError, match="not boolean"):
        score(np.zeros((8, 10)), np.full((8, 10), 255, np.uint8))


def literal_pranet(probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The definition read off PraNet's evaluation, one threshold at a time."""
    values = probability.astype(np.float64)
    if values.max() > values.min():
        values = (values - values.min()) / (values.max() - values.min())
    found = []
    for k in range(256):
        chosen = values >= k / 255
        shared, predicted, actual = (chosen & truth).sum(), chosen.sum(), truth.sum()
        if shared == 0:
            found.append((0, 0, 0, 0))
        else:
            union = predicted + actual - shared
            found.append((2 * shared / (predicted + actual), shared / union, shared / predicted, shared / actual))
    return np.mean(found, axis=0)


@pytest.mark.parametrize("kind", ["blurred", "levels", "next to levels", "constant", "empty truth", "full truth"])
def test_pranet_agrees_with_a_literal_loop_over_256_thresholds(kind: str) -> None:
    case = blurred_case(0)
    levels = np.random.default_rng(1).integers(0, 256, case.truth.shape) / 255  # values exactly on the thresholds
    levels.flat[:2] = 0, 1
    case = {
        "blurred": case,
        "levels": replace(case, probability=levels),
        "next to levels": replace(case, probability=np.nextafter(levels, (levels + 0.5) % 1)),
        "constant": replace(case, probability=np.full(case.truth.shape, 0.3)),
        "empty truth": replace(case, truth=np.zeros_like(case.truth)),
        "full truth": replace(case, truth=np.ones_like(case.truth)),
    }[kind]
    (row,) = score_set("pranet", "kvasir", [case]).rows
    assert overlap(row) == pytest.approx(literal_pranet(case.probability, case.truth))
    assert row.protocol == "pranet"


def test_pranet_stretches_a_faint_map_that_per_image_calls_empty() -> None:
    truth = block(slice(2, 6), slice(2, 7))
    plain, stretched = score(truth * 0.2, truth), score(truth * 0.2, truth, "pranet")
    assert plain.dice == 0
    assert stretched.dice > 0.99
    assert (stretched.hd95, stretched.s_measure, stretched.weighted_f) == pytest.approx((0, 1, 1))
    assert plain.weighted_f == pytest.approx(0.43, abs=0.01)


def drawn(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An 8-bit map and its truth, [128, 96]."""
    rng = np.random.default_rng(seed)
    shape = (128, 96)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    truth = np.hypot(rows - rng.integers(40, 90), columns - rng.integers(30, 70)) < rng.integers(8, 30)
    soft = ndimage.gaussian_filter(truth + 0.3 * rng.standard_normal(shape), 3)
    grey = np.clip(20 + 200 * soft, 0, 255).astype(np.uint8)
    pixel = np.zeros(shape, bool)
    pixel[60, 40] = True
    return {
        "blurred": (grey, truth),
        "noise": (rng.integers(0, 256, shape).astype(np.uint8), truth),
        "exact": (truth.astype(np.uint8) * 255, truth),
        "empty truth": (grey, np.zeros_like(truth)),
        "full truth": (grey, np.ones_like(truth)),
        "empty map": (np.zeros_like(grey), truth),
        "full map": (np.full_like(grey, 255), truth),
        "constant map": (np.full_like(grey, 77), truth),
        "one pixel of truth": (grey, pixel),
        "one pixel of map": (pixel.astype(np.uint8) * 255, truth),
        "nothing at all": (np.zeros_like(grey), np.zeros_like(truth)),
        "nothing but lesion": (np.full_like(grey, 255), np.ones_like(truth)),
    }[kind]


def pysodmetrics(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """The set's figures by pysodmetrics alone, from 8-bit maps and masks, with its own stretching and averaging."""
    handlers = {
        "mdice": sod.DICEHandler, "miou": sod.IOUHandler, "precision": sod.PrecisionHandler, "recall": sod.RecallHandler,
    }  # fmt: skip
    counted = sod.FmeasureV2({name: made(with_dynamic=True, with_adaptive=False) for name, made in handlers.items()})
    measures = [counted, sod.MAE(), sod.Smeasure(), sod.WeightedFmeasure(), sod.Emeasure()]
    for grey, truth in pairs:
        for measure in measures:
            measure.step(grey, truth.astype(np.uint8) * 255)
    _, mae, s, weighted, e = (measure.get_results() for measure in measures)
    return {
        **{name: float(found["dynamic"].mean()) for name, found in counted.get_results().items()},
        "mae": mae["mae"], "s_measure": s["sm"], "weighted_f": weighted["wfm"],
        "e_mean": e["em"]["curve"].mean(), "e_max": e["em"]["curve"].max(),
    }  # fmt: skip


def pranet(pairs: list[tuple[np.ndarray, np.ndarray]]) -> SetScores:
    cases = [Case(str(number), "drawn", grey / 255, truth) for number, (grey, truth) in enumerate(pairs)]
    return score_set("pranet", "drawn", cases)


@pytest.mark.parametrize(
    "kind",
    [
        *("blurred", "noise", "exact", "empty truth", "full truth", "empty map", "full map", "constant map"),
        *("one pixel of truth", "one pixel of map", "nothing at all", "nothing but lesion"),
    ],
)
def test_pranet_gives_the_figures_of_pysodmetrics(kind: str) -> None:
    pairs = [drawn(kind, seed) for seed in range(3)]
    summary, expected = pranet(pairs).summary(), pysodmetrics(pairs)
    assert {name: getattr(summary, name) for name in expected} == pytest.approx(expected, abs=1e-4)


def test_max_e_is_the_peak_of_the_sets_mean_curve_and_not_the_mean_of_peaks() -> None:
    pairs = [drawn(kind, seed) for seed, kind in enumerate(("blurred", "noise", "empty truth", "one pixel of map"))]
    together, expected = pranet(pairs).summary().e_max, pysodmetrics(pairs)["e_max"]
    assert together == pytest.approx(expected, abs=1e-4)
    peaks = [pysodmetrics([pair])["e_max"] for pair in pairs]
    assert expected < np.mean(peaks) - 0.01


def test_a_lesion_in_the_last_row_and_column_has_an_s_measure_where_pysodmetrics_has_none() -> None:
    truth = block(slice(7, 8), slice(9, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isnan(sod.Smeasure().cal_sm(truth.astype(float), truth))
        warnings.simplefilter("error")
        assert score(truth, truth).s_measure == pytest.approx(1)
        assert score(np.full((8, 10), 0.5), truth).s_measure == pytest.approx(0.4, abs=0.05)


def test_no_measure_leaves_0_to_1_even_on_a_frame_of_one_pixel() -> None:
    for truth in (np.zeros((1, 1), bool), np.ones((1, 1), bool)):
        for value in (0.0, 0.6, 1.0):
            for protocol in ("per-image", "pranet"):
                row = score(np.full((1, 1), value), truth, protocol)
                for name in ("dice", "iou", "mae", "s_measure", "weighted_f", "e_mean"):
                    assert 0 <= getattr(row, name) <= 1, (name, row)


def test_only_what_was_asked_for_and_what_a_protocol_defines_is_computed() -> None:
    truth = block(slice(2, 6), slice(2, 7), (10, 10))
    case = Case("a", "kvasir", truth * np.float32(0.8), truth)
    slow = ("hd95", "s_measure", "weighted_f", "e_mean", "e_max", "calibration")

    def known(protocol: str, measures: Measures) -> set[str]:
        summary = score_set(protocol, "kvasir", [case], measures).summary()
        return {name for name in slow if getattr(summary, name) is not None}

    assert known("per-image", "all") == set(slow)
    assert known("pranet", "all") == set(slow) - {"calibration"}
    for protocol in PROTOCOLS:
        assert known(protocol, "overlap") == set()
    assert known("pooled-6", "all") == set()


def test_pooled_6_lets_a_large_lesion_hide_a_missed_small_one() -> None:
    large, small = block(slice(0, 8), slice(0, 8), (10, 10)), block(slice(0, 2), slice(0, 2), (10, 10))
    cases = [Case("large", "etis", large * np.float32(1), large), Case("small", "etis", small * np.float32(0), small)]
    (pooled,) = score_set("pooled-6", "etis", cases).rows
    assert score_set("per-image", "etis", cases).summary().mdice == 0.5
    assert pooled.dice == pytest.approx(128 / 132)
    assert (pooled.id, pooled.frames, pooled.protocol, pooled.lesions) == ("large+small", 2, "pooled-6", 2)


def test_pooled_6_makes_rows_of_six_and_counts_every_frame() -> None:
    truth = block(slice(0, 3), slice(0, 3), (10, 10))
    rows = score_set("pooled-6", "etis", (Case(str(k), "etis", truth * np.float32(1), truth) for k in range(8))).rows
    assert [row.frames for row in rows] == [6, 2]
    assert summarise(rows, "pooled-6", "etis").images == 8


def test_pooled_6_refuses_maps_at_their_original_size() -> None:
    with pytest.raises(DataError, match="squared maps"):
        score_set("pooled-6", "kvasir", [blurred_case(0)])


def test_an_unknown_protocol_or_choice_of_measures_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="did you mean per-image"):
        score_set("per_image", "kvasir", [])
    with pytest.raises(UsageError, match="all, overlap"):
        score_set("per-image", "kvasir", [], "everything")  # type: ignore[arg-type]
