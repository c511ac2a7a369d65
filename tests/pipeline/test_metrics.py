"""Scores against values worked out by hand, protocols against literal loops, and the comparison of two runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from polyp_difom.cache.errors import DataError, RunError, UsageError
from polyp_difom.pipeline.metrics import (
    PROTOCOLS,
    Case,
    ImageScore,
    paired_difference,
    read_scores_csv,
    score_cases,
    score_image,
    summarise,
    write_scores_csv,
)


def block(rows: slice, columns: slice, shape: tuple[int, int] = (8, 10)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


def row(id: str, dice: float, share: float = 0.1, dataset: str = "kvasir") -> ImageScore:
    return ImageScore(id, dataset, 8, 10, share, dice, dice / (2 - dice), dice, dice, 1 - dice)


def blurred_case(seed: int) -> Case:
    noise = np.random.default_rng(seed)
    truth = block(slice(2, 6), slice(2, 7))
    return Case(
        f"frame{seed}", "kvasir", np.clip(0.55 * truth + noise.random(truth.shape) * 0.4, 0, 1).astype(np.float32), truth
    )


def test_two_overlapping_rectangles_score_what_the_formulas_say():
    truth, prediction = block(slice(0, 4), slice(0, 5)), block(slice(0, 4), slice(2, 10))  # 20 and 32 pixels, 12 shared
    score = score_image(prediction.astype(np.float32), truth, id="a", dataset="kvasir")
    assert score.dice == pytest.approx(24 / 52)
    assert score.iou == pytest.approx(12 / 40)
    assert score.precision == pytest.approx(12 / 32)
    assert score.recall == pytest.approx(12 / 20)
    assert score.mae == pytest.approx(28 / 80)
    assert score.lesion_share == pytest.approx(20 / 80)
    assert (score.id, score.dataset, score.height, score.width, score.frames) == ("a", "kvasir", 8, 10, 1)


def test_a_pixel_at_the_threshold_is_foreground():
    truth = block(slice(0, 2), slice(0, 2))
    assert score_image(truth * np.float32(0.5), truth).dice == 1
    assert score_image(truth * np.float32(0.7), truth, threshold=0.8).dice == 0


@pytest.mark.parametrize(("truth_empty", "prediction_empty", "expected"), [(True, True, 1), (True, False, 0), (False, True, 0)])
def test_empty_masks_are_scored_and_not_skipped(truth_empty, prediction_empty, expected):
    full, empty = block(slice(0, 3), slice(0, 3)), np.zeros((8, 10), bool)
    score = score_image((empty if prediction_empty else full).astype(np.float32), empty if truth_empty else full)
    assert (score.dice, score.iou, score.precision, score.recall) == (expected,) * 4


@pytest.mark.parametrize("value", [np.nan, -0.01, 1.01, np.inf])
@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_a_map_that_is_no_probability_is_refused_by_every_protocol(protocol, value):
    probability = np.full((8, 8), 0.5, np.float32)
    probability[3, 3] = value
    with pytest.raises(DataError, match="no probability map"):
        list(score_cases(protocol, [Case("x", "kvasir", probability, np.ones((8, 8), bool))]))


def test_a_map_of_another_shape_and_a_grey_mask_are_refused_with_their_frame():
    with pytest.raises(DataError, match=r"kvasir/x[\s\S]*\[8, 10\], mask \[10, 8\]"):
        score_image(np.zeros((8, 10), np.float32), np.zeros((10, 8), bool), id="x", dataset="kvasir")
    with pytest.raises(DataError, match="not boolean"):
        score_image(np.zeros((8, 10), np.float32), np.full((8, 10), 255, np.uint8))


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


@pytest.mark.parametrize("kind", ["blurred", "levels", "constant", "empty truth", "full truth"])
def test_pranet_agrees_with_a_literal_loop_over_256_thresholds(kind):
    case = blurred_case(0)
    levels = np.random.default_rng(1).integers(0, 256, case.truth.shape) / 255  # values exactly on the thresholds
    levels.flat[:2] = 0, 1
    case = {
        "blurred": case,
        "levels": replace(case, probability=levels),
        "constant": replace(case, probability=np.full(case.truth.shape, 0.3)),
        "empty truth": replace(case, truth=np.zeros_like(case.truth)),
        "full truth": replace(case, truth=np.ones_like(case.truth)),
    }[kind]
    (score,) = score_cases("pranet", [case])
    assert (score.dice, score.iou, score.precision, score.recall) == pytest.approx(literal_pranet(case.probability, case.truth))
    assert score.protocol == "pranet"


def test_pranet_stretches_a_faint_map_that_per_image_calls_empty():
    truth = block(slice(2, 6), slice(2, 7))
    case = Case("faint", "kvasir", truth * np.float32(0.2), truth)
    assert next(score_cases("per-image", [case])).dice == 0
    assert next(score_cases("pranet", [case])).dice > 0.99


def test_pooled_6_lets_a_large_lesion_hide_a_missed_small_one():
    large, small = block(slice(0, 8), slice(0, 8), (10, 10)), block(slice(0, 2), slice(0, 2), (10, 10))
    cases = [Case("large", "etis", large * np.float32(1), large), Case("small", "etis", small * np.float32(0), small)]
    (pooled,) = score_cases("pooled-6", cases)
    assert np.mean([score.dice for score in score_cases("per-image", cases)]) == 0.5
    assert pooled.dice == pytest.approx(128 / 132)
    assert (pooled.id, pooled.frames, pooled.protocol) == ("large+small", 2, "pooled-6")


def test_pooled_6_makes_rows_of_six_and_counts_every_frame():
    truth = block(slice(0, 3), slice(0, 3), (10, 10))
    scores = list(score_cases("pooled-6", (Case(str(k), "etis", truth * np.float32(1), truth) for k in range(8))))
    assert [score.frames for score in scores] == [6, 2]
    assert summarise(scores, "pooled-6", "etis").images == 8


def test_pooled_6_refuses_maps_at_their_original_size():
    with pytest.raises(DataError, match="squared maps"):
        list(score_cases("pooled-6", [blurred_case(0)]))


def test_an_unknown_protocol_is_answered_with_a_close_match():
    with pytest.raises(UsageError, match="did you mean per-image"):
        list(score_cases("per_image", []))


def test_a_summary_averages_over_images_and_names_its_protocol():
    summary = summarise([row("a", 0.5, 0.01), row("b", 0.7, 0.05), row("c", 0.9, 0.149)], "per-image", "kvasir")
    assert (summary.protocol, summary.dataset, summary.images) == ("per-image", "kvasir", 3)
    assert summary.mdice == pytest.approx(0.7)
    assert summary.mae == pytest.approx(0.3)
    bands = {band.name: (band.images, band.mdice) for band in summary.dice_by_size}
    assert bands == {"small": (1, 0.5), "medium": (2, pytest.approx(0.8)), "large": (0, None)}


def test_the_interval_holds_the_mean_narrows_with_more_images_and_repeats():
    dice = np.random.default_rng(3).beta(8, 2, 400)
    scores = [row(str(k), float(value)) for k, value in enumerate(dice)]
    few, many = summarise(scores[:20], "per-image", "kvasir"), summarise(scores, "per-image", "kvasir")
    for summary in (few, many):
        assert summary.dice_interval[0] < summary.mdice < summary.dice_interval[1]
    assert np.diff(many.dice_interval) < np.diff(few.dice_interval) / 2
    assert np.diff(many.dice_interval)[0] == pytest.approx(2 * 1.96 * dice.std() / np.sqrt(400), rel=0.1)
    assert summarise(scores, "per-image", "kvasir") == many


@pytest.mark.parametrize(
    "scores",
    [
        [],
        [row("a", 0.5), row("a", 0.6)],
        [row("a", 0.5), row("b", 0.6, dataset="etis")],
        [row("a", 0.5), replace(row("b", 0.6), protocol="pranet")],
    ],
    ids=["none", "twice", "two datasets", "two protocols"],
)
def test_rows_that_do_not_belong_together_are_not_averaged(scores):
    with pytest.raises(DataError):
        summarise(scores, "per-image", "kvasir")


def test_a_paired_difference_is_first_minus_second_whatever_the_order_of_rows():
    control = [row(str(k), 0.5 + 0.01 * (k % 5)) for k in range(20)]
    better = [replace(score, dice=score.dice + (0.1 if score.id != "0" else -0.05)) for score in reversed(control)]
    difference = paired_difference(better, control)
    assert difference.mean == pytest.approx((19 * 0.1 - 0.05) / 20)
    assert difference.improved == pytest.approx(0.95)
    assert (difference.images, difference.helped, difference.harmed) == (20, True, False)
    mirrored = paired_difference(control, better)
    assert mirrored.mean == pytest.approx(-difference.mean)
    assert mirrored.harmed
    assert not mirrored.helped


def test_a_difference_within_the_noise_neither_helps_nor_harms():
    control = [row(str(k), 0.7) for k in range(40)]
    other = [replace(score, dice=0.7 + (0.11 if k % 2 else -0.1)) for k, score in enumerate(control)]
    for difference in (paired_difference(other, control), paired_difference(control, other)):
        assert abs(difference.mean) == pytest.approx(0.005)
        assert not difference.helped
        assert not difference.harmed


def test_runs_scored_on_other_images_or_protocols_are_not_compared():
    scores = [row("a", 0.5), row("b", 0.6)]
    with pytest.raises(DataError, match="kvasir/b"):
        paired_difference(scores, scores[:1])
    with pytest.raises(DataError):
        paired_difference(scores, [replace(score, protocol="pranet") for score in scores])


def test_scores_come_back_from_disk_bit_for_bit(tmp_path):
    scores = list(score_cases("per-image", [blurred_case(seed) for seed in range(3)]))
    scores.append(replace(row('with, comma and "quotes"\nand é', 1 / 3), lesion_share=0.1 + 0.2))
    path = tmp_path / "new" / "results.csv"
    write_scores_csv(path, scores)
    assert read_scores_csv(path) == scores
    assert [file.name for file in path.parent.iterdir()] == ["results.csv"]


def test_a_failed_write_leaves_the_old_table_in_place(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    write_scores_csv(path, [row("a", 0.5)])
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(RunError, match="disk full"):
        write_scores_csv(path, [row("b", 0.6)])
    assert read_scores_csv(path) == [row("a", 0.5)]
    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]


@pytest.mark.parametrize("damage", ["missing", "columns", "cell", "short row"])
def test_a_damaged_table_is_a_data_error_with_its_path(tmp_path, damage):
    path = tmp_path / "results.csv"
    write_scores_csv(path, [row("a", 0.5)])
    text = path.read_text()
    if damage == "missing":
        path.unlink()
    else:
        changed = {"columns": text.replace("dice", "dise", 1), "cell": text.replace("0.5", "half", 1), "short row": text[:-20]}
        path.write_text(changed[damage])
    with pytest.raises(DataError, match=r"results\.csv"):
        read_scores_csv(path)
