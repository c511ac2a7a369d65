"""Objectives: finite losses, gradients where they belong, equations by hand, and the collapse that must not happen."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyp_difom.cache.errors import RunError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import spectra
from polyp_difom.pipeline.distill import DistillConfig, Trainer, distill
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
from polyp_difom.pipeline.progress import Progress
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
    assert all(parameter.grad.abs().sum() > 0 for parameter in objective.parameters())
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
    nn.init.dirac_(objective.heads["t/s16/bottleneck"].weight)
    nn.init.zeros_(objective.heads["t/s16/bottleneck"].bias)
    target = torch.randn(2, 6, 4, 4)
    logits, masks = torch.randn(2, 1, 64, 64), random_masks()
    losses = objective(logits, masks, {"bottleneck": target / 0.5}, Targets(maps={("t", "s16"): target}), 0.0)
    torch.testing.assert_close(losses.total, segmentation_loss(logits, masks), rtol=1e-5, atol=1e-5)
    assert losses.parts["t/s16/bottleneck/cosine"].item() == pytest.approx(1, abs=1e-5)
    assert losses.parts["t/s16/bottleneck/explained"].item() == pytest.approx(1, abs=1e-4)


# Multiscale


def test_multiscale_pairs_every_tap_with_the_maps_of_its_stride() -> None:
    objective = make("multiscale")[1]
    assert sorted(objective.heads) == [
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
    p, t = objective.heads["t/s16/bottleneck"](taps["bottleneck"]).detach(), target / 0.5
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
    cells, std = 13, 0.5
    for cells in (12, 13):
        objective = OBJECTIVES.get("paper")(LATENTS, {("t", "s16"): TargetSpec(6, cells, 16, std)})
        taps = {tap.name: torch.randn(2, 5, cells, cells) for tap in LATENTS}
        maps = torch.randn(2, 6, cells, cells)
        targets = Targets(spectra={("t", "s16"): spectra.spectrum(maps)})
        losses = objective(torch.randn(2, 1, 64, 64), random_masks(), taps, targets, 0.5)
        low, high = spectra.split_bands(maps / std)
        expected = F.mse_loss(objective.heads["t/s16/latent1"](taps["latent1"]), low)
        expected = expected + F.mse_loss(objective.heads["t/s16/latent2"](taps["latent2"]), high)
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


# Collapse


class Notebook(Objective):
    """What must not be done: the target is a trainable 1x1 convolution of the teachers' maps."""

    needs = Needs(maps=True)
    guard: Callable[[Tensor], Tensor] = staticmethod(lambda target: target)

    def __init__(self, taps: tuple[Tap, ...], targets: Mapping[tuple[str, str], TargetSpec], weight: float = 1.0):
        super().__init__(taps, targets, weight)
        self.tap = next(tap for tap in taps if tap.role == "bottleneck")
        self.keys = [key for key, spec in targets.items() if spec.stride == self.tap.stride]
        self.fusion = nn.Conv2d(sum(targets[key].channels for key in self.keys), self.tap.channels, 1)

    def forward(self, logits: Tensor, masks: Tensor, taps: Mapping[str, Tensor], targets: Targets, progress: float) -> Losses:
        target = self.guard(self.fusion(torch.cat([targets.maps[key] for key in self.keys], 1)))
        prediction = taps[self.tap.name]
        seen = agreement(prediction, target)
        return Losses(F.mse_loss(prediction, target), {f"notebook/{what}": value for what, value in seen.items()})


class Guarded(Notebook):
    """The same with the guard that every objective of the package uses."""

    guard = staticmethod(frozen)


def variances(objective: Objective, steps: int) -> list[float]:
    """Target variance at each step of a toy training: frames and teacher maps share nothing that can be learnt."""
    tap = Tap("bottleneck", 8, 16, "bottleneck")
    student = nn.Conv2d(3, tap.channels, 1)
    optimizer = torch.optim.Adam([*student.parameters(), *objective.parameters()], lr=0.02)
    logits, masks, seen = torch.zeros(16, 1, 8, 8), torch.zeros(16, 1, 8, 8), []
    for _ in range(steps):
        taps = {tap.name: student(torch.rand(16, 3, 4, 4))}
        losses = objective(logits, masks, taps, random_targets({("t", "s16"): TargetSpec(12, 4, 16, 1.0)}, 16), 0.5)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        seen.append(next(value.item() for name, value in losses.parts.items() if name.endswith("target_variance")))
    return seen


def test_a_trainable_fusion_collapses_while_fixed_targets_keep_their_variance() -> None:
    taps, specs = (Tap("bottleneck", 8, 16, "bottleneck"),), {("t", "s16"): TargetSpec(12, 4, 16, 1.0)}
    collapsing = variances(Notebook(taps, specs), 60)
    assert collapsing[-1] < 0.01 * collapsing[0]
    fixed = variances(OBJECTIVES.get("multiscale")(taps, specs), 60)
    assert all(0.8 < value / fixed[0] < 1.25 for value in fixed)


def test_the_guard_stops_a_trainable_fusion_at_its_first_step() -> None:
    taps, specs = (Tap("bottleneck", 8, 16, "bottleneck"),), {("t", "s16"): TargetSpec(12, 4, 16, 1.0)}
    with pytest.raises(RuntimeError, match="targets must be fixed"):
        variances(Guarded(taps, specs), 1)


def collapsing_config(store: FeatureStore, objective: str) -> DistillConfig:
    return DistillConfig(
        cache=str(store.location), student="unet:4", objective=objective, epochs=12, batch_size=2, learning_rate=0.05, device="cpu",
        precision="float32",
    )  # fmt: skip


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    OBJECTIVES.names()
    monkeypatch.setitem(OBJECTIVES._entries, "notebook-like", Notebook)
    monkeypatch.setitem(OBJECTIVES._entries, "guarded", Guarded)


def test_a_training_that_collapses_is_stopped_and_names_the_target(
    make_store: Callable[..., FeatureStore], notebook: None, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="collapsed") as caught:
        distill(collapsing_config(make_store(), "notebook-like"), tmp_path / "run")
    assert caught.value.exit_code == 1
    assert caught.value.details["where"] == "notebook/target_variance"


def test_a_training_against_a_trainable_target_does_not_start(
    make_store: Callable[..., FeatureStore], notebook: None, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="targets must be fixed"):
        distill(collapsing_config(make_store(), "guarded"), tmp_path / "run")


def test_the_threshold_of_a_collapse_is_one_percent_of_the_first_epoch(make_store: Callable[..., FeatureStore]) -> None:
    trainer = Trainer(collapsing_config(make_store(), "multiscale"), make_store(), Progress())
    trainer._check_variances({"a/target_variance": 2.0, "a/cosine": 0.5})
    trainer._check_variances({"a/target_variance": 0.021, "a/cosine": 0.0})
    before = copy.copy(trainer.first_variance)
    with pytest.raises(RunError, match="collapsed"):
        trainer._check_variances({"a/target_variance": 0.019, "a/cosine": 0.5})
    assert trainer.first_variance == before == {"a/target_variance": 2.0}
