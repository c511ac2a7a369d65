"""`--objective auto`: validation frames decide, noise decides for nobody, and a kill costs one epoch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from polyp_difom.cache.errors import CacheError, RunError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.cli.main import app
from polyp_difom.pipeline import auto
from polyp_difom.pipeline.auto import Candidate, by_chance, candidates
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.figures import Diverged
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.resuming import save
from polyp_difom.pipeline.runs import RunFolder
from polyp_difom.pipeline.trainer import Trainer

from ..conftest import Heard

Distilling = Callable[..., DistillConfig]
ALONE = [Candidate("multiscale", "multiscale", 1.0)]


@pytest.fixture(scope="module", autouse=True)
def few_frames_will_do() -> Iterator[None]:
    """The tests' store has fewer validation frames than a verdict needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto, "LEAST_FRAMES", 1)
        yield


def scored(monkeypatch: pytest.MonkeyPatch, gains: dict[str, dict[int, float]], frames: int = 40) -> list[tuple[str, int]]:
    """Pilots with these gains over `none`, by label and epochs, and some noise; returns who was trained for how long."""
    asked: list[tuple[str, int]] = []

    def scores(self: object, candidate: Candidate, epochs: int) -> Tensor:
        asked.append((candidate.label, epochs))
        noise = torch.linspace(-0.05, 0.05, frames, dtype=torch.float64)
        gain = gains.get(candidate.label, {}).get(epochs, 0.0)
        if gain is None:
            raise Diverged("the training has diverged")
        return 0.5 + gain + (noise.flip(0) if gain else noise * 0)

    monkeypatch.setattr(auto._Pilots, "_scores", scores)
    return asked


def chosen(distilling: Distilling, out: Path, **changes: object) -> tuple[DistillConfig, list[str]]:
    told = Heard()
    config, going = auto.choose(distilling(objective="auto", **changes), out, told, distill, resume=False, overwrite=False)
    assert not going
    return config, told.lines


def test_a_gain_that_lasts_is_chosen_with_its_weight_and_schedule(
    distilling: Distilling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scored(monkeypatch, {"multiscale (weight 0.3)": {10: 0.05, 20: 0.021}, "multiscale, decay": {10: 0.01}})
    config, lines = chosen(distilling, tmp_path / "run", epochs=40)
    assert (config.objective, config.distill_weight, config.weight_schedule, config.epochs) == (
        "multiscale",
        0.3,
        "constant",
        40,
    )
    assert config.auto == "auto: multiscale (weight 0.3): +2.1 points of validation Dice over none after 20 epochs"
    assert lines[-1] == config.auto
    assert [pair for pair in asked if pair[1] == 20] == [("none", 20), ("multiscale (weight 0.3)", 20)]
    assert json.loads((tmp_path / "run/pilots/rounds.json").read_text())[1]["best"] == "multiscale (weight 0.3)"


@pytest.mark.parametrize(
    ("gains", "count", "rounds"),
    [
        ({10: -0.004}, 40, 1),  # behind already
        ({10: 0.03, 20: -0.004}, 40, 2),  # faster, but no better in the end
        ({10: 0.03, 20: 0.005}, 40, 2),  # what another seed moves
        ({10: 0.03, 20: 0.03}, 3, 2),  # of three frames
    ],
)
def test_without_a_gain_that_is_no_chance_nobody_teaches(
    gains: dict[int, float], count: int, rounds: int, distilling: Distilling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "candidates", lambda config, store: ALONE)
    asked = scored(monkeypatch, {"multiscale": gains}, count)
    config, _ = chosen(distilling, tmp_path / "run", epochs=40)
    assert config.objective == "none"
    assert config.auto is not None
    said = "helped" if min(gains.values()) < 0 else "is shown to help"
    assert config.auto.startswith(f"auto: no teacher {said} (best: multiscale ")
    assert len(asked) == 2 * rounds


def test_frames_too_few_to_show_anything_cost_no_pilot(
    distilling: Distilling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "LEAST_FRAMES", 5)
    asked = scored(monkeypatch, {"multiscale": {10: 0.05, 20: 0.05}})
    config, lines = chosen(distilling, tmp_path / "run", epochs=40)
    assert config.objective == "none"
    assert config.auto == lines[-1]
    assert "validation frames are too few" in lines[-1]
    assert asked == []


def test_a_candidate_that_diverges_is_left_out(distilling: Distilling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, {"multiscale": {10: None}, "multiscale, decay": {10: 0.04, 20: 0.04}})
    config, lines = chosen(distilling, tmp_path / "run", epochs=40)
    assert config.weight_schedule == "decay"
    assert any("multiscale is left out" in line for line in lines)


def test_chance_is_that_of_signs_and_few_frames_prove_nothing() -> None:
    assert by_chance(torch.full((2,), 0.1, dtype=torch.float64), 0) == pytest.approx(0.25, abs=0.02)
    assert by_chance(torch.full((10,), 0.1, dtype=torch.float64), 0) < 0.01
    assert by_chance(torch.tensor([0.1, -0.1] * 10, dtype=torch.float64), 0) > 0.4


def test_candidates_teach_with_the_wanted_weight_and_less(distilling: Distilling, store: FeatureStore) -> None:
    found = candidates(distilling(objective="auto", distill_weight=2.0), store)
    assert {(c.distill_weight, c.weight_schedule) for c in found if c.objective == "multiscale"} == {
        (2.0, "constant"), (0.6, "constant"), (2.0, "decay"), (2.0, "representation-first")
    }  # fmt: skip
    assert not any("logit" in c.objective for c in found)


@pytest.fixture(scope="module")
def uninterrupted(distilling: Distilling, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of three epochs whose one candidate was tried against `none`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto, "candidates", lambda config, store: ALONE)
        return distill(distilling(objective="auto", epochs=3), tmp_path_factory.mktemp("auto") / "whole")


class Stopping(Progress):
    """Ctrl-C in the second pilot, or once the choice is made."""

    def __init__(self, at: str):
        self.at = at

    def say(self, text: str) -> None:
        if self.at == "choice" and text.startswith("epoch 1/"):
            raise KeyboardInterrupt

    def task(self, label: str, total: int):
        if self.at == label:
            raise KeyboardInterrupt
        return super().task(label, total)


@pytest.mark.parametrize("at", ["pilot multiscale", "choice"])
def test_killed_among_its_pilots_or_later_a_run_goes_on_and_ends_as_uninterrupted(
    at: str, uninterrupted: RunFolder, distilling: Distilling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "candidates", lambda config, store: ALONE)
    config = distilling(objective="auto", epochs=3)
    with pytest.raises(KeyboardInterrupt):
        distill(config, tmp_path / "run", Stopping(at))
    with pytest.raises(RunError, match=r"other settings|exists already"):
        distill(config.model_copy(update={"seed": 5}), tmp_path / "run", resume=at != "choice")
    run = distill(config, tmp_path / "run", resume=True)
    assert run.last.read_bytes() == uninterrupted.last.read_bytes()
    assert run.config()["auto"].startswith("auto: ")
    assert run.config()["objective"] in ("none", "multiscale")


def test_overwritten_a_run_has_new_pilots(
    uninterrupted: RunFolder, distilling: Distilling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(uninterrupted.path, tmp_path / "run")
    asked = scored(monkeypatch, {"multiscale": {3: 0.05}})
    monkeypatch.setattr(auto, "candidates", lambda config, store: ALONE)
    run = distill(distilling(objective="auto", epochs=3, seed=1), tmp_path / "run", overwrite=True)
    assert asked
    assert {path.name for path in (run.path / "pilots").iterdir()} == {"config.yaml", "rounds.json"}
    assert (run.config()["seed"], run.config()["objective"]) == (1, "multiscale")


@pytest.mark.parametrize("typed", [False, True])
def test_killed_while_the_chosen_run_is_being_made_it_goes_on(
    typed: bool, uninterrupted: RunFolder, distilling: Distilling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "candidates", lambda config, store: ALONE)
    config, out = distilling(objective="auto", epochs=3), tmp_path / "run"

    def killed(trainer: Trainer, run: RunFolder) -> None:
        if run.path == out:
            raise KeyboardInterrupt
        save(trainer, run)

    with monkeypatch.context() as patch:
        patch.setattr("polyp_difom.pipeline.distill.save", killed)
        with pytest.raises(KeyboardInterrupt):
            distill(config, out)
    assert (out / "config.yaml").is_file()
    if typed:
        result = CliRunner().invoke(app, ["distill", "--resume", "-o", str(out)])
        assert result.exit_code == 0, result.stderr
    else:
        distill(config, out, resume=True)
    assert RunFolder(out).last.read_bytes() == uninterrupted.last.read_bytes()


def test_pilots_train_without_compiling_and_whoever_resumes_them_still_compiles(
    distilling: Distilling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, out = list[DistillConfig](), tmp_path / "run"

    def killed(config: DistillConfig, *_: object, **__: object) -> RunFolder:
        trained.append(config)
        raise RunError("killed")

    config = distilling(objective="auto", epochs=3, compile=True)
    for resume, compiles in ((False, True), (True, True), (True, False)):
        with pytest.raises(RunError, match="killed"):
            auto.choose(
                config.model_copy(update={"compile": compiles}), out, Progress(), killed, resume=resume, overwrite=False
            )
    assert [config.compile for config in trained] == [False] * 3
    monkeypatch.setattr("polyp_difom.pipeline.distill.distill", killed)
    CliRunner().invoke(app, ["distill", "--resume", "-o", str(out)])
    assert trained[3].compile


def test_what_cannot_be_trained_replaces_no_run(uninterrupted: RunFolder, distilling: Distilling, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted.path, tmp_path / "run")
    with pytest.raises(CacheError, match="not the store"):
        distill(distilling(objective="auto", epochs=3, signature="0" * 64), tmp_path / "run", overwrite=True)
    assert (tmp_path / "run/checkpoints/last.safetensors").read_bytes() == uninterrupted.last.read_bytes()


def test_a_teacher_that_learned_the_validation_frames_is_not_judged_on_them(
    distilling: Distilling, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = dict(zip(store.samples.split, store.samples.pixel_sha256, strict=True))["val"]
    rows = [{"id": "a", "pixel_sha256": known, "split": "val"}]
    scored(monkeypatch, {})
    monkeypatch.setattr(auto, "learned_by", lambda store, teachers: rows)
    chosen(distilling, tmp_path / "selected", epochs=3)
    rows[0]["split"] = "train"
    with pytest.raises(UsageError, match="cannot judge teacher 'dinov2:small'"):
        chosen(distilling, tmp_path / "learned", epochs=3)
    assert not (tmp_path / "learned").exists()
