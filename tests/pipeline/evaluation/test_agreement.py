"""Agreement of trained students with the teachers of a store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from polyp_difom.cache.errors import CacheError, RunError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.cli.main import app
from polyp_difom.pipeline.data.sources import Source
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.evaluation.agreement import agree, mean, read_agreement
from polyp_difom.pipeline.evaluation.evaluate import evaluate
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.plan import ExtractConfig
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.report.comparison import compare
from polyp_difom.pipeline.report.page import write_report
from polyp_difom.pipeline.runs import read_checkpoint, write_checkpoint

PLACES = {("s8", "encoder8"), ("s8", "decoder8"), ("s16", "bottleneck")}


@pytest.fixture(scope="module")
def pair(
    finished_run: Path, distilling: Callable[..., DistillConfig], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A taught run and its control, both at the end of their training; copy them before you write there."""
    folder = tmp_path_factory.mktemp("agreeing")
    shutil.copytree(finished_run, folder / "taught")
    distill(distilling(objective="none", epochs=25, learning_rate=1e-2), folder / "control")
    for name in ("taught", "control"):  # of two validation frames, the best epoch may be the first
        shutil.copy(folder / name / "checkpoints/last.safetensors", folder / name / "checkpoints/best.safetensors")
    return {name: folder / name for name in ("taught", "control")}


@pytest.fixture
def taught(pair: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(pair["taught"], tmp_path / "taught"))


def test_a_taught_run_agrees_more_than_its_control(pair: dict[str, Path], tmp_path: Path) -> None:
    found = {name: agree(shutil.copytree(path, tmp_path / name), device="cpu") for name, path in pair.items()}
    rows = found["taught"].rows
    assert {(row.scale, row.tap) for row in rows} == PLACES
    assert [row.band for row in rows] == ["whole", "low", "high"] * len(PLACES)
    assert (found["taught"].frames, found["taught"].probe_frames) == (2, 20)
    shared = {row.place for row in rows}
    ours, theirs = (mean(found[name].rows, shared) for name in ("taught", "control"))
    assert ours["cka"] > theirs["cka"] + 0.05
    assert ours["explained"] > theirs["explained"] + 0.05
    assert ours["cosine"] > theirs["cosine"] + 0.05
    assert read_agreement(tmp_path / "taught/agreement.json") == found["taught"]


def test_the_teachers_own_maps_would_agree_wholly(taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path from store to figures: a student whose taps are the teacher's maps."""
    from polyp_difom.pipeline.evaluation import agreement

    real = agreement._maps
    monkeypatch.setattr(agreement, "_maps", lambda *given: ((pair, 2 * target + 1, target) for pair, _, target in real(*given)))
    for row in agree(taught, device="cpu").rows:
        assert row.cka == pytest.approx(1, abs=1e-6)
        assert row.explained == pytest.approx(1, abs=1e-2)


def test_int8_maps_are_compared_at_their_true_size(
    taught: Path, frames: Path, extracting: Callable[..., ExtractConfig], tmp_path: Path
) -> None:
    exact = agree(taught, device="cpu")
    store = extract(extracting(frames, tmp_path / "int8.zarr", dtype="int8"))
    coarse = agree(taught, str(store.location), device="cpu")
    for before, after in zip(exact.rows, coarse.rows, strict=True):
        assert after.cka == pytest.approx(before.cka, abs=0.02)
        assert after.explained == pytest.approx(before.explained, abs=0.05)


def test_another_store_must_be_named_and_frames_learned_from_are_told(
    taught: Path, frames: Path, extracting: Callable[..., ExtractConfig], tmp_path: Path
) -> None:
    class Heard(Progress):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def say(self, text: str) -> None:
            self.lines.append(text)

    other = extract(extracting(frames, tmp_path / "other.zarr", split_by="seeded", seed=5))
    tensors, header = read_checkpoint(taught / "checkpoints/best.safetensors")
    header["cache"] = str(other.location)
    write_checkpoint(taught / "checkpoints/best.safetensors", tensors, header)
    with pytest.raises(CacheError, match="changed since"):
        agree(taught, device="cpu")
    heard = Heard()
    assert agree(taught, str(other.location), "cpu", heard).signature == other.manifest.signature()
    seen = {row.split(",")[1]: row.rstrip().split(",")[2] for row in (taught / "samples.csv").read_text().splitlines()[1:]}
    val = [pixels for pixels, split in zip(other.samples.pixel_sha256, other.samples.split, strict=True) if split == "val"]
    learned = sum(seen.get(pixels) == "train" for pixels in val)
    assert learned > 0
    assert any(f"has learned from {learned} of" in line for line in heard.lines)


def test_a_store_of_another_side_and_one_without_common_strides_are_refused(
    taught: Path, frames: Path, extracting: Callable[..., ExtractConfig], tmp_path: Path
) -> None:
    large = extract(extracting(frames, tmp_path / "large.zarr", size=96, views=1))
    with pytest.raises(UsageError, match="96 pixels"):
        agree(taught, str(large.location), device="cpu")
    coarse = extract(extracting(frames, tmp_path / "coarse.zarr", scales=("s32",), views=1))
    with pytest.raises(UsageError, match="stride"):
        agree(taught, str(coarse.location), device="cpu")
    assert not (taught / "agreement.json").exists()


def test_the_command_sets_runs_side_by_side(pair: dict[str, Path], tmp_path: Path) -> None:
    paths = [str(shutil.copytree(path, tmp_path / name)) for name, path in pair.items()]
    shown = CliRunner().invoke(app, ["agree", *paths, "--device", "cpu", "-q"])
    assert shown.exit_code == 0, shown.output
    assert "CKA taught" in shown.stdout
    assert "cosine control" in shown.stdout
    told = CliRunner().invoke(app, ["agree", *paths, "--device", "cpu", "--json"])
    runs = json.loads(told.stdout)["runs"]
    assert list(runs) == paths
    last = shown.stdout.strip().splitlines()[-1].split()
    assert last[:2] == ["mean", "whole"]
    whole = [row["cka"] for row in runs[paths[0]]["rows"] if row["band"] == "whole"]
    assert float(last[2]) == pytest.approx(np.mean(whole), abs=6e-4)


def test_no_run_is_no_traceback(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["agree", str(tmp_path)])
    assert found.exit_code == 1
    assert "no run here" in found.output


def test_the_report_shows_what_was_measured_of_the_evaluated_weights_alone(
    taught: Path, frames: Path, store: FeatureStore, tmp_path: Path
) -> None:
    evaluate(taught, (Source(frames),), split="all", overlays=0, device="cpu")
    assert compare([taught])[0].agreement is None
    found = agree(taught, device="cpu")
    (report,) = compare([taught])
    assert report.agreement == found
    write_report(tmp_path / "page.html", [report], "page")
    page = (tmp_path / "page.html").read_text()
    assert "Agreement with the teachers on validation frames" in page
    name = store.manifest.teachers[0].name
    assert f"Agreement with {name}: linear CKA" in page
    assert f"{name}/s16/bottleneck/high" in page
    best = taught / "checkpoints/best.safetensors"
    tensors, header = read_checkpoint(best)
    write_checkpoint(best, tensors, {**header, "val_dice": 0.125})
    agree(taught, device="cpu")  # of other weights than those that were evaluated
    assert compare([taught])[0].agreement is None


@pytest.mark.parametrize("damage", [lambda text: text[:40], lambda text: text.replace('"cka": 0', '"cka": "high", "c": 0')])
def test_a_damaged_record_is_named(taught: Path, damage: Callable[[str], str]) -> None:
    agree(taught, device="cpu")
    path = taught / "agreement.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(RunError, match=r"agreement\.json"):
        read_agreement(path)
