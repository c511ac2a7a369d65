"""Run folders and checkpoints: written whole or not at all, read back as they were."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from polyp_difom.cache.errors import RunError, UsageError
from polyp_difom.cache.samples import SampleTable
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.files import write_bytes
from polyp_difom.pipeline.runs import RunFolder, read_checkpoint, write_checkpoint

SAMPLES = SampleTable(
    ["a/1", "a/é,2"],
    ["0" * 64, "1" * 64],
    ["2" * 64, "3" * 64],
    ["4" * 64, "5" * 64],
    np.ones(2, np.int32),
    np.ones(2, np.int32),
    ["train", "val"],
    ["a", "a"],
)


def test_a_checkpoint_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.arange(6.0).view(2, 3), "steps": torch.tensor(7)}
    header = {"student": "unet:4", "val_dice": 0.123456789012345, "teachers": ["é"]}
    write_checkpoint(tmp_path / "c.safetensors", tensors, header)
    read, got = read_checkpoint(tmp_path / "c.safetensors")
    assert got == header
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], value) for name, value in tensors.items())


def test_the_same_weights_are_written_as_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_checkpoint(tmp_path / name, {"b": torch.ones(3), "a": torch.zeros(2)}, {"epoch": 1})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0garbage!", b"PK\x03\x04 a pickle would start so", b"\xff" * 64])
def test_a_file_that_is_no_checkpoint_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c.safetensors").write_bytes(content)
    with pytest.raises(RunError, match="not a polyp-difom checkpoint") as caught:
        read_checkpoint(tmp_path / "c.safetensors")
    assert str(tmp_path / "c.safetensors") in str(caught.value)


def test_safetensors_of_another_program_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, tmp_path / "c.safetensors")
    with pytest.raises(RunError, match="not a polyp-difom checkpoint"):
        read_checkpoint(tmp_path / "c.safetensors")


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "c.safetensors")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes(tmp_path / "file", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="cannot write") as caught:
        write_bytes(tmp_path / "file", b"new")
    assert "No space left" in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


def test_seen_frames_survive_odd_names(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    run.describe({"cache": "x"}, SAMPLES)
    assert run.seen() == {"4" * 64: "train", "5" * 64: "val"}
    assert run.config() == {"cache": "x"}


def test_frames_that_a_teacher_learned_from_are_kept_also_where_the_run_is_only_selected_on_them(tmp_path: Path) -> None:
    learned = [
        {"id": f"b/{n}", "pixel_sha256": n * 64, "split": split} for n, split in (("4", "val"), ("5", "train"), ("6", "val"))
    ]
    run = RunFolder.create(tmp_path / "run")
    run.describe({"cache": "x"}, SAMPLES, learned)
    assert [(row["id"], row["split"]) for row in run.samples()] == [
        ("a/1", "train"), ("a/é,2", "val"), ("b/5", "train"), ("b/6", "val")
    ]  # fmt: skip
    assert run.seen() == {"4" * 64: "train", "5" * 64: "train", "6" * 64: "val"}


def test_history_is_cut_at_the_epoch_that_a_run_resumes_from(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    epochs = [{"epoch": epoch, "val_dice": 0.5, "seconds": 1.0} for epoch in (1, 2, 3)]
    for record in epochs:
        run.log(record)
    with run.metrics.open("a") as file:
        file.write('{"epo')
    run.truncate_history(2)
    assert run.history() == epochs[:2]


def test_a_folder_with_something_in_it_is_no_place_for_a_new_run_but_an_empty_one_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert RunFolder.create(tmp_path / "empty").checkpoints.is_dir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(RunError, match="exists already"):
        RunFolder.create(tmp_path / "full")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="exists already"):
        RunFolder.create(tmp_path / "file")


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="cannot be made"):
        RunFolder.create(tmp_path / "file" / "run")


def weights(run: Path) -> dict[str, bytes]:
    return {name: (run / "checkpoints" / f"{name}.safetensors").read_bytes() for name in ("best", "last")}


def test_an_existing_run_is_never_overwritten_unless_asked(distilling: Callable[..., DistillConfig], tmp_path: Path) -> None:
    config = distilling(objective="none", epochs=1)
    distill(config, tmp_path / "run")
    before = weights(tmp_path / "run")
    other = config.model_copy(update={"seed": 1})
    with pytest.raises(RunError, match="exists already"):
        distill(other, tmp_path / "run")
    assert weights(tmp_path / "run") == before
    distill(other, tmp_path / "run", overwrite=True)
    assert weights(tmp_path / "run") != before
    assert len(RunFolder(tmp_path / "run").history()) == 1


def test_overwriting_with_a_bad_configuration_leaves_the_old_run(
    distilling: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    distill(distilling(objective="none", epochs=1), tmp_path / "run")
    before = weights(tmp_path / "run")
    with pytest.raises(UsageError, match="unknown U-Net width"):
        distill(distilling(student="unet:3"), tmp_path / "run", overwrite=True)
    assert weights(tmp_path / "run") == before


def test_a_folder_that_is_no_run_is_not_overwritten(distilling: Callable[..., DistillConfig], tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.tex").write_text("all of it")
    with pytest.raises(RunError, match="no run wrote"):
        distill(distilling(epochs=1), tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis/chapter1.tex").read_text() == "all of it"


def test_resume_and_overwrite_exclude_each_other(distilling: Callable[..., DistillConfig], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        distill(distilling(), tmp_path / "run", resume=True, overwrite=True)


def test_resuming_what_is_not_there_or_finished_is_refused(distilling: Callable[..., DistillConfig], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing to resume"):
        distill(distilling(), tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()
    distill(distilling(objective="none", epochs=1), tmp_path / "run")
    with pytest.raises(RunError, match="finished already"):
        distill(distilling(objective="none", epochs=1), tmp_path / "run", resume=True)


def test_half_a_last_line_of_a_killed_run_does_not_hide_the_epochs_before(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.metrics.write_text('{"epoch": 1, "val_dice": 0.5, "seconds": 1}\n{"epoch": 2, "val')
    assert run.history() == [{"epoch": 1, "val_dice": 0.5, "seconds": 1}]
    run.metrics.write_text('{"epoch": 1, "val\n{"epoch": 2}\n')
    with pytest.raises(RunError, match="damaged"):
        run.history()
