"""`evaluate` from the user's side."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyp_difom.pipeline.data.synthetic import write_dataset

Refused = Callable[..., str]


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_evaluate_prints_a_table_and_where_its_files_are(cli: Callable, run: Path, frames: Path) -> None:
    result = cli("evaluate", run, "-d", frames, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert "synthetic" in result.stdout
    assert str(run / "results.csv") in result.stdout
    assert "has seen" not in result.stderr


def test_json_of_an_evaluation_is_one_object_and_agrees_with_the_file(cli: Callable, run: Path, frames: Path) -> None:
    result = cli("evaluate", run, "-d", frames, "--split", "all", "--json", "--device", "cpu")
    said = json.loads(result.stdout)
    row = (run / "results.csv").read_text().splitlines()[1].split(",")
    assert row[:4] == ["synthetic", "all", "per-image", "24"]
    assert float(row[4]) == said["sets"][0]["mdice"]
    assert all(Path(path).is_file() for path in said["overlays"])


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (["--split", "all"], "22 of these frames (20 train, 2 val)"),
        (["--split", "test", "--split-seed", "1"], "of these frames"),
        (["--split", "val", "--split-seed", "1"], "of these frames"),
        (["--split", "all", "-q"], "22 of these frames"),
        (["--split", "test"], None),
        (["--split", "val"], None),
        (["--split", "train"], None),
    ],
)
def test_scoring_frames_of_the_training_is_warned_of(
    options: list[str], warned: str | None, cli: Callable, run: Path, frames: Path
) -> None:
    result = cli("evaluate", run, "-d", frames, "--overlays", "0", "--device", "cpu", *options)
    assert result.exit_code == 0
    assert ("warning: the run has seen" in result.stderr) is (warned is not None)
    assert (warned or "") in result.stderr


def test_several_data_sets_and_protocols_are_scored_by_one_command_each(
    cli: Callable, run: Path, frames: Path, tmp_path: Path
) -> None:
    shutil.copytree(frames, tmp_path / "second")
    for protocol in ("per-image", "pranet", "pooled-6"):
        result = cli(
            "evaluate",
            run,
            "-d",
            frames,
            "-d",
            f"folder={tmp_path / 'second'}",
            "--protocol",
            protocol,
            "--json",
            "--split",
            "all",
            "--device",
            "cpu",
        )
        assert {s["dataset"] for s in json.loads(result.stdout)["sets"]} == {"synthetic", "second"}
    assert len((run / "results.csv").read_text().splitlines()) == 1 + 2 * 3


@pytest.mark.parametrize(
    ("code", "options", "said"),
    [
        (2, ["--split", "tests"], ["unknown split", "tests"]),
        (2, ["--protocol", "pranett"], ["unknown protocol", "did you mean pranet"]),
        (2, ["--overlays", "-1"], ["--overlays"]),
        (2, ["--device", "tpu"], ["unknown device"]),
        (2, ["--measures", "some"], ["unknown measures", "overlap"]),
        (2, ["--train", "x"], ["--train", "--exclude-leaks"]),
        (2, ["--exclude-leaks", "--protocol", "pooled-6"], ["pooled-6", "--exclude-leaks"]),
    ],
)
def test_an_evaluation_option_that_cannot_be_used_is_named(
    code: int, options: list[str], said: list[str], refused: Refused, run: Path, frames: Path
) -> None:
    message = refused(code, "evaluate", run, "-d", frames, *options)
    for words in said:
        assert words in message
    assert not (run / "results.csv").exists()


def test_evaluating_what_is_no_model_is_refused(refused: Refused, frames: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    assert "no such model" in refused(1, "evaluate", tmp_path / "nowhere", "-d", frames)
    assert "nothing to evaluate" in refused(1, "evaluate", tmp_path / "thesis", "-d", frames)


def test_evaluating_on_no_data_is_refused(refused: Refused, run: Path, tmp_path: Path) -> None:
    assert "no such folder" in refused(3, "evaluate", run, "-d", tmp_path / "nowhere")


@pytest.fixture
def maps(frames: Path, tmp_path: Path) -> Path:
    """A tool's masks of `frames`: the truth, a little too large."""
    folder = tmp_path / "theirs" / "Synthetic"
    folder.mkdir(parents=True)
    for path in (frames / "masks").iterdir():
        mask = np.array(Image.open(path).convert("L"))
        Image.fromarray(np.maximum(mask, np.roll(mask, 3, axis=1))).save(folder / path.name)
    return folder.parent


def test_a_folder_of_masks_is_scored_into_a_folder_of_its_own(
    cli: Callable, frames: Path, maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli("evaluate", maps, "-d", frames, "--split", "all")
    assert result.exit_code == 0, result.stderr
    assert f"synthetic: 24 maps from {maps / 'Synthetic'}" in result.stderr
    for column in ("mDice", "HD95", "ECE", "Dice small"):
        assert column in result.stdout
    held = json.loads((tmp_path / "evaluations/theirs/results.json").read_text())
    assert 0.8 < held["results"][0]["mdice"] < 1
    assert "mDice (95 % interval)" in (tmp_path / "evaluations/theirs/results.md").read_text()


def test_two_records_are_set_against_each_other_on_the_same_frames(
    cli: Callable, run: Path, frames: Path, maps: Path, tmp_path: Path
) -> None:
    options = ["-d", frames, "--split", "all", "--overlays", "0", "--measures", "overlap"]
    assert cli("evaluate", run, *options, "--device", "cpu").exit_code == 0
    result = cli("evaluate", maps, *options, "-o", tmp_path / "ev", "--against", run, "--json")
    said = json.loads(result.stdout)
    rival = json.loads((run / "results.json").read_text())["results"][0]
    difference = said["differences"]["synthetic"]
    assert difference["mean"] == pytest.approx(said["sets"][0]["mdice"] - rival["mdice"])
    assert difference["interval"][0] < difference["mean"] < difference["interval"][1]
    table = cli("evaluate", maps, *options, "-o", tmp_path / "ev", "--against", run)
    assert "images improved" in table.stdout


def test_a_rival_that_was_not_scored_is_answered_with_the_command_that_scores_it(
    refused: Refused, run: Path, frames: Path, maps: Path, tmp_path: Path
) -> None:
    message = refused(1, "evaluate", maps, "-d", frames, "--split", "all", "-o", tmp_path / "ev", "--against", run)
    assert f"polyp-difom evaluate {run} --data {frames} --split all --protocol per-image" in message
    assert not (tmp_path / "ev").exists()


def test_a_rival_scored_under_another_protocol_alone_is_no_rival(
    cli: Callable, refused: Refused, run: Path, frames: Path, maps: Path, tmp_path: Path
) -> None:
    options = ["-d", frames, "--split", "all", "--overlays", "0", "--measures", "overlap"]
    assert cli("evaluate", maps, *options, "-o", tmp_path / "ev", "--protocol", "pranet").exit_code == 0
    message = refused(1, "evaluate", run, *options, "--device", "cpu", "--against", tmp_path / "ev")
    assert f"polyp-difom evaluate {maps} --data {frames} --split all --protocol per-image -o {tmp_path / 'ev'}" in message
    assert not (run / "results.csv").exists()


def test_published_figures_stand_beside_ours_under_their_own_protocol_alone(cli: Callable, tmp_path: Path) -> None:
    home = tmp_path / "TestDataset/CVC-300"
    write_dataset(home, count=60, size=32)
    options = ["-d", home, "--overlays", "0", "--measures", "overlap", "-o", tmp_path / "ev"]
    apart = cli("evaluate", home / "masks", *options)
    assert "not comparable with per-image" in apart.stdout
    assert "Polyp-PVT" not in apart.stdout
    beside = cli("evaluate", home / "masks", *options, "--protocol", "pranet")
    assert "Polyp-PVT" in beside.stdout
    assert "0.900" in beside.stdout
    for file in [*home.glob("*/0059.*")]:
        file.unlink()
    fewer = cli("evaluate", home / "masks", *options, "--protocol", "pranet")
    assert fewer.exit_code == 0
    assert "Polyp-PVT" not in fewer.stdout


def test_figures_without_leaked_frames_stand_beside_the_full_ones(cli: Callable, run: Path, frames: Path) -> None:
    options = ["-d", frames, "--split", "all", "--overlays", "0", "--device", "cpu", "--exclude-leaks", "--measures", "overlap"]
    result = cli("evaluate", run, *options)
    assert result.exit_code == 0, result.stderr
    assert "without 22 leaked" in result.stdout
    said = json.loads(cli("evaluate", run, *options, "--json").stdout)
    assert (said["sets"][0]["images"], said["sets_without_leaks"][0]["images"]) == (24, 2)


def test_a_wholly_leaked_set_is_warned_of(cli: Callable, run: Path, frames: Path) -> None:
    options = ["--split", "train", "--overlays", "0", "--device", "cpu", "--exclude-leaks", "--measures", "overlap"]
    assert "nothing is left" in cli("evaluate", run, "-d", frames, *options).stderr
