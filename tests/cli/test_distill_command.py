"""`distill` from the user's side."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.runs import RunFolder

Refused = Callable[..., str]


@pytest.fixture
def train(cli: Callable, store: FeatureStore, light: list[str]) -> Callable:
    """`train("-o", folder)`: a run of two epochs on the shared store."""
    return lambda *words: cli("distill", "--cache", store.location, *light, *words)


def test_a_run_is_made_and_the_next_command_is_named(train: Callable, tmp_path: Path) -> None:
    result = train("-o", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert "best validation Dice" in result.stdout
    assert f"polyp-difom evaluate {tmp_path / 'run'} --data" in result.stdout
    assert "epoch 2/2" in result.stderr


def test_a_run_is_named_after_student_objective_and_seed_by_default(
    train: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train("--objective", "none", "--seed", "3").exit_code == 0
    assert (tmp_path / "runs/unet4-none-s3/checkpoints/last.safetensors").is_file()
    assert train("--objective", "cwd@decoder:2", "--epochs", "1").exit_code == 0
    assert (tmp_path / "runs/unet4-cwd-decoder2-s0/checkpoints/last.safetensors").is_file()  # "@" asks a teacher for its output


def test_json_of_a_run_is_one_object_and_quiet_is_quiet(train: Callable, tmp_path: Path) -> None:
    result = train("-o", tmp_path / "run", "--json", "-q")
    said = json.loads(result.stdout)
    history = RunFolder(tmp_path / "run").history()
    assert said["best_val_dice"] == max(record["val_dice"] for record in history)
    assert (said["run"], said["epochs"]) == (str(tmp_path / "run"), 2)
    assert result.stderr == ""


def test_flags_win_over_the_configuration_and_the_configuration_over_defaults(
    cli: Callable, store: FeatureStore, tmp_path: Path
) -> None:
    values = {
        "cache": str(store.location), "student": "unet:8", "epochs": 7, "batch-size": 5, "objective": "none", "device": "cpu",
        "teachers": "dinov2:small",
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    result = cli(
        "distill",
        "--config",
        tmp_path / "c.yaml",
        "--epochs",
        "1",
        "--student",
        "unet",
        "--student",
        "unet:4",
        "-o",
        tmp_path / "r",
    )
    assert result.exit_code == 0, result.stderr
    saved = RunFolder(tmp_path / "r").config()
    wanted = {"student": "unet:4", "epochs": 1, "batch_size": 5, "objective": "none", "learning_rate": 1e-3, "seed": 0}
    assert {name: saved[name] for name in wanted} == wanted


def test_a_flag_that_repeats_a_default_still_wins_over_the_configuration(
    cli: Callable, store: FeatureStore, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(f"cache: {store.location}\nobjective: none\nstudent: unet:4\nepochs: 1\nseed: 9\n")
    assert cli("distill", "--config", tmp_path / "c.yaml", "--seed", "0", "-o", tmp_path / "r").exit_code == 0
    assert RunFolder(tmp_path / "r").config()["seed"] == 0


@pytest.mark.parametrize("objective", ["none", "multiscale"])
def test_a_runs_own_configuration_is_a_configuration(objective: str, train: Callable, cli: Callable, tmp_path: Path) -> None:
    assert train("-o", tmp_path / "one", "--objective", objective).exit_code == 0
    result = cli("distill", "--config", tmp_path / "one/config.yaml", "-o", tmp_path / "two")
    assert result.exit_code == 0, result.stderr
    one, two = (RunFolder(tmp_path / name) for name in ("one", "two"))
    assert one.last.read_bytes() == two.last.read_bytes()
    assert one.config() == two.config()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nobjectiv: none", ["unknown option 'objectiv'", "did you mean objective", "c.yaml, line 2"]),
        ("- none", ["no mapping", "c.yaml"]),
        ("seed: 1\nepochs: [", ["cannot be read", "c.yaml", "line 2: expected"]),
        ("a: &a 1\nb: *a", ["cannot be read", "c.yaml", "line 2: an alias"]),
        ("seed: 1\nepochs: many", ["epochs cannot be used", "c.yaml, line 2", "many"]),
        ("student: 4", ["student cannot be used", "c.yaml, line 1"]),
        ("seed: 1\n\nbatch-size: 0", ["batch_size cannot be used", "c.yaml, line 3"]),
        ("epochs: 3\nepochs: -3", ["epochs cannot be used", "c.yaml, line 2"]),
        ("<<: {epochs: -3}", ["epochs cannot be used", "c.yaml"]),
        ("teachers: ''", ["nothing is named", "c.yaml: teachers"]),
    ],
)
def test_a_bad_configuration_is_refused_by_file_line_and_key(
    text: str, said: list[str], refused: Refused, store: FeatureStore, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    message = refused(2, "distill", "--cache", store.location, "--config", tmp_path / "c.yaml", "-o", tmp_path / "r")
    for words in said:
        assert words in message
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("code", "options", "said"),
    [
        (2, ["--student", "unett"], ["unknown student 'unett'", "did you mean unet"]),
        (2, ["--student", "unet:999"], ["unknown U-Net width '999'"]),
        (2, ["--objective", "multi"], ["unknown objective 'multi'", "did you mean multiscale"]),
        (2, ["--teachers", "sam:vit_b"], ["does not hold teacher 'sam:vit_b'", "dinov2:small"]),
        (2, ["--teachers", "dinov2:smal"], ["did you mean dinov2:small?"]),
        (2, ["--teachers", ""], ["--teachers", "nothing is named"]),
        (2, ["--epochs", "0"], ["--epochs", "greater than 0"]),
        (2, ["--seed", "-1"], ["--seed"]),
        (2, ["--lr", "0"], ["--learning-rate"]),
        (2, ["--device", "tpu"], ["unknown device 'tpu'"]),
        (2, ["--resume", "--overwrite"], ["exclude each other"]),
        (2, ["--config", "nowhere.yaml"], ["cannot be read", "nowhere.yaml"]),
        (1, ["--resume"], ["nothing to resume", "leave --resume away"]),
    ],
)
def test_an_option_that_cannot_be_used_is_named(
    code: int, options: list[str], said: list[str], refused: Refused, store: FeatureStore, light: list[str], tmp_path: Path
) -> None:
    message = refused(code, "distill", "--cache", store.location, *light, "-o", tmp_path / "run", *options)
    for words in said:
        assert words in message
    assert list(tmp_path.iterdir()) == []


def test_a_flag_is_blamed_itself_though_the_configuration_sets_the_same_option(
    refused: Refused, store: FeatureStore, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text("epochs: 3\nseed: 1\n")
    words = ["--cache", store.location, "--config", tmp_path / "c.yaml", "-o", tmp_path / "r", "--epochs", "0"]
    message = refused(2, "distill", *words)
    assert "--epochs cannot be used" in message
    assert "c.yaml" not in message


def test_the_store_must_be_given(refused: Refused) -> None:
    assert "--cache is missing" in refused(2, "distill")


@pytest.mark.parametrize(("place", "said"), [("nowhere.zarr", "no feature store here"), ("thesis", "not a feature store")])
def test_what_is_no_store_is_refused(place: str, said: str, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/a.tex").write_text("all of it")
    message = refused(4, "distill", "--cache", tmp_path / place, "-o", tmp_path / "run")
    assert said in message
    assert str(tmp_path / place) in message


def test_an_incomplete_store_is_refused_with_the_command_that_completes_it(
    refused: Refused, store: FeatureStore, tmp_path: Path
) -> None:
    shutil.copytree(str(store.location), tmp_path / "s.zarr")
    copy = FeatureStore.open(tmp_path / "s.zarr", writable=True)
    with copy.writing():
        copy.mark_pending(0)
    message = refused(4, "distill", "--cache", tmp_path / "s.zarr", "-o", tmp_path / "run")
    assert "incomplete" in message
    assert "polyp-difom extract" in message


def test_an_existing_run_is_refused_and_both_ways_on_are_named(
    train: Callable, refused: Refused, store: FeatureStore, light: list[str], tmp_path: Path
) -> None:
    assert train("-o", tmp_path / "run").exit_code == 0
    message = refused(1, "distill", "--cache", store.location, *light, "-o", tmp_path / "run", "-q")
    assert "--resume" in message
    assert "--overwrite" in message
    assert train("-o", tmp_path / "run", "--overwrite").exit_code == 0


def test_a_run_below_a_file_is_refused(refused: Refused, store: FeatureStore, light: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "cannot be made" in refused(1, "distill", "--cache", store.location, *light, "-o", tmp_path / "file/run")


def test_resume_needs_no_more_than_the_run_folder(
    cli: Callable, store: FeatureStore, light: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyp_difom.pipeline.progress import Logged

    said = Logged.say

    def stop(self: Logged, text: str) -> None:
        said(self, text)
        raise KeyboardInterrupt

    monkeypatch.setattr(Logged, "say", stop)
    stopped = cli("distill", "--cache", store.location, *light, "--seed", "3", "-o", tmp_path / "run")
    assert stopped.exit_code == 130
    monkeypatch.undo()
    result = cli("distill", "--resume", "-o", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "run/checkpoints/last.safetensors").is_file()


def test_a_preset_gives_way_to_the_configuration_and_both_to_flags(cli: Callable, store: FeatureStore, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("batch-size: 5\nepochs: 7\n")
    words = ["--preset", "control", "--config", tmp_path / "c.yaml", "--epochs", "1", "--student", "unet:4", "--device", "cpu"]
    result = cli("distill", "--cache", store.location, *words, "-o", tmp_path / "r")
    assert result.exit_code == 0, result.stderr
    saved = RunFolder(tmp_path / "r").config()
    wanted = {"objective": "none", "batch_size": 5, "epochs": 1, "learning_rate": 1e-3, "auto": None}
    assert {name: saved[name] for name in wanted} == wanted


def test_a_run_that_was_chosen_by_pilots_is_no_more_so_under_another_objective(
    cli: Callable, store: FeatureStore, light: list[str], tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text("objective: multiscale\nauto: 'auto: multiscale'\n")
    words = ["distill", "--cache", store.location, *light, "--epochs", "1", "--config", tmp_path / "c.yaml"]
    assert cli(*words, "-o", tmp_path / "same").exit_code == 0
    assert cli(*words, "--objective", "none", "-o", tmp_path / "other").exit_code == 0
    assert [RunFolder(tmp_path / name).config()["auto"] for name in ("same", "other")] == ["auto: multiscale", None]


def test_an_empty_preset_is_none_of_them(refused: Refused, store: FeatureStore) -> None:
    assert "unknown preset ''" in refused(2, "distill", "--cache", store.location, "--preset", "")


def test_an_unknown_preset_is_named(refused: Refused, store: FeatureStore) -> None:
    message = refused(2, "distill", "--cache", store.location, "--preset", "papper")
    assert "unknown preset 'papper'" in message
    assert "did you mean paper" in message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ema", "1"], "--ema"),
        (["--optimizer", "sgd"], "--optimizer"),
        (["--schedule", "step"], "--schedule"),
        (["--drop-teachers", "1"], "--drop-teachers"),
        (["--patience", "0"], "--patience"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_by_option(
    options: list[str], said: str, refused: Refused, store: FeatureStore
) -> None:
    assert said in refused(2, "distill", "--cache", store.location, *options)


def test_auto_tells_what_it_chose_and_goes_on_from_its_folder_alone(
    cli: Callable, store: FeatureStore, light: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyp_difom.pipeline import auto

    monkeypatch.setattr(auto, "candidates", lambda config, store: [auto.Candidate("multiscale", "multiscale", 1.0)])
    monkeypatch.setattr(auto, "LEAST_FRAMES", 1)  # the store has two validation frames
    scores = auto._Pilots._scores

    def stop(self: object, candidate: auto.Candidate, epochs: int) -> object:
        if candidate.label != "none":
            raise KeyboardInterrupt
        return scores(self, candidate, epochs)

    monkeypatch.setattr(auto._Pilots, "_scores", stop)
    words = ["distill", "--cache", store.location, *light, "--objective", "auto", "-o", tmp_path / "run"]
    assert cli(*words).exit_code == 130
    monkeypatch.setattr(auto._Pilots, "_scores", scores)
    result = cli("distill", "--resume", "-o", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)["auto"]
    assert said.startswith("auto: ")
    assert RunFolder(tmp_path / "run").config()["auto"] == said
