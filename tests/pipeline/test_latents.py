"""Latents in every student: the control of `paper` is the same network, and whatever reads a run reads one with latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.export.exporting import export
from polyp_difom.pipeline.models.loading import load_model
from polyp_difom.pipeline.preset import read_preset
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.runs import read_checkpoint, write_checkpoint
from polyp_difom.pipeline.teachers.protocol import implied_weights, load_teacher
from polyp_difom.pipeline.trainer import Trainer

from ..conftest import Heard

Distilling = Callable[..., DistillConfig]
STUDENTS = ["unet:4", "unetpp:4-deep", "light", "pranet", "emcad:b0", "smp:FPN/tu-mobilenetv3_small_050"]
PICTURE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def weights(trainer: Trainer) -> bytes:
    return save({name: value.contiguous() for name, value in trainer.student.state_dict().items()})


@pytest.fixture(params=STUDENTS)
def student(request: pytest.FixtureRequest) -> str:
    if not request.param.startswith("unet"):
        pytest.importorskip("segmentation_models_pytorch" if request.param.startswith("smp") else "timm")
    return request.param


def test_the_control_of_paper_is_the_same_network_with_the_same_initial_weights(
    student: str, distilling: Distilling, store: FeatureStore
) -> None:
    settings = {"student": student, "pretrained": False, "affine": False}
    paper, control, plain, other = (
        Trainer(distilling(**settings, **changes), store, Progress())
        for changes in (
            {"objective": "paper"},
            {"objective": "none", "latents": True},
            {"objective": "none"},
            {"objective": "none", "latents": True, "seed": 1},
        )
    )
    assert weights(paper) == weights(control)
    assert weights(control) not in (weights(plain), weights(other))
    assert (paper.resolved["latents"], control.resolved["latents"], plain.resolved["latents"]) == (True, True, False)


def test_a_run_with_latents_says_so_once_and_names_its_control(distilling: Distilling, store: FeatureStore) -> None:
    implied, asked, plain = Heard(), Heard(), Heard()
    Trainer(distilling(objective="paper"), store, implied)
    Trainer(distilling(objective="paper", latents=True), store, asked)
    Trainer(distilling(objective="multiscale"), store, plain)
    assert sum("give its control --latents too" in text for text in implied.lines) == 1
    assert not any("latents" in text for text in [*asked.lines, *plain.lines])


def test_the_preset_of_paper_without_its_objective_is_its_control(distilling: Distilling, store: FeatureStore) -> None:
    values = {**read_preset("paper"), "batch_size": 4}
    paper, control = (Trainer(distilling(**values | change), store, Progress()) for change in ({}, {"objective": "none"}))
    assert weights(paper) == weights(control)
    differing = {name for name, value in paper.resolved.items() if control.resolved[name] != value}
    assert differing == {"objective", "teachers", "reads"}


def test_a_student_with_latents_trains_and_comes_back_from_its_run(
    student: str, distilling: Distilling, tmp_path: Path
) -> None:
    objective = {"unet:4": "none", "light": "multiscale"}.get(student, "paper")
    run = distill(distilling(student=student, objective=objective, latents=True, pretrained=False, epochs=1), tmp_path / "run")
    tensors, header = read_checkpoint(run.best)
    assert header["latents"] is True
    model = load_model(run.path, "cpu")
    assert {name for name, _ in model.student.named_parameters() if name.startswith("latents.")} >= {"latents.first.weight"}
    assert all(torch.equal(value, tensors[name]) for name, value in model.student.state_dict().items())
    assert len(np.unique(model.probability(PICTURE))) > 1


@pytest.mark.parametrize("student", ["unet:4", "emcad:b0"])
def test_exports_and_teachers_are_made_of_runs_with_latents(student: str, distilling: Distilling, tmp_path: Path) -> None:
    if student != "unet:4":
        pytest.importorskip("timm")
    run = distill(distilling(student=student, objective="paper", pretrained=False, epochs=1), tmp_path / "run")
    wanted = load_model(run.path, "cpu").probability(PICTURE)
    export(run.path, "hub-folder", out=tmp_path / "hub")
    np.testing.assert_array_equal(load_model(tmp_path / "hub", "cpu").probability(PICTURE), wanted)
    name = f"run:{run.path}"
    teacher = load_teacher(name, implied_weights(name))
    maps = teacher.embed(torch.rand(1, 3, 64, 64))
    assert [found.shape[1] for found in maps] == list(teacher.spec.channels)


def test_an_older_run_without_a_word_of_latents_is_read_by_its_weights(distilling: Distilling, tmp_path: Path) -> None:
    run = distill(distilling(objective="paper", epochs=1), tmp_path / "run")
    tensors, header = read_checkpoint(run.best)
    now: Tensor = torch.from_numpy(load_model(run.path, "cpu").probability(PICTURE))
    del header["latents"]
    write_checkpoint(run.best, tensors, header)
    assert torch.equal(now, torch.from_numpy(load_model(run.path, "cpu").probability(PICTURE)))
