"""A training that goes wrong stops, names where, and keeps what was good."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from polyp_difom.cache.errors import RunError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.figures import Diverged, check
from polyp_difom.pipeline.runs import LARGEST_FIGURE, RunFolder
from polyp_difom.pipeline.trainer import Trainer

Distilling = Callable[..., DistillConfig]


def test_a_loss_that_is_not_finite_names_step_and_frames_and_keeps_the_last_whole_epoch(
    distilling: Distilling, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, int] = {}
    best, kept = tmp_path / "run/checkpoints/best.safetensors", list[bytes]()
    real = Trainer._train_epoch

    def poisoned(self, advance):
        if self.epoch == 1:
            kept.append(best.read_bytes())
            for maps in self.train.maps.values():
                maps[7] = torch.nan
            batches = self.train.rows(1, 4, 0)
            seen["step"] = next(number for number, rows in enumerate(batches, start=1) if 7 in rows)
            seen["of"] = len(batches)
        return real(self, advance)

    monkeypatch.setattr(Trainer, "_train_epoch", poisoned)
    with pytest.raises(RunError, match="diverged") as caught:
        distill(distilling(), tmp_path / "run")
    train = [name for name, split in zip(store.samples.ids, store.samples.split, strict=True) if split == "train"]
    named = str(caught.value.details["got"])
    assert caught.value.details["where"] == f"epoch 2, step {seen['step']} of {seen['of']}"
    assert train[7] in named
    assert named.count("synthetic/") == 4
    assert best.read_bytes() == kept[0]
    assert (tmp_path / "run/metrics.jsonl").read_text().count("\n") == 1
    monkeypatch.setattr(Trainer, "_train_epoch", real)
    distill(distilling(), tmp_path / "run", resume=True)
    distill(distilling(), tmp_path / "sound")
    last = "checkpoints/last.safetensors"
    assert (tmp_path / "run" / last).read_bytes() == (tmp_path / "sound" / last).read_bytes()


def test_a_first_epoch_that_diverges_names_what_to_type_and_claims_nothing(distilling: Distilling, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with pytest.raises(Diverged, match="diverged") as caught:
        distill(distilling(learning_rate=1e30), run.path)
    remedy = str(caught.value.details["next"])
    assert f"polyp-difom distill --config {run.path}/config.yaml --learning-rate 0.001 -o NEW" in remedy
    assert f"-o {run.path} --overwrite" in remedy
    assert "nothing is kept" in remedy
    assert "float32" not in remedy  # it is in float32 already
    with pytest.raises(RunError, match="nothing to resume") as refused:
        distill(distilling(), run.path, resume=True)
    assert "--overwrite" in str(refused.value.details["next"])
    with pytest.raises(RunError, match="before its first epoch was done") as caught_later:
        RunFolder.open(run.path)
    assert "diverged in epoch 1" in str(caught_later.value.details["got"])
    assert "--resume" not in str(caught_later.value)
    again = DistillConfig(**{**run.config(), "learning_rate": 1e-3})
    assert distill(again, run.path, overwrite=True).best.is_file()


def test_a_later_divergence_names_the_student_that_is_kept(
    distilling: Distilling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer._train_epoch

    def breaks(self: Trainer, advance: Callable[[int], None]) -> dict[str, float]:
        return real(self, advance) if self.epoch == 0 else {"segmentation": float("inf")}

    monkeypatch.setattr(Trainer, "_train_epoch", breaks)
    with pytest.raises(Diverged, match="diverged") as caught:
        distill(distilling(learning_rate=2e-3, precision="bfloat16"), tmp_path / "run")
    run, remedy = RunFolder.open(tmp_path / "run"), str(caught.value.details["next"])
    assert "--learning-rate 0.0002 -o NEW, or with --precision float32" in remedy
    assert f"of epoch 1, is kept in {run.best}" in remedy
    assert "--overwrite" not in remedy
    assert run.resume_state.is_file()


def test_a_step_that_runs_out_of_memory_says_how_many_frames_it_had(
    distilling: Distilling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "step", lambda self, batch, step: torch.empty(1 << 52))
    with pytest.raises(RunError, match="out of memory") as caught:
        distill(distilling(), tmp_path / "run")
    assert "4 frames at once" in str(caught.value.details["where"])
    assert "--batch-size" in str(caught.value.details["next"])


def test_other_errors_of_a_step_are_not_taken_for_a_lack_of_memory(
    distilling: Distilling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "step", lambda self, batch, step: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        distill(distilling(), tmp_path / "run")


def test_a_figure_that_no_log_can_hold_is_a_divergence() -> None:
    check({"segmentation": 1e14}, {}, 0)
    with pytest.raises(Diverged, match="diverged"):
        check({"segmentation": -LARGEST_FIGURE}, {}, 0)
