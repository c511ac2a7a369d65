"""Paired differences: image by image, over seeds and sets, and no word that the interval does not bear."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polyp_difom.cache.errors import DataError
from polyp_difom.pipeline.evaluation.paired import averaged_difference, paired_difference, word_of_interval
from polyp_difom.pipeline.evaluation.scoring import ImageScore


def row(name: str, dice: float, dataset: str = "kvasir") -> ImageScore:
    return ImageScore(name, dataset, 8, 10, 0.1, dice, dice / (2 - dice), dice, dice, 1 - dice, 1)


def rows(*dice: float, dataset: str = "kvasir") -> list[ImageScore]:
    return [row(str(number), value, dataset) for number, value in enumerate(dice)]


def test_a_paired_difference_is_first_minus_second_whatever_the_order_of_rows() -> None:
    control = [row(str(k), 0.5 + 0.01 * (k % 5)) for k in range(20)]
    better = [replace(score, dice=score.dice + (0.1 if score.id != "0" else -0.05)) for score in reversed(control)]
    difference = paired_difference(better, control)
    assert difference.mean == pytest.approx((19 * 0.1 - 0.05) / 20)
    assert difference.improved == pytest.approx(0.95)
    assert (difference.images, difference.word) == (20, "helped")
    mirrored = paired_difference(control, better)
    assert mirrored.mean == pytest.approx(-difference.mean)
    assert mirrored.word == "harmed"


def test_a_difference_within_the_noise_is_not_shown_and_not_denied() -> None:
    control = [row(str(k), 0.7) for k in range(40)]
    other = [replace(score, dice=0.7 + (0.11 if k % 2 else -0.1)) for k, score in enumerate(control)]
    for difference in (paired_difference(other, control), paired_difference(control, other)):
        assert abs(difference.mean) == pytest.approx(0.005)
        assert difference.word == "no difference"


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((0.001, 0.02), "helped"), ((0.0, 0.02), "no difference"), ((-0.01, 0.001), "no difference"),
        ((-0.01, 0.0), "did not help"), ((0.0, 0.0), "did not help"), ((-0.02, -0.001), "harmed"),
    ],
)  # fmt: skip
def test_only_an_interval_that_ends_at_zero_says_that_nothing_was_gained(interval: tuple[float, float], word: str) -> None:
    assert word_of_interval(interval) == word


def test_runs_scored_on_other_images_or_protocols_are_not_compared() -> None:
    scores = [row("a", 0.5), row("b", 0.6)]
    with pytest.raises(DataError, match="kvasir/b"):
        paired_difference(scores, scores[:1])
    with pytest.raises(DataError):
        paired_difference(scores, [replace(score, protocol="pranet") for score in scores])
    with pytest.raises(DataError, match="kvasir/b"):  # two seeds that saw different images
        averaged_difference([[(scores, scores), (scores[:1], scores[:1])]])


def test_seeds_are_averaged_image_by_image_before_images_are_drawn() -> None:
    zero = rows(0.5, 0.5, 0.5, 0.5)
    opposite = [(rows(0.7, 0.3, 0.7, 0.3), zero), (rows(0.5, 0.9, 0.5, 0.9), zero)]  # each image gains 0.1 on average
    found = averaged_difference([opposite])
    assert (found.mean, found.interval) == (pytest.approx(0.1), pytest.approx((0.1, 0.1)))
    assert (found.improved, found.word) == (1.0, "helped")


def test_the_mean_over_sets_weighs_a_small_set_as_much_as_a_large_one() -> None:
    large = [(rows(*[0.6] * 30), rows(*[0.5] * 30))]
    small = [(rows(0.2, 0.4, dataset="etis"), rows(0.5, 0.5, dataset="etis"))]
    found = averaged_difference([large, small])
    assert found.mean == pytest.approx((0.1 - 0.2) / 2)
    assert found.images == 32
    assert found.interval == pytest.approx(((0.1 - 0.3) / 2, (0.1 - 0.1) / 2))  # the small set is drawn from itself alone
