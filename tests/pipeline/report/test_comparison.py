"""Runs side by side: a control counts only where its recipe is the run's own."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from polyp_difom.cache.errors import RunError, UsageError
from polyp_difom.cli.main import app
from polyp_difom.pipeline.data.sources import Source
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.evaluation.evaluate import evaluate
from polyp_difom.pipeline.evaluation.record import EvaluationRecord
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.report.comparison import compare
from polyp_difom.pipeline.report.page import write_report
from polyp_difom.pipeline.runs import read_checkpoint, write_checkpoint


class Heard(Progress):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def runs(distilling: Callable[..., DistillConfig], frames: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("compared")
    made = {"taught": {}, "control": {"objective": "none"}, "longer": {"objective": "none", "epochs": 3}}
    for name, changes in made.items():
        distill(distilling(**{"epochs": 2, **changes}), folder / name)
        evaluate(folder / name, (Source(frames),), split="all", overlays=0, device="cpu")
    return {name: folder / name for name in made}


def test_a_taught_run_is_set_against_the_control_of_its_recipe(runs: dict[str, Path]) -> None:
    heard = Heard()
    taught, longer, control = compare([runs["taught"], runs["longer"], runs["control"]], progress=heard)
    (difference,) = taught.differences.values()
    assert difference.mean == pytest.approx(taught.summaries[0].mdice - control.summaries[0].mdice)
    assert not control.differences
    assert not longer.differences
    assert taught.gallery
    assert not heard.lines


def test_a_control_of_another_recipe_gives_no_verdict_but_says_what_differs(runs: dict[str, Path], tmp_path: Path) -> None:
    heard = Heard()
    reports = compare([runs["taught"], runs["longer"]], progress=heard)
    assert not reports[0].differences
    assert "epochs 3 instead of 2" in heard.lines[0]
    write_report(tmp_path / "page.html", reports, "title")
    assert "no control to compare with" in (tmp_path / "page.html").read_text()


def test_a_taught_run_is_set_against_its_shuffled_form_of_the_same_seed_alone(
    runs: dict[str, Path], distilling: Callable[..., DistillConfig], frames: Path, tmp_path: Path
) -> None:
    for seed in (0, 1):
        distill(distilling(epochs=2, objective="shuffled", seed=seed), tmp_path / f"s{seed}")
        evaluate(tmp_path / f"s{seed}", (Source(frames),), split="all", overlays=0, device="cpu")
    taught, shuffled, _ = compare([runs["taught"], tmp_path / "s0", runs["control"]])
    (difference,) = taught.over_shuffled.values()
    assert difference.mean == pytest.approx(taught.summaries[0].mdice - shuffled.summaries[0].mdice)
    assert taught.shuffled == "shuffled"
    assert taught.differences
    assert not shuffled.over_shuffled
    alone, _ = compare([runs["taught"], tmp_path / "s1"])
    assert not alone.over_shuffled


def test_a_run_of_paper_is_set_against_a_control_with_latents_alone(
    distilling: Callable[..., DistillConfig], frames: Path, tmp_path: Path
) -> None:
    made = {"paper": {"objective": "paper"}, "plain": {"objective": "none"}, "control": {"objective": "none", "latents": True}}
    for name, changes in made.items():
        distill(distilling(epochs=1, affine=False, **changes), tmp_path / name)
        evaluate(tmp_path / name, (Source(frames),), split="all", overlays=0, device="cpu")
    heard = Heard()
    paper, _ = compare([tmp_path / "paper", tmp_path / "plain"], progress=heard)
    assert not paper.differences
    assert heard.lines[0].endswith("the closest has latents False instead of True")
    paper, plain, control = compare([tmp_path / name for name in made])
    assert paper.control == "control"
    assert paper.differences
    assert (paper.parameters, paper.macs) == (control.parameters, control.macs)
    assert plain.parameters < control.parameters


def test_runs_say_where_they_come_from_and_what_they_cost(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["taught"], tmp_path / "run")
    rows = [{"runtime": "onnx", "batch": 1, "median_ms": 2.0}, {"runtime": "eager", "batch": 1, "median_ms": 7.5}]
    measured = {"device": "a CPU", "threads": 2, "size": 64, "rows": rows}
    (tmp_path / "run/bench.json").write_text(json.dumps({**measured, "size": 32}))
    assert compare([tmp_path / "run"])[0].timing is None  # of another side than the network's own
    (tmp_path / "run/bench.json").write_text(json.dumps(measured))
    (report,) = compare([tmp_path / "run"])
    assert report.macs is not None
    assert report.macs > 1e6
    assert report.timing is not None
    assert (report.timing.milliseconds, report.timing.device) == (7.5, "a CPU, 2 threads")
    assert "licence Apache-2.0" in report.facts["teachers"]
    assert report.facts["trained on"].startswith("synthetic (")
    assert "auto, seed 0" in report.facts["split"]
    assert "CPU cores" in report.facts["hardware"] or "NVIDIA" in report.facts["hardware"]
    assert report.facts["store signature"] == read_checkpoint(tmp_path / "run/checkpoints/best.safetensors")[1]["signature"]
    assert report.curve


def test_a_damaged_latency_file_names_itself(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["taught"], tmp_path / "run")
    (tmp_path / "run/bench.json").write_text('{"rows": [{}]}')
    with pytest.raises(RunError, match="latency") as caught:
        compare([tmp_path / "run"])
    assert "bench.json" in str(caught.value)


@pytest.fixture
def masks(frames: Path, tmp_path: Path) -> Path:
    """Record of a folder of masks, each the left half of its frame."""
    folder = tmp_path / "maps"
    folder.mkdir()
    for path in sorted((frames / "masks").iterdir()):
        half = np.zeros((64, 64), np.uint8)
        half[:, :32] = 255
        Image.fromarray(half).save(folder / f"{path.stem}.png")
    evaluate(folder, (Source(frames),), split="all", overlays=0, out=tmp_path / "record")
    return tmp_path / "record"


def test_a_folder_of_masks_stands_beside_runs_with_its_training_unknown(runs: dict[str, Path], masks: Path) -> None:
    heard = Heard()
    other, taught, control = compare([masks, runs["taught"], runs["control"]], progress=heard)
    assert (other.name, other.kind, other.objective, other.parameters) == ("record", "masks", None, None)
    assert other.facts["teachers"] == other.facts["store signature"] == other.facts["seed"] == "unknown"
    assert not other.differences
    assert len(other.gallery) == 6
    assert "control" not in other.gallery[0].caption
    assert "; control 0." in taught.gallery[0].caption
    assert not control.gallery
    assert not heard.lines


def test_weights_that_changed_since_the_evaluation_are_not_drawn(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["taught"], tmp_path / "run")
    best = tmp_path / "run/checkpoints/best.safetensors"
    tensors, header = read_checkpoint(best)
    write_checkpoint(best, tensors, {**header, "epoch": 99})
    heard = Heard()
    (report,) = compare([tmp_path / "run"], progress=heard)
    assert not report.gallery
    assert "have changed since" in heard.lines[0]


def test_maps_that_are_gone_leave_the_figures_without_pictures(masks: Path) -> None:
    (expected,) = compare([masks])
    shutil.rmtree(masks.parent / "maps")
    heard = Heard()
    (report,) = compare([masks], progress=heard)
    assert report.summaries == expected.summaries
    assert not report.gallery
    assert "no pictures of record" in heard.lines[0]


def test_a_folder_given_twice_is_refused(runs: dict[str, Path]) -> None:
    with pytest.raises(RunError, match="given twice"):
        compare([runs["taught"], runs["taught"] / "."])


def test_two_runs_of_one_name_are_told_apart_by_their_paths(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["taught"], tmp_path / "taught")
    names = [report.name for report in compare([runs["taught"], tmp_path / "taught"])]
    assert names == [str(runs["taught"]), str(tmp_path / "taught")]


def test_figures_without_leaks_reach_the_report(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["taught"], tmp_path / "run")
    record = EvaluationRecord.open(tmp_path / "run")
    ((label, summary),) = record.summaries("per-image").items()
    record.write_without_leaks("all", summary, [summary.dice_by_size[0]])
    (report,) = compare([tmp_path / "run"])
    assert report.without_leaks == {label: summary}


def test_an_unknown_protocol_is_a_usage_error(runs: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="unknown protocol"):
        compare([runs["taught"]], protocol="per-frame")


def test_the_command_writes_a_page_and_one_json_object(runs: dict[str, Path], tmp_path: Path) -> None:
    words = ["report", str(runs["taught"]), str(runs["control"]), "-o", str(tmp_path / "page.html")]
    result = CliRunner().invoke(app, [*words, "--json"])
    held = json.loads(result.stdout)
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert set(held) == {"page", "sets", "without_leaks", "gains_over_control", "gains_over_shuffled", "recipes"}
    assert len(held["gains_over_control"]["taught"]) == 1
    plain = CliRunner().invoke(app, words)
    assert "is the control" in plain.stdout
    assert plain.exit_code == 0


def test_a_run_that_was_not_evaluated_names_the_command(distilling: Callable[..., DistillConfig], tmp_path: Path) -> None:
    distill(distilling(epochs=1), tmp_path / "run")
    with pytest.raises(RunError, match="not evaluated") as caught:
        compare([tmp_path / "run"])
    assert f"polyp-difom evaluate {tmp_path / 'run'}" in str(caught.value)


def test_a_report_of_frames_that_are_gone_has_no_pictures_and_says_why(
    runs: dict[str, Path], frames: Path, tmp_path: Path
) -> None:
    shutil.copytree(frames, tmp_path / "moved" / frames.name)
    shutil.copytree(runs["taught"], tmp_path / "run")
    shutil.rmtree(tmp_path / "run/evaluation")
    evaluate(tmp_path / "run", (Source(tmp_path / "moved" / frames.name),), split="all", overlays=0, device="cpu")
    shutil.rmtree(tmp_path / "moved")
    heard = Heard()
    (report,) = compare([tmp_path / "run"], progress=heard)
    assert report.summaries
    assert report.gallery == []
    assert "gone or changed" in heard.lines[0]


def test_a_strangers_record_cannot_put_other_pictures_of_this_machine_on_a_page(
    runs: dict[str, Path], tmp_path: Path, repaint: Callable[[Path, int], None]
) -> None:
    run = Path(shutil.copytree(runs["taught"], tmp_path / "run"))
    table = run / "evaluation/frames.csv"
    row = next(csv.DictReader(table.open(newline="")))
    private = Path(shutil.copy(row["image"], tmp_path / "private.jpg"))
    repaint(private, 1)
    table.write_text(table.read_text().replace(row["image"], str(private)))
    heard = Heard()
    (report,) = compare([run], progress=heard)
    assert any(row["id"] in line and "gone or changed" in line for line in heard.lines)
    assert not any(item.caption.startswith(row["id"]) for item in report.gallery)


def test_a_record_with_a_link_that_leads_out_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs["taught"], tmp_path / "run"))
    (run / "evaluation/notes").symlink_to("/etc")
    with pytest.raises(RunError, match="leads out"):
        compare([run])
