"""`export` from the user's side."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from polyp_difom.pipeline.models import hub
from polyp_difom.pipeline.models.loading import kind_of


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "taught"))


def test_an_export_names_its_file_its_agreement_and_the_next_command(cli: Callable, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.torchscript"
    result = cli("export", run, "--to", "torchscript", "-o", out)
    assert result.exit_code == 0, result.stderr
    assert f"{out}: 0." in result.stdout
    assert "probabilities differ by at most" in result.stdout
    assert f"next: polyp-difom predict {out} PICTURES -o OUT --trust" in result.stdout
    assert "2 val frames of the run's store" in result.stderr
    assert kind_of(out) == "torchscript"


def test_no_command_opens_torchscript(cli: Callable, refused: Callable, run: Path, frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.torchscript"
    assert cli("export", run, "--to", "torchscript", "-o", out, "-q").exit_code == 0
    assert "may write files" in refused(1, "evaluate", out, "--data", frames, "-o", tmp_path / "figures")


def test_json_is_one_object_and_quiet_is_quiet(cli: Callable, run: Path, frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "shared"
    result = cli("export", run, "--to", "hub-folder", "-o", out, "-d", frames, "--json", "-q")
    said = json.loads(result.stdout)
    assert (said["path"], said["format"], said["precision"]) == (str(out), "hub-folder", "float32")
    assert said["parity"]["max_difference"] == 0
    assert said["parity"]["frames"] == "2 val frames of synthetic"
    assert said["files"] == {str(path): path.stat().st_size for path in out.iterdir()}
    assert result.stderr == ""


def test_int8_without_a_store_asks_for_data(refused: Callable, run: Path, tmp_path: Path, frames: Path, cli: Callable) -> None:
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "shared"
    assert cli("export", run, "--to", "hub-folder", "-o", folder, "-q").exit_code == 0
    out = tmp_path / "e.onnx"
    assert "--data DIR" in refused(2, "export", folder, "--to", "onnx", "--precision", "int8", "-o", out)
    result = cli("export", folder, "--to", "onnx", "--precision", "int8", "-o", out, "-d", frames)
    assert result.exit_code == 0, result.stderr
    assert "exported" in result.stdout


@pytest.mark.parametrize(
    ("code", "words", "said"),
    [
        (2, ["--to", "onxx"], "did you mean onnx"),
        (2, ["--to", "torchscript", "--precision", "float16"], "not written in float16"),
        (2, ["--to", "onnx", "--push", "org/name"], "only a hub folder goes to the hub"),
        (2, ["--to", "hub-folder", "--push", "name"], "ORG/NAME"),
        (2, ["--to", "hub-folder", "--public"], "--push"),
        (3, ["--to", "torchscript", "--data", "nowhere"], "nowhere"),
    ],
)
def test_what_does_not_go_together_is_refused(code: int, words: list[str], said: str, refused: Callable, run: Path) -> None:
    assert said in refused(code, "export", run, *words)


def test_an_existing_export_stays_until_overwrite(refused: Callable, cli: Callable, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.torchscript"
    words = ["export", run, "--to", "torchscript", "-o", out, "-q"]
    assert cli(*words).exit_code == 0
    assert "--overwrite" in refused(1, *words)
    assert cli(*words, "--overwrite").exit_code == 0


@pytest.mark.parametrize(("words", "private"), [([], True), (["--public"], False)])
def test_a_push_is_private_unless_told(
    words: list[str], private: bool, cli: Callable, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = []
    monkeypatch.setattr(hub, "push_to_hub", lambda *args, **options: pushed.append((args, options)) or "https://hub/org/name")
    result = cli("export", run, "--to", "hub-folder", "-o", tmp_path / "s", "-q", "--push", "org/name", *words)
    assert result.exit_code == 0, result.stderr
    assert pushed == [((tmp_path / "s", "org/name"), {"private": private})]
    assert "https://hub/org/name" in result.stdout


def test_an_exported_file_is_evaluated_like_its_run(cli: Callable, run: Path, frames: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "e.onnx"
    assert cli("export", run, "--to", "onnx", "--embed-preprocessing", "-o", out, "-q").exit_code == 0
    figures = []
    for number, model in enumerate((run, out)):
        words = ["--data", frames, "--split", "test", "--overlays", "0", "--device", "cpu", "--json", "-q"]
        place = [] if model == run else ["-o", tmp_path / f"figures{number}"]
        result = cli("evaluate", model, *words, *place)
        assert result.exit_code == 0, result.stderr
        figures.append(json.loads(result.stdout)["sets"][0]["mdice"])
    assert figures[0] == pytest.approx(figures[1], abs=1e-4)
