"""Objectives: finite losses, gradients where they belong, equations by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline import spectra
from polyp_difom.pipeline.objectives.protocol import (
    OBJECTIVES,
    Losses,
    Needs,
    Objective,
    Targets,
    TargetSpec,
    agreement,
    frozen,
    segmentation_loss,
)
from polyp_difom.pipeline.students.protocol import Student, Tap, build_student

NAMES = ["none", "multiscale", "shuffled", "paper"]
SPECS = {
    ("sam:vit_b", "s8"): TargetSpec(6, 8, 8, 0.8),
    ("sam:vit_b", "s16"): TargetSpec(6, 4, 16, 0.5),
    ("dinov2:small", "s16"): TargetSpec(4, 4, 16, 2.0),
    ("sam:vit_b", "s32"): TargetSpec(6, 2, 32, 0.4),
}
LATENTS = (Tap("latent1", 5, 16, "latent"), Tap("latent2", 5, 16, "latent"))


def random_targets(specs: Mapping[tuple[str, str], TargetSpec] = SPECS, b: int = 2) -> Targets:
    maps = {key: torch.randn(b, spec.channels, spec.cells, spec.cells) * spec.std for key, spec in specs.items()}
    return Targets(maps=maps, spectra={key: spectra.spectrum(value) for key, value in maps.items()})


def random_masks(b: int = 2) -> Tensor:
    return (torch.rand(b, 1, 64, 64) > 0.7).float()


def make(name: str, weight: float = 1.0) -> tuple[Student, Objective]:
    kind = OBJECTIVES.get(name)
    student = build_student("unet:4", kind.needs.latents)
    return student, kind(student.taps, SPECS, weight)


def losses_of(student: Student, objective: Objective, targets: Targets, progress: float = 0.5) -> Losses:
    logits, taps = student.features(torch.rand(2, 3, 64, 64))
    return objective(logits, random_masks(), taps, targets, progress)


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_finite_and_reach_student_and_heads_but_no_target(name: str) -> None:
    student, objective = make(name)
    targets = random_targets()
    losses = losses_of(student, objective, targets)
    losses.total.backward()
    assert losses.total.shape == ()
    for name_, value in losses.parts.items():
        assert torch.isfinite(value).all(), name_
        assert not value.requires_grad, name_
        assert value.shape == (), name_
    for module in (student, objective):
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key
            assert module is student or parameter.grad.abs().sum() > 0, key
    assert not any(target.requires_grad for target in [*targets.maps.values(), *targets.spectra.values()])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_teacher_is_a_parameter(name: str) -> None:
    objective = make(name)[1]
    assert len(list(objective.parameters())) == {"none": 0, "multiscale": 8, "shuffled": 8, "paper": 8}[name]
    assert not list(objective.buffers())


@pytest.mark.parametrize("name", ["multiscale", "shuffled", "paper"])
def test_a_trainable_target_is_refused(name: str) -> None:
    student, objective = make(name)
    targets = random_targets()
    key = ("sam:vit_b", "s16")
    trainable = nn.Parameter(torch.ones(()))
    maps = dict(targets.maps) | {key: targets.maps[key] * trainable}
    with pytest.raises(RuntimeError, match="targets must be fixed"):
        losses_of(student, objective, Targets(maps=maps, spectra={k: spectra.spectrum(v) for k, v in maps.items()}))


def test_frozen_passes_a_fixed_target_through() -> None:
    target = torch.randn(3)
    assert frozen(target) is target
    with pytest.raises(RuntimeError, match="requires a gradient"):
        frozen(target * nn.Parameter(torch.ones(())))


def test_the_needs_say_what_is_read() -> None:
    needs = {name: OBJECTIVES.get(name).needs for name in NAMES}
    assert needs["none"] == Needs()
    assert needs["multiscale"] == Needs(maps=True)
    assert needs["shuffled"] == Needs(maps=True, shuffled=True)
    assert needs["paper"] == Needs(spectra=True, latents=True)


# Segmentation


def test_the_segmentation_loss_of_four_pixels_by_hand() -> None:
    logits = torch.tensor([[[[0.0, math.log(3)], [-math.log(3), 0.0]]]])  # probabilities 1/2, 3/4, 1/4, 1/2
    masks = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    dice = 1 - (2 * (0.75 + 0.5) + 1) / (2.0 + 2.0 + 1)
    entropy = -(math.log(0.5) + math.log(0.75) + math.log(0.75) + math.log(0.5)) / 4
    assert segmentation_loss(logits, masks).item() == pytest.approx(dice + entropy, abs=1e-6)


def test_the_dice_is_taken_per_image() -> None:
    logits, masks = torch.randn(3, 1, 8, 8), (torch.rand(3, 1, 8, 8) > 0.5).float()
    each = [segmentation_loss(logits[i : i + 1], masks[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(segmentation_loss(logits, masks), torch.stack(each).mean())


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_perfect_logits_cost_next_to_nothing_and_inverted_ones_much(share: float) -> None:
    masks = (torch.rand(2, 1, 16, 16) < share).float()
    assert segmentation_loss(40 * masks - 20, masks).item() < 1e-4
    assert segmentation_loss(20 - 40 * masks, masks).item() > 10


def test_a_perfect_distillation_leaves_the_segmentation_loss() -> None:
    objective = OBJECTIVES.get("multiscale")(
        (Tap("bottleneck", 6, 16, "bottleneck"),), {("t", "s16"): TargetSpec(6, 4, 16, 0.5)}
    )
    nn.init.dirac_(objective.get_parameter("heads.t/s16/bottleneck.weight"))
    nn.init.zeros_(objective.get_parameter("heads.t/s16/bottleneck.bias"))
    target = torch.randn(2, 6, 4, 4)
    logits, masks = torch.randn(2, 1, 64, 64), random_masks()
    losses = objective(logits, masks, {"bottleneck": target / 0.5}, Targets(maps={("t", "s16"): target}), 0.0)
    torch.testing.assert_close(losses.total, segmentation_loss(logits, masks), rtol=1e-5, atol=1e-5)
    assert losses.parts["t/s16/bottleneck/cosine"].item() == pytest.approx(1, abs=1e-5)
    assert losses.parts["t/s16/bottleneck/explained"].item() == pytest.approx(1, abs=1e-4)


# Multiscale


def test_multiscale_pairs_every_tap_with_the_maps_of_its_stride() -> None:
    objective = make("multiscale")[1]
    assert sorted(name for name, _ in objective.get_submodule("heads").named_children()) == [
        "dinov2-small/s16/bottleneck",
        "sam-vit_b/s16/bottleneck",
        "sam-vit_b/s8/decoder8",
        "sam-vit_b/s8/encoder8",
    ]


def test_multiscale_by_hand() -> None:
    objective = OBJECTIVES.get("multiscale")(
        (Tap("bottleneck", 6, 16, "bottleneck"),), {("t", "s16"): TargetSpec(6, 12, 16, 0.5)}, 0.3
    )
    taps, target = {"bottleneck": torch.randn(2, 6, 12, 12)}, torch.randn(2, 6, 12, 12)
    logits, masks = torch.randn(2, 1, 64, 64), random_masks()
    losses = objective(logits, masks, taps, Targets(maps={("t", "s16"): target}), 0.0)
    p, t = objective.get_submodule("heads.t/s16/bottleneck")(taps["bottleneck"]).detach(), target / 0.5
    distance = 1 - F.cosine_similarity(p, t, dim=1).mean() + F.smooth_l1_loss(p, t)
    bands = [
        (a - b).square().sum() / b.square().sum() for a, b in zip(spectra.split_bands(p), spectra.split_bands(t), strict=True)
    ]
    expected = distance + 0.5 * (bands[0] + bands[1]) / 2
    torch.testing.assert_close(losses.parts["distillation"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.total.detach(), segmentation_loss(logits, masks) + 0.3 * expected, rtol=1e-4, atol=1e-5)


def test_multiscale_is_on_from_the_first_step_to_the_last() -> None:
    student, objective = make("multiscale")
    student.eval()
    frames, masks, targets = torch.rand(2, 3, 64, 64), random_masks(), random_targets()
    totals = [objective(*(f := student.features(frames))[:1], masks, f[1], targets, p).total.item() for p in (0.0, 0.5, 0.99)]
    assert totals[0] == totals[1] == totals[2]
    assert not any(objective.freezes_encoder(p) for p in (0.0, 0.5, 0.99))


def test_the_log_shows_variance_and_cosine_of_every_pair_and_band() -> None:
    parts = losses_of(*make("multiscale"), random_targets()).parts
    for prefix in (
        "sam-vit_b/s16/bottleneck",
        "sam-vit_b/s16/bottleneck/low",
        "sam-vit_b/s16/bottleneck/high",
        "sam-vit_b/s8/encoder8",
    ):
        assert {f"{prefix}/{what}" for what in ("cosine", "explained", "target_variance")} <= set(parts)
    assert parts["sam-vit_b/s8/encoder8/target_variance"].item() == pytest.approx(1, abs=0.2)  # standardised


def test_agreement_by_hand() -> None:
    target = torch.randn(8, 3, 5, 5) * 2
    seen = agreement(torch.zeros_like(target) + target.mean((0, 2, 3), keepdim=True), target)
    assert seen["explained"].item() == pytest.approx(0, abs=0.02)
    assert seen["target_variance"].item() == pytest.approx(4, rel=0.2)
    assert agreement(-target, target)["cosine"].item() == pytest.approx(-1, abs=1e-5)


@pytest.mark.parametrize("name", ["multiscale", "paper"])
def test_a_store_without_a_fitting_stride_is_refused_with_the_scales_to_extract(name: str) -> None:
    kind = OBJECTIVES.get(name)
    with pytest.raises(UsageError, match="stride") as caught:
        kind(build_student("unet:4", kind.needs.latents).taps, {("t", "s32"): TargetSpec(6, 2, 32, 1.0)})
    assert "--scales" in str(caught.value.details["next"])
    assert "s16" in str(caught.value.details["next"])


# Paper


def test_the_distance_of_the_paper_is_that_of_the_bands_as_maps() -> None:
    std = 0.5
    for cells in (12, 13):
        objective = OBJECTIVES.get("paper")(LATENTS, {("t", "s16"): TargetSpec(6, cells, 16, std)})
        taps = {tap.name: torch.randn(2, 5, cells, cells) for tap in LATENTS}
        maps = torch.randn(2, 6, cells, cells)
        targets = Targets(spectra={("t", "s16"): spectra.spectrum(maps)})
        losses = objective(torch.randn(2, 1, 64, 64), random_masks(), taps, targets, 0.5)
        low, high = spectra.split_bands(maps / std)
        expected = F.mse_loss(objective.get_submodule("heads.t/s16/latent1")(taps["latent1"]), low)
        expected = expected + F.mse_loss(objective.get_submodule("heads.t/s16/latent2")(taps["latent2"]), high)
        torch.testing.assert_close(losses.parts["distillation"], expected.detach(), rtol=1e-4, atol=1e-5)


def test_the_paper_goes_through_its_three_phases() -> None:
    student, objective = make("paper", weight=1.0)
    targets = random_targets()
    for progress, seg, latent, rests in (
        (0.0, 1.0, 0.0, False), (24.9 / 75, 1.0, 0.0, False), (25.1 / 75, 0.6, 0.1, False), (50.9 / 75, 0.6, 0.1, False),
        (51.1 / 75, 0.6, 0.1, True), (1.0, 0.6, 0.1, True),
    ):  # fmt: skip
        losses = losses_of(student, objective, targets, progress)
        expected = seg * losses.parts["segmentation"] + latent * losses.parts["distillation"]
        torch.testing.assert_close(losses.total.detach(), expected)
        assert objective.freezes_encoder(progress) == rests


def test_the_first_phase_of_the_paper_trains_no_head() -> None:
    student, objective = make("paper")
    losses_of(student, objective, random_targets(), progress=0.1).total.backward()
    assert all(parameter.grad is None for parameter in objective.parameters())
