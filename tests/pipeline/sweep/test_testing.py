"""A whole sweep is evaluated: every trial, frames decoded once, nothing twice, and on past a trial that fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from polyp_difom.cache.errors import DataError, RunError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.cli.main import app
from polyp_difom.pipeline.data.sources import Source
from polyp_difom.pipeline.evaluation import frames as module
from polyp_difom.pipeline.evaluation.evaluate import evaluate
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.sweep.folder import SweepConfig, SweepFolder
from polyp_difom.pipeline.sweep.run import resolved
from polyp_difom.pipeline.sweep.space import parse_grid
from polyp_difom.pipeline.sweep.testing import Outcome, evaluate_trials
from polyp_difom.pipeline.sweep.worker import work

OPTIONS = ("--split", "all", "--measures", "overlap", "--overlays", "0", "--device", "cpu")
GRID = "student=unet:4 batch_size=4 epochs=1 precision=float32 objective=none,multiscale seed=0..1"


@pytest.fixture(scope="module")
def trained(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four finished trials."""
    folder = SweepFolder(tmp_path_factory.mktemp("sweep") / "s")
    asked = {"cache": str(store.location), "factors": parse_grid(GRID), "device": "cpu", "jobs": 1, "threads": 1}
    folder.create(config := resolved(SweepConfig.model_validate(asked), store))
    work(folder, config)
    return folder.path


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> SweepFolder:
    return SweepFolder(Path(shutil.copytree(trained, tmp_path / "s")))


class Heard(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def evaluated(folder: SweepFolder, frames: Path, **how: object) -> list[Outcome]:
    chosen = {"split": "all", "measures": "overlap", "overlays": 1, "device": "cpu", **how}
    return evaluate_trials(folder, (Source(frames),), **chosen)  # type: ignore[arg-type]


def counting(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Pictures that are decoded from now on."""
    decoded: list[Path] = []

    def read(path: Path, original: Callable[[Path], object] = module.read_image) -> object:
        decoded.append(path)
        return original(path)

    monkeypatch.setattr(module, "read_image", read)
    return decoded


def written(folder: SweepFolder) -> dict[str, bytes]:
    """All that evaluations left, by path."""
    return {
        str(path.relative_to(folder.path)): path.read_bytes() for path in folder.path.rglob("*")
        if path.is_file() and {"evaluation", "overlays", "results.csv", "results.json", "results.md"} & set(path.parts)
    }  # fmt: skip


def test_every_trial_gets_the_files_of_a_plain_evaluation_from_frames_that_are_decoded_once(
    folder: SweepFolder, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = SweepFolder(Path(shutil.copytree(folder.path, tmp_path / "plain" / "s")))
    decoded = counting(monkeypatch)
    heard = Heard()
    outcomes = evaluated(folder, frames, progress=heard)
    assert [outcome.row.name for outcome in outcomes] == [
        "000-none-s0", "001-none-s1", "002-multiscale-s0", "003-multiscale-s1",
    ]  # fmt: skip
    assert len(decoded) == 24
    assert sum("split" in line for line in heard.lines) == 1  # what all trials share is said once
    for run in sorted((plain.path / "runs").iterdir()):
        evaluate(run, (Source(frames),), split="all", measures="overlap", overlays=1, device="cpu")
    ours, theirs = written(folder), written(plain)
    assert ours.keys() == theirs.keys()
    named = ("target.json", "results.json", "results.md")  # hold the folder's own path
    assert all(ours[name] == theirs[name] for name in ours if not name.endswith(named))


def test_what_was_scored_alike_is_kept_and_anything_else_is_scored_again(folder: SweepFolder, frames: Path) -> None:
    def scored(**how: object) -> list[bool]:
        return [outcome.evaluation is not None and not outcome.evaluation.kept for outcome in evaluated(folder, frames, **how)]

    assert scored() == [True] * 4
    before = written(folder)
    first = evaluated(folder, frames)
    assert [outcome.evaluation.kept for outcome in first if outcome.evaluation] == [True] * 4
    assert first[0].evaluation is not None
    assert first[0].evaluation.summaries[0].images == 24
    assert first[0].evaluation.seen == {"train": 20, "val": 2}
    assert len(first[0].evaluation.overlays) == 1
    assert written(folder) == before
    assert scored(overwrite=True) == [True] * 4
    assert scored(overlays=0) == [True] * 4
    assert scored(overlays=0, protocol="pranet") == [True] * 4
    (folder.path / "runs/001-none-s1/evaluation/per-image/synthetic-all.csv").unlink()
    (folder.path / "runs/002-multiscale-s0/evaluation/per-image/synthetic-all.json").unlink()
    other = folder.path / "runs/003-multiscale-s1/checkpoints"
    shutil.copyfile(other / "last.safetensors", other / "best.safetensors")
    shutil.copyfile(folder.path / "runs/000-none-s0/checkpoints/best.safetensors", other / "best.safetensors")
    assert scored(overlays=0) == [False, True, True, True]


def test_other_frames_under_the_same_names_are_scored_again(folder: SweepFolder, copied_frames: Path, repaint: object) -> None:
    evaluated(folder, copied_frames)
    repaint(next((copied_frames / "images").iterdir()), 3)  # type: ignore[operator]
    assert [outcome.evaluation.kept for outcome in evaluated(folder, copied_frames) if outcome.evaluation] == [False] * 4


def test_stopped_at_any_trial_the_same_command_goes_on_with_it(
    folder: SweepFolder, frames: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyp_difom.pipeline.evaluation import evaluate as scoring

    drawn = []

    def stops(*args: object) -> list[Path]:
        drawn.append(args)
        if len(drawn) == 2:  # figures are written, pictures are not
            raise KeyboardInterrupt
        return []

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "_draw", stops)
        with pytest.raises(KeyboardInterrupt):
            evaluated(folder, frames)
    assert [outcome.evaluation.kept for outcome in evaluated(folder, frames) if outcome.evaluation] == [
        True,
        False,
        False,
        False,
    ]


def test_a_trial_that_cannot_be_opened_is_listed_and_the_others_go_on(folder: SweepFolder, frames: Path) -> None:
    (folder.path / "runs/000-none-s0/checkpoints/best.safetensors").write_bytes(b"no checkpoint")
    outcomes = evaluated(folder, frames)
    assert [outcome.evaluation is None for outcome in outcomes] == [True, False, False, False]
    assert "safetensors" in str(outcomes[0].error)


def test_what_is_wrong_for_every_trial_stops_the_command(
    folder: SweepFolder, copied_frames: Path, frames: Path, tmp_path: Path
) -> None:
    next((copied_frames / "images").iterdir()).write_bytes(b"no picture")
    with pytest.raises(DataError):
        evaluated(folder, copied_frames)
    with pytest.raises(UsageError):
        evaluated(folder, frames, protocol="pranett")
    with pytest.raises(DataError):
        evaluated(folder, tmp_path / "nowhere")


def test_a_sweep_without_a_finished_trial_is_refused(folder: SweepFolder, frames: Path) -> None:
    shutil.rmtree(folder.path / "trials")
    with pytest.raises(RunError, match="no trial has finished"):
        evaluated(folder, frames)


def test_frames_that_do_not_fit_into_memory_are_decoded_again(
    folder: SweepFolder, frames: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = counting(monkeypatch)
    monkeypatch.setattr(module, "free_memory", lambda device: 64 * 64 * 4 * 2 * 10)
    evaluated(folder, frames, overlays=0)
    assert len(decoded) == 10 + 4 * 14


def cli(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_sweep_is_evaluated_reported_and_told_as_one_object(folder: SweepFolder, frames: Path) -> None:
    for option in ("--against", "-o"):
        refused = cli("evaluate", folder.path, "-d", frames, option, folder.path / "runs" / "000-none-s0")
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert option in refused.stderr
    refused = cli("evaluate", folder.path / "runs" / "000-none-s0", "-d", frames, "--overwrite")
    assert (refused.exit_code, "a sweep folder" in refused.stderr) == (2, True)
    assert not list(folder.path.glob("runs/*/evaluation"))

    result = cli("evaluate", folder.path, "-d", frames, *OPTIONS)
    assert result.exit_code == 0, result.stderr
    for words in ("mean ± sd", "multiscale − none", "synthetic (all)", "choice of images"):
        assert words in result.stdout
    assert "warning: trials have seen up to 22 of the frames of synthetic (all)" in result.stderr
    assert all((run / "results.csv").is_file() for run in (folder.path / "runs").iterdir())

    said = json.loads(cli("evaluate", folder.path, "-d", frames, *OPTIONS, "--json").stdout)
    assert [trial["scored"] for trial in said["trials"]] == [False] * 4
    assert {recipe["label"]: recipe["sets"]["synthetic (all)"]["seeds"] for recipe in said["recipes"]} == {
        "none": 2, "multiscale": 2,
    }  # fmt: skip
    (gain,) = said["gains"]
    by_name = {trial["name"]: trial["sets"][0]["mdice"] for trial in said["trials"]}
    wanted = [by_name[f"00{2 + seed}-multiscale-s{seed}"] - by_name[f"00{seed}-none-s{seed}"] for seed in (0, 1)]
    assert [gain["by_seed"]["0"], gain["by_seed"]["1"]] == pytest.approx(wanted)
    assert gain["sets"]["synthetic (all)"]["mean"] == pytest.approx(sum(wanted) / 2)

    assert cli("sweep", "report", folder.path).exit_code == 0
    assert "4 of 4 finished trials are tested" in (folder.path / "report.html").read_text()


def test_a_failed_trial_is_told_and_the_exit_code_is_1(folder: SweepFolder, frames: Path) -> None:
    (folder.path / "runs/001-none-s1/checkpoints/best.safetensors").unlink()
    result = cli("evaluate", folder.path, "-d", frames, *OPTIONS)
    assert result.exit_code == 1
    assert "1 of 4 trials could not be evaluated" in result.stderr
    assert "001-none-s1 failed: the run's best checkpoint is missing" in result.stdout
    assert "multiscale − none" in result.stdout
