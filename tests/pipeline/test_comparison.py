"""Runs side by side: a control counts only where its recipe is the run's own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from polyp_difom.cache.errors import RunError
from polyp_difom.pipeline.comparison import compare, provenance
from polyp_difom.pipeline.data.sources import Source
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.evaluate import evaluate
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.report import write_report


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
    write_report(tmp_path / "page.html", reports, "title", provenance(runs["taught"]))
    assert "no control to compare with" in (tmp_path / "page.html").read_text()


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
    assert "is gone" in heard.lines[0]
