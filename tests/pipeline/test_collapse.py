"""The collapse: a target that is trained goes to zero variance; fixed targets do not, and both guards catch it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from polyp_difom.cache.errors import RunError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.figures import check
from polyp_difom.pipeline.losses import dice_bce
from polyp_difom.pipeline.objectives.multiscale import MultiScale
from polyp_difom.pipeline.objectives.notebook import Notebook
from polyp_difom.pipeline.objectives.protocol import OBJECTIVES, Key, Objective, Targets, TargetSpec
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.students.protocol import Tap
from polyp_difom.pipeline.trainer import Trainer


class Fused(MultiScale):
    """What must not be done: the target is a trainable 1x1 convolution of the teacher's maps."""

    def __init__(self, taps: tuple[Tap, ...], targets: Mapping[Key, TargetSpec], weight: float = 1.0):
        super().__init__(taps, targets, weight)
        channels = next(spec.channels for spec in targets.values())
        self.fusion = nn.Conv2d(channels, channels, 1)

    def distance(self, logits: Tensor, taps: Mapping[str, Tensor], targets: Targets) -> tuple[Tensor | None, dict[str, Tensor]]:
        return super().distance(logits, taps, Targets({key: self.fusion(maps) for key, maps in targets.maps.items()}))


class Swift(Notebook):
    """The notebook, whose collapse takes some hundred steps, with one that takes a few."""

    def distance(self, logits: Tensor, taps: Mapping[str, Tensor], targets: Targets) -> tuple[Tensor | None, dict[str, Tensor]]:
        with torch.no_grad():
            for parameter in self.fusion.parameters():
                parameter *= 0.5
        return super().distance(logits, taps, targets)


class Strict(Swift):
    """The same without the licence to collapse."""

    may_collapse = False


TAPS = (Tap("bottleneck", 8, 16, "bottleneck"),)
SPECS = {("t", "s16"): TargetSpec(12, 4, 16, 1.0)}


def variances(objective: Objective, steps: int) -> list[float]:
    """Target variance at each step of a toy training: frames and teacher maps share nothing that can be learnt."""
    student = nn.Conv2d(3, TAPS[0].channels, 1)
    optimizer = torch.optim.Adam([*student.parameters(), *objective.parameters()], lr=0.02)
    logits, masks, seen = torch.zeros(16, 1, 8, 8), torch.zeros(16, 1, 8, 8), []
    for _ in range(steps):
        taps = {"bottleneck": student(torch.rand(16, 3, 4, 4))}
        targets = Targets(maps={("t", "s16"): torch.randn(16, 12, 4, 4)})
        losses = objective(dice_bce(logits, masks), logits, taps, targets, 0.5)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        seen.append(next(value.item() for name, value in losses.parts.items() if name.endswith("target_variance")))
    return seen


def test_a_trainable_fusion_collapses_while_fixed_targets_keep_their_variance() -> None:
    collapsing = variances(Notebook(TAPS, SPECS), 80)
    assert collapsing[-1] < 0.01 * collapsing[0]
    fixed = variances(MultiScale(TAPS, SPECS), 60)
    assert all(0.8 < value / fixed[0] < 1.25 for value in fixed)


def test_the_guard_stops_a_trainable_fusion_at_its_first_step() -> None:
    with pytest.raises(RuntimeError, match="targets must be fixed"):
        variances(Fused(TAPS, SPECS), 1)


def config_of(store: FeatureStore, objective: str) -> DistillConfig:
    settings = {
        "student": "unet:4",
        "epochs": 3,
        "batch_size": 2,
        "device": "cpu",
        "precision": "float32",
    }
    return DistillConfig.model_validate({"cache": str(store.location), "objective": objective, **settings})


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    OBJECTIVES.names()
    monkeypatch.setitem(OBJECTIVES._entries, "swift", Swift)
    monkeypatch.setitem(OBJECTIVES._entries, "strict", Strict)
    monkeypatch.setitem(OBJECTIVES._entries, "fused", Fused)


def test_a_training_that_collapses_is_stopped_and_names_the_target(
    make_store: Callable[..., FeatureStore], forbidden: None, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="collapsed") as caught:
        distill(config_of(make_store(), "strict"), tmp_path / "run")
    assert caught.value.exit_code == 1
    assert str(caught.value.details["where"]).startswith("fused/s16/bottleneck")


def test_the_notebook_goes_on_through_its_collapse_with_one_warning_for_each_band(
    make_store: Callable[..., FeatureStore], forbidden: None, tmp_path: Path
) -> None:
    said: list[str] = []
    progress = Progress()
    progress.say = said.append  # type: ignore[method-assign]
    config = config_of(make_store(), "swift")
    history = distill(config, tmp_path / "run", progress).history()
    assert len(history) == config.epochs
    warnings = [line for line in said if "collapsed" in line]
    assert 1 <= len(warnings) <= 2
    for band in ("fused/s16/bottleneck/low", "fused/s16/bottleneck/high"):
        assert sum(band in line for line in warnings) == 1
        assert history[-1][f"{band}/target_variance"] < 0.01 * history[0][f"{band}/target_variance"]


def test_a_training_against_a_trainable_target_does_not_start(
    make_store: Callable[..., FeatureStore], forbidden: None, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="targets must be fixed"):
        distill(config_of(make_store(), "fused"), tmp_path / "run")


def test_the_threshold_of_a_collapse_is_one_percent_of_the_first_epoch(make_store: Callable[..., FeatureStore]) -> None:
    trainer = Trainer(config_of(make_store(), "multiscale"), make_store(), Progress())
    check({"a/target_variance": 2.0, "a/cosine": 0.5}, trainer.first_variance, 0)
    check({"a/target_variance": 0.021, "a/cosine": 0.0}, trainer.first_variance, 0)
    before = copy.copy(trainer.first_variance)
    with pytest.raises(RunError, match="collapsed"):
        check({"a/target_variance": 0.019, "a/cosine": 0.5}, trainer.first_variance, 0)
    assert trainer.first_variance == before == {"a/target_variance": 2.0}


def test_a_figure_that_is_not_finite_stops_the_run(make_store: Callable[..., FeatureStore]) -> None:
    trainer = Trainer(config_of(make_store(), "multiscale"), make_store(), Progress())
    with pytest.raises(RunError, match="diverged") as caught:
        check({"segmentation": float("nan")}, trainer.first_variance, 0)
    assert "--learning-rate" in str(caught.value)
