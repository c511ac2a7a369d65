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
from polyp_difom.pipeline.losses import dice_bce
from polyp_difom.pipeline.objectives.protocol import (
    OBJECTIVES,
    Losses,
    Needs,
    Objective,
    Targets,
    TargetSpec,
    agreement,
    frozen,
)
from polyp_difom.pipeline.students.protocol import Student, Tap, build_student

FIXED = ["multiscale", "maps", "bands", "shuffled", "cwd", "relational", "logit", "paper"]
NAMES = ["none", "notebook", *FIXED]
PARAMETERS = {
    "none": 0,
    "notebook": 6,
    "multiscale": 8,
    "maps": 8,
    "bands": 4,
    "shuffled": 8,
    "cwd": 4,
    "relational": 0,
    "logit": 0,
    "paper": 8,
}
SPECS = {
    ("sam:vit_b", "s8"): TargetSpec(6, 8, 8, 0.8),
    ("sam:vit_b", "s16"): TargetSpec(6, 4, 16, 0.5),
    ("dinov2:small", "s16"): TargetSpec(4, 4, 16, 2.0),
    ("sam:vit_b", "s32"): TargetSpec(6, 2, 32, 0.4),
    ("run:large@mask", "s8"): TargetSpec(1, 8, 8, 1.0, "mask"),
    ("run:large@mask", "s16"): TargetSpec(1, 4, 16, 1.0, "mask"),
}
LATENTS = (Tap("latent1", 5, 16, "latent"), Tap("latent2", 5, 16, "latent"))


def random_targets(specs: Mapping[tuple[str, str], TargetSpec] = SPECS, b: int = 2) -> Targets:
    draw = {"features": torch.randn, "mask": torch.rand}
    maps = {key: draw[spec.kind](b, spec.channels, spec.cells, spec.cells) * spec.std for key, spec in specs.items()}
    return Targets(maps=maps, spectra={key: spectra.spectrum(value) for key, value in maps.items()})


def random_masks(b: int = 2) -> Tensor:
    return (torch.rand(b, 1, 64, 64) > 0.7).float()


def make(name: str, weight: float = 1.0) -> tuple[Student, Objective]:
    kind = OBJECTIVES.get(name)
    student = build_student("unet:4", kind.needs.latents)
    return student, kind(student.taps, SPECS, weight)


def losses_of(student: Student, objective: Objective, targets: Targets, progress: float = 0.5) -> Losses:
    logits, taps = student.features(torch.rand(2, 3, 64, 64))
    return objective(dice_bce(logits, random_masks()), logits, taps, targets, progress)


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


@pytest.mark.parametrize("name", NAMES[1:])
def test_the_distance_alone_moves_the_student(name: str) -> None:
    student, objective = make(name)
    distance, _ = objective.distance(*student.features(torch.rand(2, 3, 64, 64)), random_targets())
    assert distance is not None
    distance.backward()
    moved = [parameter.grad for parameter in student.encoder.parameters() if parameter.grad is not None]
    assert sum(float(gradient.abs().sum()) for gradient in moved) > 0


@pytest.mark.parametrize("name", NAMES)
def test_without_any_teacher_the_segmentation_is_left(name: str) -> None:
    student, objective = make(name)
    losses = losses_of(student, objective, Targets(), 0.0)
    assert losses.parts.keys() == {"segmentation"}
    torch.testing.assert_close(losses.total.detach(), losses.parts["segmentation"])


@pytest.mark.parametrize("name", ["multiscale", "cwd", "relational", "paper"])
def test_a_dropped_teacher_leaves_the_distance_to_the_other(name: str) -> None:
    student, objective = make(name)
    student.eval()
    both, outputs = random_targets(), student.features(torch.rand(2, 3, 64, 64))
    kept = {key: value for key, value in both.maps.items() if key[0] == "dinov2:small"}
    kept_spectra = {key: value for key, value in both.spectra.items() if key in kept}
    alone = OBJECTIVES.get(name)(student.taps, {key: SPECS[key] for key in kept})
    alone.load_state_dict({k: v for k, v in objective.state_dict().items() if "dinov2" in k})
    expected, _ = alone.distance(*outputs, both)
    found, parts = objective.distance(*outputs, Targets(kept, kept_spectra))
    torch.testing.assert_close(found, expected)
    assert all(key.startswith("dinov2-small/") for key in parts)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_notebook_trains_anything_of_the_teacher(name: str) -> None:
    objective = make(name)[1]
    assert len(list(objective.parameters())) == PARAMETERS[name]
    assert not list(objective.buffers())
    assert objective.may_collapse == (name == "notebook")


@pytest.mark.parametrize("name", FIXED)
def test_a_trainable_target_is_refused(name: str) -> None:
    student, objective = make(name)
    trainable = nn.Parameter(torch.ones(()))
    maps = {key: value * trainable for key, value in random_targets().maps.items()}
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
    for name in ("multiscale", "cwd", "relational", "logit", "notebook"):
        assert needs[name] == Needs(maps=True)
    assert needs["shuffled"] == Needs(maps=True, shuffled=True)
    assert needs["paper"] == Needs(spectra=True, latents=True)
    assert set(needs) == set(OBJECTIVES.names())


# Segmentation


def test_the_segmentation_loss_of_four_pixels_by_hand() -> None:
    logits = torch.tensor([[[[0.0, math.log(3)], [-math.log(3), 0.0]]]])  # probabilities 1/2, 3/4, 1/4, 1/2
    masks = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    dice = 1 - (2 * (0.75 + 0.5) + 1) / (2.0 + 2.0 + 1)
    entropy = -(math.log(0.5) + math.log(0.75) + math.log(0.75) + math.log(0.5)) / 4
    assert dice_bce(logits, masks).item() == pytest.approx(dice + entropy, abs=1e-6)


def test_the_dice_is_taken_per_image() -> None:
    logits, masks = torch.randn(3, 1, 8, 8), (torch.rand(3, 1, 8, 8) > 0.5).float()
    each = [dice_bce(logits[i : i + 1], masks[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(dice_bce(logits, masks), torch.stack(each).mean())


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_perfect_logits_cost_next_to_nothing_and_inverted_ones_much(share: float) -> None:
    masks = (torch.rand(2, 1, 16, 16) < share).float()
    assert dice_bce(40 * masks - 20, masks).item() < 1e-4
    assert dice_bce(20 - 40 * masks, masks).item() > 10


def test_a_perfect_distillation_leaves_the_dice_bce() -> None:
    objective = OBJECTIVES.get("multiscale")(
        (Tap("bottleneck", 6, 16, "bottleneck"),), {("t", "s16"): TargetSpec(6, 4, 16, 0.5)}
    )
    nn.init.dirac_(objective.get_parameter("heads.t/s16/bottleneck.weight"))
    nn.init.zeros_(objective.get_parameter("heads.t/s16/bottleneck.bias"))
    target = torch.randn(2, 6, 4, 4)
    logits, masks = torch.randn(2, 1, 64, 64), random_masks()
    losses = objective(dice_bce(logits, masks), logits, {"bottleneck": target / 0.5}, Targets(maps={("t", "s16"): target}), 0.0)
    torch.testing.assert_close(losses.total, dice_bce(logits, masks), rtol=1e-5, atol=1e-5)
    assert losses.parts["t/s16/bottleneck/cosine"].item() == pytest.approx(1, abs=1e-5)
    assert losses.parts["t/s16/bottleneck/explained"].item() == pytest.approx(1, abs=1e-4)


# Multiscale


@pytest.mark.parametrize("name", ["multiscale", "cwd"])
def test_every_tap_is_paired_with_the_feature_maps_of_its_stride(name: str) -> None:
    objective = make(name)[1]
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
    losses = objective(dice_bce(logits, masks), logits, taps, Targets(maps={("t", "s16"): target}), 0.0)
    p, t = objective.get_submodule("heads.t/s16/bottleneck")(taps["bottleneck"]).detach(), target / 0.5
    distance = 1 - F.cosine_similarity(p, t, dim=1).mean() + F.smooth_l1_loss(p, t)
    bands = [
        (a - b).square().sum() / b.square().sum() for a, b in zip(spectra.split_bands(p), spectra.split_bands(t), strict=True)
    ]
    expected = distance + 0.5 * (bands[0] + bands[1]) / 2
    torch.testing.assert_close(losses.parts["distillation"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.total.detach(), dice_bce(logits, masks) + 0.3 * expected, rtol=1e-4, atol=1e-5)


def test_multiscale_is_its_two_halves() -> None:
    student, whole = make("multiscale")
    halves = {name: OBJECTIVES.get(name)(student.taps, SPECS) for name in ("maps", "bands")}
    _, taps = student.features(torch.rand(2, 3, 64, 64))
    targets = random_targets()
    distances = {}
    for name, half in halves.items():
        half.load_state_dict({key: value for key, value in whole.state_dict().items() if key in half.state_dict()})
        distances[name], _ = half.distance(torch.zeros(2, 1, 64, 64), taps, targets)
    assert set(halves["bands"].keys) == {key for key in whole.keys if key[1] == "s16"}
    both, _ = whole.distance(torch.zeros(2, 1, 64, 64), taps, targets)
    torch.testing.assert_close(both, distances["maps"] + 0.5 * distances["bands"])
    assert distances["bands"] > 0


def test_multiscale_is_on_from_the_first_step_to_the_last() -> None:
    student, objective = make("multiscale")
    student.eval()
    frames, masks, targets = torch.rand(2, 3, 64, 64), random_masks(), random_targets()
    logits, taps = student.features(frames)
    totals = [objective(dice_bce(logits, masks), logits, taps, targets, p).total.item() for p in (0.0, 0.5, 0.99)]
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


def test_the_logged_figures_are_those_of_their_definition() -> None:
    objective = OBJECTIVES.get("multiscale")(
        (Tap("bottleneck", 6, 16, "bottleneck"),), {("t", "s16"): TargetSpec(6, 12, 16, 0.5)}
    )
    taps, target = {"bottleneck": torch.randn(3, 6, 12, 12)}, torch.randn(3, 6, 12, 12) + 1
    _, parts = objective.distance(torch.zeros(3, 1, 64, 64), taps, Targets(maps={("t", "s16"): target}))
    p, t = objective.get_submodule("heads.t/s16/bottleneck")(taps["bottleneck"]).detach(), target / 0.5
    pairs = {"": (p, t)} | dict(
        zip(("low/", "high/"), zip(spectra.split_bands(p), spectra.split_bands(t), strict=True), strict=True)
    )
    for band, (ours, theirs) in pairs.items():
        variance = theirs.var((0, 2, 3), correction=0).mean()
        expected = {
            "cosine": F.cosine_similarity(ours, theirs).mean(), "target_variance": variance,
            "explained": 1 - (ours - theirs).square().mean() / variance,
        }  # fmt: skip
        for what, value in expected.items():
            torch.testing.assert_close(parts[f"t/s16/bottleneck/{band}{what}"], value, rtol=1e-4, atol=1e-5, msg=band + what)


def test_agreement_by_hand() -> None:
    target = torch.randn(8, 3, 5, 5) * 2
    seen = agreement(torch.zeros_like(target) + target.mean((0, 2, 3), keepdim=True), target)
    assert seen["explained"].item() == pytest.approx(0, abs=0.02)
    assert seen["target_variance"].item() == pytest.approx(4, rel=0.2)
    assert agreement(-target, target)["cosine"].item() == pytest.approx(-1, abs=1e-5)


@pytest.mark.parametrize("name", ["multiscale", "cwd", "relational", "paper", "notebook"])
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
        losses = objective(torch.ones(()), torch.randn(2, 1, 64, 64), taps, targets, 0.5)
        low, high = spectra.split_bands(maps / std)
        expected = F.mse_loss(objective.get_submodule("heads.t/s16/latent1")(taps["latent1"]), low)
        expected = expected + F.mse_loss(objective.get_submodule("heads.t/s16/latent2")(taps["latent2"]), high)
        torch.testing.assert_close(losses.parts["distillation"], expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["paper", "notebook"])
def test_the_published_recipes_go_through_their_three_phases(name: str) -> None:
    student, objective = make(name, weight=1.0)
    targets = random_targets()
    for progress, seg, latent, rests in (
        (0.0, 1.0, 0.0, False), (24.9 / 75, 1.0, 0.0, False), (25.1 / 75, 0.6, 0.1, False), (50.9 / 75, 0.6, 0.1, False),
        (51.1 / 75, 0.6, 0.1, True), (1.0, 0.6, 0.1, True),
    ):  # fmt: skip
        losses = losses_of(student, objective, targets, progress)
        expected = seg * losses.parts["segmentation"] + latent * losses.parts["distillation"]
        torch.testing.assert_close(losses.total.detach(), expected)
        assert objective.freezes_encoder(progress) == rests


def test_the_distance_of_the_notebook_by_hand() -> None:
    specs = {("a", "s16"): TargetSpec(2, 12, 16, 0.5), ("b", "s16"): TargetSpec(3, 12, 16, 2.0)}
    objective = OBJECTIVES.get("notebook")((Tap("bottleneck", 5, 16, "bottleneck"),), specs)
    maps, targets = torch.randn(2, 5, 12, 12), random_targets(specs)
    distance, parts = objective.distance(torch.zeros(2, 1, 64, 64), {"bottleneck": maps}, targets)
    stacked = torch.cat([targets.maps["a", "s16"] / 0.5, targets.maps["b", "s16"] / 2], 1)
    low, high = spectra.split_bands(objective.get_submodule("fusion")(stacked).relu())
    first = objective.get_submodule("first")(maps).relu()
    torch.testing.assert_close(distance, F.mse_loss(first, low) + F.mse_loss(objective.get_submodule("second")(first), high))
    assert parts["fused/s16/bottleneck/low/target_variance"] == pytest.approx(low.var((0, 2, 3)).mean().item(), rel=0.01)


@pytest.mark.parametrize("name", ["paper", "notebook"])
def test_the_first_phase_trains_no_head_and_no_fusion(name: str) -> None:
    student, objective = make(name)
    losses_of(student, objective, random_targets(), progress=0.1).total.backward()
    assert all(parameter.grad is None for parameter in objective.parameters())
