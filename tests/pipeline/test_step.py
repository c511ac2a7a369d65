"""A training step: nothing in it waits for the device, and what fused kernels take for granted holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import trainer as training
from polyp_difom.pipeline.distill import DistillConfig
from polyp_difom.pipeline.figures import Means, digest
from polyp_difom.pipeline.objectives import protocol
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.resuming import load, save
from polyp_difom.pipeline.runs import RunFolder
from polyp_difom.pipeline.trainer import Trainer

Distilling = Callable[..., DistillConfig]
META = torch.device("meta")
"""Tensors without values: whoever asks for one fails, as a GPU would have to be waited for."""


def _moments(maps: Tensor) -> tuple[Tensor, Tensor]:
    return maps.mean((0, 2, 3)), maps.var((0, 2, 3))


@pytest.mark.parametrize("objective", ["none", "multiscale", "shuffled+cwd", "relational"])
def test_no_step_asks_the_device_for_a_value(
    objective: str, distilling: Distilling, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "training_autocast", lambda device, precision: nullcontext())
    monkeypatch.setattr(protocol, "moments", _moments)  # the real one's kernel knows no such tensors
    trainer = Trainer(distilling(objective=objective), store, Progress())
    feed = trainer.train
    trainer.device = feed.device = META
    feed.images, feed.masks = (
        torch.empty_like(held, device=META) for held in (feed.images, feed.masks) if isinstance(held, Tensor)
    )
    feed.maps = {key: torch.empty_like(held, device=META) for key, held in feed.maps.items() if isinstance(held, Tensor)}
    trainer.student.to(META)
    trainer.objective.to(META)
    means = Means()
    for step, batch in zip(range(2), trainer.batches(0), strict=False):
        parts, sound = trainer.step(batch, step)
        means.add(parts)
        assert sound.device == batch.frames.device == META
    with pytest.raises(Exception, match="meta"):
        means.values()


def _lie_alike(one: Tensor, other: Tensor) -> bool:
    strides = zip(one.shape, one.stride(), other.stride(), strict=True)
    return all(a == b for side, a, b in strides if side > 1)


def _check_layout(trainer: Trainer, tensors: Callable[[Tensor], Iterable[Tensor | None]]) -> None:
    for parameter in trainer.optimizer.param_groups[0]["params"]:
        for tensor in tensors(parameter):
            assert tensor is None or tensor.ndim == 0 or _lie_alike(parameter, tensor)


@pytest.mark.parametrize("student", ["unet:4", "unetpp:4", "light"])
def test_gradients_and_moments_lie_like_their_parameters_also_when_resumed(
    student: str, distilling: Distilling, store: FeatureStore, tmp_path: Path
) -> None:
    config = distilling(student=student, pretrained=False)
    first = Trainer(config, store, Progress())
    first.step(next(iter(first.batches(0))), 0)
    _check_layout(first, lambda parameter: (parameter.grad, *first.optimizer.state[parameter].values()))
    run = RunFolder(tmp_path)
    run.resume_state.parent.mkdir()
    save(first, run)
    second = Trainer(config, store, Progress(), resume=True)
    load(second, run)
    _check_layout(second, lambda parameter: second.optimizer.state[parameter].values())
    batch = list(first.batches(0))[1]
    for trainer in (first, second):
        trainer.step(batch, 1)
    for one, two in zip(first.student.state_dict().values(), second.student.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_means_are_over_the_steps_that_had_a_figure() -> None:
    means = Means()
    for figures in ({"a": 1.0, "b": 10.0}, {"a": 2.0}, {"b": 30.0, "a": 6.0}, {"a": 3.0}):
        means.add({name: torch.tensor(value) for name, value in figures.items()})
    assert means.values() == {"a": 3.0, "b": 20.0}


@pytest.mark.parametrize(
    "prefix",
    ["sam-vit_b/s16/bottleneck", "hf-a/b/s16/bottleneck", "cwd:sam-vit_b/s16/bottleneck", "cwd@decoder:hf-a/b/s8/decoder8"],
)
def test_an_epochs_line_shows_the_cosine_of_whole_maps_whatever_teacher_and_objective(prefix: str) -> None:
    figures = {"segmentation": 0.5, f"{prefix}/cosine": 0.25, f"{prefix}/explained": 0.9, f"{prefix}/low/cosine": 0.75}
    assert digest(figures) == "segmentation 0.5000, teacher cosine 0.250,"
    assert digest({"segmentation": 0.5, f"{prefix}/low/cosine": 0.75}) == "segmentation 0.5000,"
