"""Records: figures of one target in one folder, read back as written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from polyp_difom.cache.errors import RunError
from polyp_difom.pipeline.data.sources import Source
from polyp_difom.pipeline.evaluation.evaluate import Evaluation, evaluate
from polyp_difom.pipeline.evaluation.record import EvaluationRecord


@pytest.fixture
def maps(frames: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(frames / "masks", tmp_path / "theirs"))


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def scored(target: Path, frames: Path, **options: Any) -> Evaluation:
    chosen: dict[str, Any] = {"split": "all", "overlays": 0, "measures": "overlap", **options}
    return evaluate(target, (Source(frames),), device="cpu", **chosen)


def test_a_record_gives_back_what_was_scored(run: Path, frames: Path) -> None:
    result = scored(run, frames, measures="all")
    record = EvaluationRecord.open(run)
    assert record.scores("per-image") == {"synthetic (all)": result.scores}
    assert record.summaries("per-image") == {"synthetic (all)": result.summaries[0]}
    assert record.without_leaks("per-image") == {}
    assert record.frames()["synthetic/0003"][:2] == (frames / "images/0003.jpg", frames / "masks/0003.png")
    about = record.about()
    assert (about["kind"], about["name"], about["header"]["student"]) == ("run", "run", "unet:4")
    assert about["parameters"] > 1000
    assert record.target("cpu").path == run


def test_figures_without_leaks_are_kept_apart(run: Path, frames: Path) -> None:
    result = scored(run, frames, exclude_leaks=True)
    record = EvaluationRecord.open(run)
    assert list(record.scores("per-image")) == list(record.summaries("per-image")) == ["synthetic (all)"]
    assert record.summaries("per-image")["synthetic (all)"].images == 24
    assert record.without_leaks("per-image") == {"synthetic (all)": result.without_leaks[0]}


def test_a_folder_of_maps_is_opened_again_from_its_record(maps: Path, frames: Path, tmp_path: Path) -> None:
    scored(maps, frames, out=tmp_path / "ev")
    record = EvaluationRecord.open(tmp_path / "ev")
    target = record.target()
    assert (target.kind, target.path, target.record) == ("masks", maps, tmp_path / "ev")
    assert record.name == "ev"


def test_a_moved_run_is_read_and_scored_where_it_is(run: Path, frames: Path, tmp_path: Path) -> None:
    scored(run, frames)
    shutil.move(run, tmp_path / "moved")
    record = EvaluationRecord.open(tmp_path / "moved")
    assert (record.name, record.target("cpu").path) == ("moved", tmp_path / "moved")
    scored(tmp_path / "moved", frames, split="test")
    assert set(record.scores("per-image")) == {"synthetic (all)", "synthetic (test)"}


def test_figures_of_two_targets_never_share_a_folder(run: Path, maps: Path, frames: Path, tmp_path: Path) -> None:
    scored(maps, frames, out=tmp_path / "ev")
    before = (tmp_path / "ev/results.csv").read_bytes()
    with pytest.raises(RunError, match="of another target") as caught:
        scored(run / "checkpoints/best.safetensors", frames, out=tmp_path / "ev")
    assert "another -o" in str(caught.value)
    assert (tmp_path / "ev/results.csv").read_bytes() == before
    scored(maps, frames, out=tmp_path / "ev", split="all", protocol="pranet")


def test_figures_are_not_written_among_foreign_files(maps: Path, frames: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/a.tex").write_text("all of it")
    for place in (tmp_path / "thesis", tmp_path / "thesis/a.tex"):
        with pytest.raises(RunError, match="no evaluation wrote"):
            scored(maps, frames, out=place)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["a.tex"]


def test_a_run_can_be_scored_into_another_folder(run: Path, frames: Path, tmp_path: Path) -> None:
    scored(run, frames, out=tmp_path / "ev")
    assert not (run / "evaluation").exists()
    assert EvaluationRecord.open(tmp_path / "ev").about()["kind"] == "run"


def test_an_unscored_folder_names_the_command(run: Path, frames: Path) -> None:
    with pytest.raises(RunError, match="not evaluated") as caught:
        EvaluationRecord.open(run)
    assert f"polyp-difom evaluate {run}" in str(caught.value)
    scored(run, frames)
    with pytest.raises(RunError, match="not evaluated under protocol 'pranet'") as caught:
        EvaluationRecord.open(run).scores("pranet")
    assert f"polyp-difom evaluate {run} --data DIR --protocol pranet" in str(caught.value)


def test_a_damaged_record_is_refused_by_name(run: Path, frames: Path) -> None:
    scored(run, frames)
    (run / "evaluation/target.json").write_text("{")
    with pytest.raises(RunError, match="damaged") as caught:
        scored(run, frames)
    assert str(run / "evaluation/target.json") in str(caught.value)


def test_results_are_made_anew_from_the_figures(run: Path, frames: Path) -> None:
    scored(run, frames)
    wanted = (run / "results.csv").read_bytes()
    (run / "results.csv").write_text("edited by hand\n")
    EvaluationRecord.open(run).write_results()
    assert (run / "results.csv").read_bytes() == wanted
    assert json.loads((run / "results.json").read_text())["target"]["name"] == "run"


@pytest.mark.parametrize("text", ["{}", "[1]", '{"kind": "run"}'])
def test_a_damaged_description_of_the_target_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/target.json").write_text(text)
    with pytest.raises(RunError, match="damaged"):
        EvaluationRecord.open(tmp_path).about()
