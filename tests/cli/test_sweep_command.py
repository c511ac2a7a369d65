"""`sweep` from the user's side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from polyp_difom.cache.store import FeatureStore

Refused = Callable[..., str]
TINY = "student=unet:4 batch-size=4 epochs=2 precision=float32 "


@pytest.fixture
def words(store: FeatureStore) -> Callable[..., list[str]]:
    """`words("objective=none,multiscale")`: a sweep of tiny students, one job, over the shared store."""
    return lambda grid: ["sweep", "--cache", str(store.location), "--grid", TINY + grid, "--device", "cpu", "--jobs", "1"]


def test_a_sweep_prints_its_table_its_best_trial_and_the_next_command(
    cli: Callable, words: Callable, refused: Refused, tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    result = cli(*words("objective=none,multiscale"), "-o", folder)
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert "000-none" in result.stdout
    assert f"next: polyp-difom evaluate {folder} --data DIR\n" in result.stdout
    assert "001-multiscale finished val Dice" in result.stderr
    assert (folder / "results.csv").read_text().count("finished") == 2
    assert (folder / "runs/000-none/config.yaml").is_file()

    shown = json.loads(cli("sweep", "show", folder, "--json").stdout)
    assert [(row["state"], row["epoch"]) for row in shown["trials"]] == [("finished", 2)] * 2
    assert all(row["parameters"] > 1000 and row["latency_ms"] > 0 for row in shown["trials"])

    again = cli("sweep", "--resume", "-o", folder, "--json", "-q", "--jobs", "1")
    assert again.exit_code == 0, again.stderr
    assert [row["val_dice"] for row in json.loads(again.stdout)["trials"]] == [row["val_dice"] for row in shown["trials"]]
    assert again.stderr == ""
    resumed = ["sweep", "--resume", "-o", folder]
    assert "sampler_seed = 7 now" in refused(2, *resumed, "--sampler-seed", "7")  # flags are not left unread
    assert "--jobs" in refused(2, *resumed, "--jobs", "0")
    refused(2, *resumed, "--preset", "paper")


def test_a_file_holds_the_whole_sweep(cli: Callable, store: FeatureStore, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        f"cache: {store.location}\ndevice: cpu\njobs: 1\nfactors:\n  student: unet:4\n  epochs: 1\n  batch-size: 4\n  seed: 0..1\n"
    )
    result = cli("sweep", "--config", file, "-o", tmp_path / "s", "--json", "-q")
    assert result.exit_code == 0, result.stderr
    assert [row["settings"]["seed"] for row in json.loads(result.stdout)["trials"]] == [0, 1]


def test_failed_trials_are_named_with_their_error_and_the_exit_code_is_1(
    cli: Callable, words: Callable, tmp_path: Path
) -> None:
    result = cli(*words("learning-rate=1e30,1e-3"), "-o", tmp_path / "s", "-q")
    assert result.exit_code == 1
    assert "1 of 2 trials failed" in result.stderr
    assert "diverged" in result.stderr
    assert "001-lr0.001" in result.stdout


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--grid", "studnet=unet"], "did you mean student"), (["--grid", "seed=0", "--trials", "3"], "--trials"),
        (["--grid", "seed=0..1", "--sampler", "random"], "--trials"), (["--grid", "lr=1"], "no factor 'lr'"),
        (["--optimise", "speed"], "--optimise"), (["--resume", "--join"], "exclude"), (["--sampler", "magic"], "--sampler"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_a_usage_error_and_leaves_nothing(
    refused: Refused, store: FeatureStore, tmp_path: Path, more: list[str], said: str
) -> None:
    grid = [] if "--grid" in more else ["--grid", "seed=0"]
    assert said in refused(2, "sweep", "--cache", store.location, *grid, "-o", tmp_path / "s", *more)
    assert not (tmp_path / "s").exists()


def test_a_sweep_that_is_not_there_cannot_be_shown_or_resumed(refused: Refused, tmp_path: Path) -> None:
    assert "no sweep here" in refused(1, "sweep", "show", tmp_path)
    assert "no sweep here" in refused(1, "sweep", "--resume", "-o", tmp_path / "none")


def test_a_dry_run_lists_trials_minutes_and_bytes_and_writes_nothing(cli: Callable, words: Callable, tmp_path: Path) -> None:
    result = cli(*words("objective=none,multiscale seed=0..1"), "-o", tmp_path / "s", "--dry-run", "--json")
    assert result.exit_code == 0, (result.stderr, result.exception)
    predicted = json.loads(result.stdout)
    assert len(predicted["trials"]) == 4
    assert all(row["minutes"] > 0 and row["bytes"] > 10_000 for row in predicted["trials"])
    assert not (tmp_path / "s").exists()


def test_ctrl_c_ends_the_workers_and_says_how_to_go_on(words: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    command = [sys.executable, "-m", "polyp_difom.cli", *words("seed=0..50"), "-o", str(folder)]
    sweep = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 120
    while not list(folder.glob("runs/*/metrics.jsonl")) and time.monotonic() < until:
        time.sleep(0.1)
    os.killpg(sweep.pid, signal.SIGINT)
    _, said = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, said
    assert "--resume" in said
    assert "Traceback" not in said
    until = time.monotonic() + 30
    while left := living(sweep.pid):
        assert time.monotonic() < until, left
        time.sleep(0.1)


def living(session: int) -> list[str]:
    """Commands of the processes of a session that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except (OSError, ValueError):  # it ended meanwhile
            continue
    return found
