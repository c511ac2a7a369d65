"""`slurm` from the user's side: a script whose tasks make the bytes of one run, and commands that are refused at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.plan import ExtractConfig

Cli = Callable[..., Any]
Refused = Callable[..., str]

SMALL_SHARDS = """
import sys
import polyp_difom.pipeline.schema as schema
from polyp_difom.cli.main import main
schema.MOST_SAMPLES_PER_SHARD = 8
main()
"""


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a store but the lock and the ledger's seconds."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != ".lock" and not name.startswith("ledger/values/c")}


def test_the_tasks_of_the_array_make_the_bytes_of_one_run(
    cli: Cli, small: list[str], frames: Path, extracting: Callable[..., ExtractConfig], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("polyp_difom.pipeline.schema.MOST_SAMPLES_PER_SHARD", 8)
    extract(extracting(frames, tmp_path / "one.zarr"))
    words = ["extract", "-d", frames, "--cache", tmp_path / "array.zarr", *small]
    made = cli("slurm", "--parts", 2, "--gpus", 0, "-o", tmp_path / "jobs/job.sh", "--", *words)
    assert made.exit_code == 0, made.output
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/polyp-difom"
    command.write_text(f"#!{sys.executable}\n{SMALL_SHARDS}")
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"}
    said = [
        subprocess.run(
            ["bash", tmp_path / "jobs/job.sh"], env={**environment, "SLURM_ARRAY_TASK_ID": str(task)}, capture_output=True,
            text=True, check=True,
        ).stdout
        for task in range(2)
    ]  # fmt: skip
    assert "part 0 of 2 is done, 2 of 3 shards" in said[0]
    assert "22 frames, complete" in said[1]
    assert files(tmp_path / "array.zarr") == files(tmp_path / "one.zarr")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "runs/x"], "evaluate"),
        (["extract", "-d", "x", "--cache", "y", "--part-id", "0", "--num-parts", "2"], "--part-id"),
        (["extract", "-d", "x", "--cache", "y", "--num-parts=2"], "--num-parts"),
        (["extract", "-d", "x", "--cache", "y", "--engine", "ray"], "--engine"),
        (["extract", "--help"], "--help"),
        (["sweep", "show", "sweeps/x"], "sweep show"),
        (["sweep", "--cache", "y", "--join"], "--join"),
        (["sweep", "--resume", "-o", "sweeps/x"], "--resume"),
        (["extract", "-d", "x"], "cache"),
        (["extract", "-d", "x", "--cache", "y", "--sise", "64"], "--sise"),
        (["extract", "-d", "x", "--cache", "y", "--size", "big"], "--size"),
    ],
)
def test_a_command_that_the_tasks_could_not_share_or_start_is_refused(
    words: list[str], said: str, refused: Refused, tmp_path: Path
) -> None:
    assert said in refused(2, "slurm", "-o", tmp_path / "job.sh", "--", *words)
    assert not (tmp_path / "job.sh").exists()


def test_an_existing_file_stays_unless_told_otherwise(cli: Cli, refused: Refused, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("mine")
    words = ["-o", script, "--", "extract", "-d", "x", "--cache", "y"]
    assert "--overwrite" in refused(2, "slurm", *words)
    assert script.read_text() == "mine"
    assert cli("slurm", "--overwrite", *words).exit_code == 0
    assert "extract -d x --cache y" in script.read_text()


@pytest.mark.parametrize(("option", "value"), [("--memory", "lots"), ("--sbatch", "account=x"), ("--sbatch", "--a\nrm -r x")])
def test_what_sbatch_would_not_take_is_refused(option: str, value: str, refused: Refused, tmp_path: Path) -> None:
    assert option in refused(
        2, "slurm", "-o", tmp_path / "job.sh", f"{option}={value}", "--", "extract", "-d", "x", "--cache", "y"
    )
