"""The collapse: a target that is trained goes to zero variance; fixed targets do not, and both guards catch it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyp_difom.cache.errors import RunError
from polyp_difom.cache.store import FeatureStore
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
)
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.students.protocol import Tap


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
        targets = Targets(maps={("t", "s16"): torch.randn(16, 12, 4, 4)})
        losses = objective(logits, masks, taps, targets, 0.5)
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
    settings = {
        "student": "unet:4",
        "epochs": 18,
        "batch_size": 2,
        "learning_rate": 0.3,
        "device": "cpu",
        "precision": "float32",
    }
    return DistillConfig.model_validate({"cache": str(store.location), "objective": objective, **settings})


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
    trainer._check({"a/target_variance": 2.0, "a/cosine": 0.5})
    trainer._check({"a/target_variance": 0.021, "a/cosine": 0.0})
    before = copy.copy(trainer.first_variance)
    with pytest.raises(RunError, match="collapsed"):
        trainer._check({"a/target_variance": 0.019, "a/cosine": 0.5})
    assert trainer.first_variance == before == {"a/target_variance": 2.0}


def test_a_figure_that_is_not_finite_stops_the_run(make_store: Callable[..., FeatureStore]) -> None:
    trainer = Trainer(collapsing_config(make_store(), "multiscale"), make_store(), Progress())
    with pytest.raises(RunError, match="diverged") as caught:
        trainer._check({"segmentation": float("nan")})
    assert "--learning-rate" in str(caught.value)
