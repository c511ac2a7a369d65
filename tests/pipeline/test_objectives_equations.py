"""The distances of `cwd`, `relational` and `logit` by hand, and how several teachers are balanced."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.objectives.cwd import TEMPERATURE, divergence
from polyp_difom.pipeline.objectives.logit import Logit, log_share, soft_losses
from polyp_difom.pipeline.objectives.protocol import OBJECTIVES, Targets, TargetSpec, over_teachers
from polyp_difom.pipeline.objectives.relational import affinity
from polyp_difom.pipeline.students.protocol import Tap

BOTTLENECK = Tap("bottleneck", 6, 16, "bottleneck")


def column(*values: float) -> Tensor:
    """One channel on a grid of n x 1 cells, [1, 1, n, 1]."""
    return torch.tensor(values, dtype=torch.float32).view(1, 1, -1, 1)


# Channel-wise


def test_the_divergence_of_two_cells_by_hand() -> None:
    target = torch.cat([column(TEMPERATURE * math.log(3), 0), column(0, 0)], 1)  # shares 3/4, 1/4 and 1/2, 1/2
    prediction = torch.zeros(1, 2, 2, 1)
    by_hand = (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5) + 0) / 2
    assert divergence(prediction, target).item() == pytest.approx(TEMPERATURE**2 * by_hand, rel=1e-5)
    other_way = (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25) + 0) / 2
    assert divergence(target, prediction).item() == pytest.approx(TEMPERATURE**2 * other_way, rel=1e-5)


def test_a_channels_level_does_not_count_and_its_place_does() -> None:
    target = torch.randn(2, 3, 4, 4)
    assert divergence(target + torch.randn(2, 3, 1, 1), target).item() == pytest.approx(0, abs=1e-5)
    assert divergence(target.flip(3), target).item() > 0.1


def test_a_standardised_target_costs_about_half_its_variance_at_first() -> None:
    target = torch.randn(4, 16, 22, 22)
    assert divergence(torch.zeros_like(target), target).item() == pytest.approx(0.5, abs=0.05)


def test_the_heads_of_cwd_learn_the_target_divided_by_its_deviation() -> None:
    objective = OBJECTIVES.get("cwd")((BOTTLENECK,), {("t", "s16"): TargetSpec(6, 4, 16, 0.5)})
    nn.init.dirac_(objective.get_parameter("heads.t/s16/bottleneck.weight"))
    target = torch.randn(2, 6, 4, 4)
    taps, targets = {"bottleneck": target / 0.5 + 3}, Targets(maps={("t", "s16"): target})
    distance, parts = objective.distance(torch.zeros(2, 1, 64, 64), taps, targets)
    assert distance is not None
    assert distance.item() == pytest.approx(0, abs=1e-5)
    assert parts["t/s16/bottleneck/cosine"].item() == pytest.approx(1, abs=1e-5)
    assert parts["t/s16/bottleneck/explained"].item() == pytest.approx(1, abs=1e-4)


# Relational


def related(student: Tensor, teacher: Tensor, std: float = 1.0) -> tuple[float, dict[str, Tensor]]:
    tap = Tap("bottleneck", student.shape[1], 16, "bottleneck")
    specs = {("t", "s16"): TargetSpec(teacher.shape[1], teacher.shape[2], 16, std)}
    objective = OBJECTIVES.get("relational")((tap,), specs)
    distance, parts = objective.distance(
        torch.zeros(1, 1, 64, 64), {"bottleneck": student}, Targets(maps={("t", "s16"): teacher})
    )
    assert distance is not None
    return distance.item(), parts


def test_the_affinities_of_four_cells_by_hand() -> None:
    teacher, student = column(1, -1, 1, -1).view(1, 1, 2, 2), column(3, 3, 1, 1).view(1, 1, 2, 2)
    expected = torch.tensor([[0.0, -1, 1, -1], [-1, 0, -1, 1], [1, -1, 0, -1], [-1, 1, -1, 0]])
    torch.testing.assert_close(affinity(teacher)[0], expected)
    distance, parts = related(student, teacher)  # 4 of the 6 pairs of cells are 2 apart
    assert distance == pytest.approx(8 / 3, rel=1e-5)
    assert parts["t/s16/bottleneck/explained"].item() == pytest.approx(1 - 8 / 3, rel=1e-5)
    assert parts["t/s16/bottleneck/cosine"].item() == pytest.approx(-1 / 3, rel=1e-5)
    assert parts["t/s16/bottleneck/target_variance"].item() == pytest.approx(12 / 16, rel=1e-5)


def test_affinities_compare_maps_of_different_channels_turned_shifted_and_scaled() -> None:
    teacher = torch.randn(2, 3, 8, 8)
    turned = torch.linalg.qr(torch.randn(5, 3))[0]  # orthonormal columns
    student = 7 * torch.einsum("kc,bchw->bkhw", turned, teacher) + torch.randn(1, 5, 1, 1)
    distance, parts = related(student, teacher, std=0.3)
    assert distance == pytest.approx(0, abs=1e-5)
    assert parts["t/s16/bottleneck/cosine"].item() == pytest.approx(1, abs=1e-4)


def test_a_student_that_tells_no_cells_apart_explains_nothing_and_breaks_nothing() -> None:
    student = torch.zeros(1, 2, 4, 4, requires_grad=True)
    assert related(student, torch.randn(1, 3, 4, 4))[0] == pytest.approx(1, rel=1e-5)
    affinity(student).sum().backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(("cells", "side"), [(44, 11), (22, 11), (11, 11), (16, 8), (17, 9), (4, 4)])
def test_fine_grids_are_pooled_to_small_affinities(cells: int, side: int) -> None:
    assert affinity(torch.randn(1, 3, cells, cells)).shape == (1, side**2, side**2)


# Logits


def test_the_losses_of_one_cell_by_hand() -> None:
    logits = torch.tensor([[[[0.0, math.log(3)], [-math.log(3), 0.0]]]])  # probabilities 1/2, 3/4, 1/4, 1/2
    entropy, dice, probability = soft_losses(logits, torch.full((1, 1, 1, 1), 0.8), 2)
    assert probability.item() == pytest.approx(0.5, rel=1e-6)
    assert entropy.item() == pytest.approx(math.log(2), rel=1e-6)
    assert dice.item() == pytest.approx(1 - (2 * 0.5 * 0.8 + 1) / (0.25 + 0.64 + 1), rel=1e-5)


def test_both_losses_are_least_where_the_probability_is_the_soft_target() -> None:
    target = torch.rand(2, 1, 4, 4) * 0.8 + 0.1
    logits = torch.logit(target).repeat_interleave(8, 2).repeat_interleave(8, 3).requires_grad_()
    entropy, dice, _ = soft_losses(logits, target, 8)
    assert dice.item() == pytest.approx(0, abs=1e-5)
    assert entropy.item() == pytest.approx(F.binary_cross_entropy(target, target).item(), rel=1e-5)
    for loss in (entropy, dice):
        (slope,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert slope.abs().max() < 1e-6


@pytest.mark.parametrize(("sure", "target"), [(200.0, 0.0), (-200.0, 1.0)])
def test_a_student_that_is_sure_and_wrong_is_pulled_back(sure: float, target: float) -> None:
    logits = torch.full((1, 1, 16, 16), sure, requires_grad=True)
    entropy, dice, _ = soft_losses(logits, torch.full((1, 1, 2, 2), target), 8)
    (entropy + dice).backward()
    assert entropy.item() == pytest.approx(200, rel=1e-4)
    assert logits.grad is not None
    assert logits.grad.abs().sum().item() == pytest.approx(1, rel=1e-3)


def test_the_share_of_a_cell_is_the_mean_of_its_own_pixels() -> None:
    logits = torch.randn(2, 1, 12, 12)
    torch.testing.assert_close(log_share(logits, 4).exp(), F.avg_pool2d(logits.sigmoid(), 4))


def test_the_finest_scale_of_every_mask_teacher_counts_and_features_do_not() -> None:
    specs = {
        ("a@mask", "s16"): TargetSpec(1, 4, 16, 1.0, "mask"),
        ("a@mask", "s8"): TargetSpec(1, 8, 8, 1.0, "mask"),
        ("b@mask", "s16"): TargetSpec(1, 4, 16, 1.0, "mask"),
        ("sam:vit_b", "s8"): TargetSpec(6, 8, 8, 0.5),
    }
    objective = Logit((), specs)
    assert sorted(objective.keys) == [("a@mask", "s8"), ("b@mask", "s16")]
    logits, maps = (
        torch.randn(2, 1, 64, 64),
        {key: torch.rand(2, 1, specs[key].cells, specs[key].cells) for key in objective.keys},
    )
    distance, parts = objective.distance(logits, {}, Targets(maps=maps))
    each = [soft_losses(logits, maps[key], specs[key].stride)[:2] for key in objective.keys]
    torch.testing.assert_close(distance, torch.stack([entropy + dice for entropy, dice in each]).mean())
    assert parts.keys() == {
        f"{name}/logits/{what}" for name in ("a@mask/s8", "b@mask/s16") for what in ("dice", "explained", "target_variance")
    }


def test_a_store_without_masks_is_refused_with_the_teacher_to_extract() -> None:
    with pytest.raises(UsageError, match="no teacher gives masks") as caught:
        Logit((), {("sam:vit_b", "s8"): TargetSpec(6, 8, 8, 0.5)})
    assert caught.value.details["got"] == "sam:vit_b"
    assert "run:FOLDER@mask" in str(caught.value.details["next"])


def test_a_store_of_masks_alone_is_refused_with_the_objective_that_reads_them() -> None:
    with pytest.raises(UsageError, match="masks, no features") as caught:
        OBJECTIVES.get("multiscale")((BOTTLENECK,), {("run:a@mask", "s16"): TargetSpec(1, 4, 16, 1.0, kind="mask")})
    assert "--objective logit" in str(caught.value.details["next"])


# Several teachers, several processes


@pytest.mark.parametrize("name", ["multiscale", "cwd", "relational"])
def test_a_teacher_with_more_maps_weighs_no_more(name: str) -> None:
    taps = (Tap("encoder8", 5, 8, "encoder"), BOTTLENECK, Tap("decoder8", 5, 8, "decoder"))
    specs = {
        ("many", "s8"): TargetSpec(4, 8, 8, 1.0),
        ("many", "s16"): TargetSpec(4, 4, 16, 1.0),
        ("few", "s16"): TargetSpec(3, 4, 16, 1.0),
    }
    objective = OBJECTIVES.get(name)(taps, specs)
    maps = {key: torch.randn(2, spec.channels, spec.cells, spec.cells) for key, spec in specs.items()}
    student = {tap.name: torch.randn(2, tap.channels, 64 // tap.stride, 64 // tap.stride) for tap in taps}

    def distance(teacher: str) -> Tensor:
        own = Targets({key: value for key, value in maps.items() if teacher in key[0]})
        found, _ = objective.distance(torch.zeros(2, 1, 64, 64), student, own)
        assert found is not None
        return found

    torch.testing.assert_close(distance(""), (distance("many") + distance("few")) / 2)


def test_the_mean_over_teachers_by_hand() -> None:
    found = over_teachers([(name, torch.tensor(value)) for name, value in (("a", 1.0), ("b", 4.0), ("a", 3.0))])
    assert found == torch.tensor(3.0)
    assert over_teachers([]) is None


@pytest.mark.parametrize("name", ["cwd", "logit"])
def test_the_distance_of_a_batch_is_the_mean_of_its_halves(name: str) -> None:
    specs = {("t", "s16"): TargetSpec(4, 4, 16, 1.0), ("t@mask", "s16"): TargetSpec(1, 4, 16, 1.0, "mask")}
    objective = OBJECTIVES.get(name)((BOTTLENECK,), specs)
    maps = {key: torch.rand(4, spec.channels, 4, 4) for key, spec in specs.items()}
    logits, tap = torch.randn(4, 1, 64, 64), torch.randn(4, 6, 4, 4)

    def distance(rows: slice) -> Tensor:
        targets = Targets({key: value[rows] for key, value in maps.items()})
        found, _ = objective.distance(logits[rows], {"bottleneck": tap[rows]}, targets)
        assert found is not None
        return found

    torch.testing.assert_close(distance(slice(4)), (distance(slice(2)) + distance(slice(2, 4))) / 2)
