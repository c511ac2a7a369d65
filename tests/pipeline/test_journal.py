"""What a training leaves to look at: curves after every epoch, and TensorBoard events with each epoch once."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from polyp_difom.cache.errors import MissingDependencyError, RunError
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.journal import TensorBoard, draw_curves
from polyp_difom.pipeline.runs import RunFolder

SVG = "{http://www.w3.org/2000/svg}"


class Stopped(Exception):
    """Instead of a kill."""


def stop_after(epochs: int) -> Callable[[int, float], None]:
    def watch(epoch: int, dice: float) -> None:
        if epoch == epochs:
            raise Stopped

    return watch


def drawn(run: Path) -> list[str]:
    """All that the picture says to a screen reader."""
    return [found.text or "" for found in ET.parse(run / "plots/curves.svg").iter(f"{SVG}desc")]  # noqa: S314  (our own file)


def test_the_picture_is_drawn_after_every_epoch_and_goes_on_after_a_stop(
    distilling: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        distill(distilling(), run, watch=stop_after(1))
    first = drawn(run)
    finished = distill(distilling(), run, resume=True)
    history = finished.history()
    assert f"Dice {history[0]['val_dice']:.3f}." in first[0]
    assert f"Dice {history[-1]['val_dice']:.3f}." in drawn(run)[0]
    assert len(drawn(run)) == 8  # Dice, losses; cosine, explained and target's variance of whole maps and of bands
    before = finished.curves.read_bytes()
    draw_curves(finished)
    assert finished.curves.read_bytes() == before


def test_a_control_has_no_agreement_to_draw(distilling: Callable[..., DistillConfig], tmp_path: Path) -> None:
    distill(distilling(objective="none", epochs=1), tmp_path / "run")
    assert [text.split()[2] for text in drawn(tmp_path / "run")] == ["Dice", "segmentation"]


def test_whatever_a_run_writes_may_be_overwritten(distilling: Callable[..., DistillConfig], tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    distill(distilling(objective="none", epochs=1), run.path)
    run.events.mkdir()
    (run.events / "events.out.tfevents.1").touch()
    for name in ("agreement.json", "report.html"):
        (run.path / name).touch()
    distill(distilling(objective="none", epochs=1), run.path, overwrite=True)
    assert not run.events.exists()
    assert not run.agreement.exists()
    (run.path / "mine.txt").touch()
    with pytest.raises(RunError, match=r"mine\.txt"):
        distill(distilling(objective="none", epochs=1), run.path, overwrite=True)


@pytest.fixture
def events() -> Callable[[Path], dict[str, list[tuple[int, float]]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read(run: Path) -> dict[str, list[tuple[int, float]]]:
        held = accumulator.EventAccumulator(str(run / "tensorboard"))
        held.Reload()
        return {tag: [(event.step, event.value) for event in held.Scalars(tag)] for tag in held.Tags()["scalars"]}

    return read


def expected(run: Path) -> dict[str, list[tuple[int, float]]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = records[0].keys() - {"epoch"}
    return {name: [(record["epoch"], pytest.approx(record[name], rel=1e-6)) for record in records] for name in names}


def test_events_hold_every_figure_of_every_epoch_once_however_often_a_run_is_stopped(
    events: Callable[[Path], dict[str, list[tuple[int, float]]]],
    distilling: Callable[..., DistillConfig],
    tmp_path: Path,
) -> None:
    run, config = tmp_path / "run", distilling(epochs=4)
    with pytest.raises(Stopped):  # the first epoch unwatched
        distill(config, run, watch=stop_after(1))
    with TensorBoard(run) as log:

        def stopped_late(epoch: int, dice: float) -> None:
            log(epoch, dice)
            stop_after(3)(epoch, dice)

        with pytest.raises(Stopped):
            distill(config, run, resume=True, watch=stopped_late)
    assert events(run) == expected(run)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(
        "".join([*lines, lines[-1].replace('"epoch": 3', '"epoch": 4')])
    )  # killed before it was saved
    with TensorBoard(run) as watch:
        distill(config, run, resume=True, watch=watch)
    held = events(run)
    assert [step for step, _ in held["val_dice"]] == [1, 2, 3, 4]
    assert held == expected(run)
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_events_change_nothing_in_the_training(
    events: Callable[[Path], object], distilling: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    distill(distilling(epochs=1), tmp_path / "plain")
    with TensorBoard(tmp_path / "watched") as watch:
        distill(distilling(epochs=1), tmp_path / "watched", watch=watch)
    for name in ("config.yaml", "checkpoints/last.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "watched" / name).read_bytes()


def test_what_lies_beside_the_events_is_left_alone(
    events: Callable[[Path], object], distilling: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    run = distill(distilling(objective="none", epochs=1), tmp_path / "run").path
    (run / "tensorboard").mkdir()
    (run / "tensorboard/notes.txt").touch()
    with TensorBoard(run):
        pass
    assert (run / "tensorboard/notes.txt").exists()
    assert len(list((run / "tensorboard").iterdir())) == 2


def test_a_missing_package_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"polyp-difom\[tensorboard\]"):
        TensorBoard(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_taken_by_something_else_is_named(distilling: Callable[..., DistillConfig], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = distill(distilling(objective="none", epochs=1), tmp_path / "run")
    run.events.touch()
    with pytest.raises(RunError, match="tensorboard"), TensorBoard(run.path):
        pass
    run.curves.unlink()
    run.curves.parent.rmdir()
    run.curves.parent.touch()
    with pytest.raises(RunError, match="plots"):
        draw_curves(run)
