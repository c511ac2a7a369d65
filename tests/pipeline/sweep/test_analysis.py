"""What is read out of a sweep's figures: means over seeds, fair pairs with honest intervals, importance, the front."""

from __future__ import annotations

from typing import Any

import pytest

from polyp_difom.pipeline.sweep.analysis import counted, groups, importance, paired, pareto
from polyp_difom.pipeline.sweep.results import Row
from polyp_difom.pipeline.sweep.space import Span


def row(number: int, val_dice: float | None, *, state: str = "finished", same_as: int | None = None, **settings: Any) -> Row:
    cost = {"parameters": settings.pop("parameters", None), "latency_ms": settings.pop("latency_ms", None)}
    return Row(
        number=number, name=f"{number:03d}", settings=settings, state=state, epoch=5, epochs=5, val_dice=val_dice, best_epoch=4,
        gmacs=None, seconds=1.0, same_as=same_as, error=None, **cost,
    )  # fmt: skip


OBJECTIVES = {"objective": ("none", "multiscale"), "seed": (0, 1, 2)}


def sweep(gains: tuple[float, ...]) -> list[Row]:
    """A control and a taught trial for each gain, a seed each."""
    controls = [row(n, 0.7 + 0.01 * n, objective="none", seed=n) for n in range(len(gains))]
    taught = [row(9 + n, 0.7 + 0.01 * n + gain, objective="multiscale", seed=n) for n, gain in enumerate(gains)]
    return [*controls, *taught]


def test_trials_that_differ_in_their_seed_alone_are_one_recipe() -> None:
    found = groups(sweep((0.01, 0.02, 0.03)), OBJECTIVES)
    assert [(group.label, len(group.rows)) for group in found] == [("multiscale", 3), ("none", 3)]
    assert found[0].mean == pytest.approx(0.73)
    assert found[0].sd == pytest.approx(0.02)
    assert found[0].best.number == 11
    assert [group.is_control for group in found] == [False, True]


def test_a_single_seed_has_no_deviation() -> None:
    assert groups([row(0, 0.7, objective="none", seed=0)], OBJECTIVES)[0].sd is None


def test_only_finished_trials_count_and_each_setting_once() -> None:
    rows = [
        row(0, 0.7, seed=0), row(1, 0.9, seed=1, state="failed"), row(2, 0.9, seed=2, state="pruned"),
        row(3, 0.9, seed=3, state="running"), row(4, 0.7, seed=0, same_as=0), row(5, 0.7, seed=0), row(6, None, seed=4),
    ]  # fmt: skip
    assert [one.number for one in counted(rows)] == [0]


def test_the_interval_is_students_t_over_the_pairs() -> None:
    (one,) = paired(sweep((0.01, 0.02, 0.03)), OBJECTIVES, "objective")
    assert (one.level, one.reference, len(one.pairs)) == ("multiscale", "none", 3)
    assert one.mean == pytest.approx(0.02)
    assert one.sd == pytest.approx(0.01)
    assert one.interval == pytest.approx((0.02 - 0.0248414, 0.02 + 0.0248414), abs=1e-6)  # t(2) = 4.30265


@pytest.mark.parametrize(
    ("gains", "word"),
    [
        ((0.02, 0.021, 0.022), "helped"),
        ((-0.02, -0.021, -0.022), "harmed"),
        ((0.01, 0.02, -0.02), "no difference"),
        ((0.0, 0.0, 0.0), "did not help"),
        ((0.05, 0.051), "too few"),
        ((0.05,), "too few"),
    ],
)
def test_the_word_claims_no_more_than_the_interval(gains: tuple[float, ...], word: str) -> None:
    (one,) = paired(sweep(gains), OBJECTIVES, "objective")
    assert one.word == word
    assert (one.interval is None) == (len(gains) == 1)


def test_one_control_stands_beside_taught_trials_of_any_teachers_and_counts_once() -> None:
    factors = {**OBJECTIVES, "teachers": ("a", "b")}
    rows = [row(n, 0.7, objective="none", seed=n) for n in range(3)]
    for n in range(3):
        rows += [row(10 + n, 0.72, objective="multiscale", seed=n, teachers="a")]
        rows += [row(20 + n, 0.74, objective="multiscale", seed=n, teachers="b")]
    (one,) = paired(rows, factors, "objective")
    assert len(one.pairs) == 6
    assert one.differences == pytest.approx([0.03, 0.03, 0.03])
    assert one.among(rows[3:4]).differences == pytest.approx([0.02])
    (teachers,) = paired(rows, factors, "teachers")
    assert (teachers.reference, len(teachers.pairs), teachers.mean) == ("a", 3, pytest.approx(0.02))


def test_trials_that_differ_in_anything_else_are_no_pair() -> None:
    rows = [
        row(0, 0.7, objective="none", seed=0, student="unet"), row(1, 0.8, objective="multiscale", seed=1, student="unet"),
        row(2, 0.8, objective="multiscale", seed=0, student="light"),
    ]  # fmt: skip
    (one,) = paired(rows, OBJECTIVES, "objective")
    assert one.pairs == ()
    assert (one.word, one.mean, one.interval) == ("unknown", None, None)


def test_an_objective_without_affine_augmentation_pairs_with_a_control_without_it() -> None:
    factors = {"objective": ("none", "paper"), "affine": (True, False)}
    taught = row(0, 0.8, objective="paper", affine=True)
    with_it, without = (
        row(number, 0.7, objective="none", affine=affine, latents=True) for number, affine in ((1, True), (2, False))
    )
    (one,) = paired([taught, with_it, without], factors, "objective")
    assert [other.number for _, other in one.pairs] == [2]
    assert paired([taught, with_it], factors, "objective")[0].pairs == ()


def test_an_objective_that_gives_latents_pairs_with_a_control_of_the_same_network() -> None:
    factors = {"objective": ("none", "paper", "multiscale"), "latents": (True, False)}
    paper, taught = (
        row(0, 0.8, objective="paper", affine=False),
        row(1, 0.8, objective="multiscale", latents=False, affine=False),
    )
    larger, plain = (row(n, 0.7, objective="none", latents=latents, affine=False) for n, latents in ((2, True), (3, False)))
    found = paired([paper, taught, larger, plain], factors, "objective")
    assert [[other.number for _, other in one.pairs] for one in found] == [[2], [3]]
    assert paired([paper, plain], factors, "objective")[0].pairs == ()


def test_the_first_value_is_the_reference_of_other_factors_and_ranges_have_none() -> None:
    factors = {"student": ("unet", "light"), "learning_rate": Span(1e-4, 1e-2, True), "seed": (0,)}
    rows = [row(0, 0.7, student="unet", learning_rate=1e-3), row(1, 0.75, student="light", learning_rate=1e-3)]
    (one,) = paired(rows, factors, "student")
    assert (one.level, one.reference, one.mean) == ("light", "unet", pytest.approx(0.05))
    assert paired(rows, factors, "learning_rate") == []
    assert paired(rows, factors, "seed") == []


def test_importance_is_the_share_of_variance_between_levels() -> None:
    factors = {"student": ("a", "b"), "seed": (0, 1)}
    scores = {("a", 0): 0.5, ("a", 1): 0.6, ("b", 0): 0.7, ("b", 1): 0.8}
    rows = [row(n, dice, student=student, seed=seed) for n, ((student, seed), dice) in enumerate(scores.items())]
    student, seed = importance(rows, factors)
    assert (student.factor, seed.factor) == ("student", "seed")
    assert (student.share, seed.share) == (pytest.approx(0.8), pytest.approx(0.2))  # of 0.05: 4 x 0.1^2 and 4 x 0.05^2
    assert student.by_chance == pytest.approx(1 / 3)
    assert (student.levels, student.trials) == (2, 4)


def test_importance_of_a_range_is_the_squared_rank_correlation() -> None:
    factors = {"learning_rate": Span(1e-4, 1e-1, True)}
    (one,) = importance([row(n, 0.8 - n**3 / 100, learning_rate=10.0 ** (n - 4)) for n in range(4)], factors)
    assert (one.share, one.levels) == (pytest.approx(1.0), None)


def test_importance_is_not_claimed_where_nothing_can_be_known() -> None:
    two = {"student": ("a", "b", "c")}
    assert importance([row(0, 0.5, student="a"), row(1, 0.6, student="b")], two) == []
    assert importance([row(n, 0.5 + n, student=name) for n, name in enumerate("abc")], two) == []  # no level twice
    assert importance([row(n, 0.5, student=name, seed=n) for n, name in enumerate("aabb")], two) == []  # no variance
    assert importance([], two) == []


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    factors = {"student": ("a", "b", "c")}
    rows = [
        row(0, 0.7, student="a", latency_ms=10.0, parameters=9), row(1, 0.8, student="b", latency_ms=20.0, parameters=9),
        row(2, 0.6, student="c", latency_ms=30.0, parameters=1),
    ]  # fmt: skip
    found = groups(rows, factors)
    front = pareto(found)
    assert front is not None
    assert (front.cost, [group.label for group in front.best]) == ("latency_ms", ["a", "b"])


def test_the_front_falls_back_to_parameters_and_to_none() -> None:
    factors = {"student": ("a", "b")}
    front = pareto(
        groups([row(0, 0.7, student="a", parameters=5), row(1, 0.8, student="b", parameters=9, latency_ms=3.0)], factors)
    )
    assert front is not None
    assert front.cost == "parameters"
    assert pareto(groups([row(0, 0.7, student="a")], factors)) is None
    assert pareto([]) is None
