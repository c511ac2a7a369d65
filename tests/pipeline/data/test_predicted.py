"""Masks that `predict` wrote are for training alone: never a split to choose or to test by, and never without their network."""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from polyp_difom.cache.errors import DataError, UsageError
from polyp_difom.pipeline.data.layouts import detect_layout, find_pairs
from polyp_difom.pipeline.data.sources import Gathered, Source, gather
from polyp_difom.pipeline.data.synthetic import write_dataset
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.evaluation.evaluate import evaluate
from polyp_difom.pipeline.export.describe import terms
from polyp_difom.pipeline.export.exporting import export
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.models.loading import load_model
from polyp_difom.pipeline.plan import ExtractConfig
from polyp_difom.pipeline.predict.inputs import find_sources
from polyp_difom.pipeline.predict.run import PredictConfig, predict
from polyp_difom.pipeline.runs import read_checkpoint

from ...conftest import Heard

EVERY = {"train", "val", "test"}


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    """Six pictures that no run has seen, one of them in a sub-folder."""
    write_dataset(tmp_path / "drawn", count=6, size=64, seed=7)
    folder = Path(shutil.copytree(tmp_path / "drawn" / "images", tmp_path / "unlabelled"))
    first = min(folder.iterdir())
    (folder / "deeper").mkdir()
    first.rename(folder / "deeper" / first.name)
    return folder


def predicted(model: Path, pictures: Path, out: Path) -> Path:
    predict(load_model(model, "cpu"), find_sources([str(pictures)]), out, PredictConfig(save=("mask",)))
    return out


@pytest.fixture
def pseudo(finished_run: Path, unlabelled: Path, tmp_path: Path) -> Path:
    return predicted(finished_run, unlabelled, tmp_path / "pseudo")


def both(frames: Path, pseudo: Path, **options: str) -> Gathered:
    return gather((Source(frames), Source(pseudo)), EVERY, **options)


def test_a_prediction_is_a_data_set_of_the_pictures_and_their_masks(pseudo: Path, unlabelled: Path) -> None:
    assert detect_layout(pseudo) == "predicted"
    pairs = find_pairs(pseudo)
    assert {pair.image for pair in pairs} == set(unlabelled.rglob("*.jpg"))
    assert {pair.mask for pair in pairs} == set((pseudo / "masks").rglob("*.png"))
    assert all(pair.image.stem == pair.mask.stem and pair.predicted for pair in pairs)
    assert sum("/deeper/" in pair.id for pair in pairs) == 1


def test_relative_paths_are_those_of_the_folder_in_which_predict_ran(
    finished_run: Path, unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        predicted(finished_run, Path(unlabelled.name), Path("pseudo"))
    assert len(find_pairs(tmp_path / "pseudo")) == 6


@pytest.mark.parametrize("policy", ["auto", "seeded", "file"])
def test_predicted_frames_train_whatever_the_split(policy: str, frames: Path, pseudo: Path, tmp_path: Path) -> None:
    alone = gather((Source(frames),), EVERY, split_by="seeded")
    if policy == "file":
        policy = str(tmp_path / "split.csv")
        Path(policy).write_text("stem,split\n" + "".join(f"{pair.stem},{pair.split}\n" for pair in alone.pairs))
    found = both(frames, pseudo, split_by=policy)
    assert {pair.split for pair in found.pairs if pair.dataset == "pseudo"} == {"train"}
    own = {pair.id: pair.split for pair in found.pairs if pair.dataset != "pseudo"}
    assert own == {pair.id: pair.split for pair in alone.pairs}
    assert "pseudo: to train on, its masks are predicted" in found.policy
    assert "pseudo" not in found.invented


def test_a_student_trains_on_them_and_is_tested_on_none(
    frames: Path,
    pseudo: Path,
    extracting: Callable[..., ExtractConfig],
    distilling: Callable[..., DistillConfig],
    tmp_path: Path,
) -> None:
    heard = Heard()
    store = extract(extracting(frames, tmp_path / "s.zarr", sources=(Source(frames), Source(pseudo))), heard)
    assert not any("nothing is known" in line for line in heard.lines)
    assert [(entry.name, entry.layout, entry.frames) for entry in store.manifest.datasets] == [
        ("pseudo", "predicted", 6), ("synthetic", "folder", 22),
    ]  # fmt: skip
    run = distill(distilling(cache=str(store.location), epochs=1), tmp_path / "run", heard).path
    assert "6 of the train frames have predicted masks" in heard.lines
    header = read_checkpoint(run / "checkpoints/best.safetensors")[1]
    assert "pseudo: its masks were predicted by a network, and its terms are for you to check" in terms(header)
    assert evaluate(run, (Source(frames),), overlays=0, device="cpu").seen == {}
    for split in ("test", "all"):
        with pytest.raises(DataError, match="no truth to score against"):
            evaluate(run, (Source(pseudo),), split=split, overlays=0, device="cpu")


def relisted(run: Path, digests: dict[str, str], out: Path) -> Path:
    """The run, with the splits of some pictures in its list of frames changed, or added."""
    shutil.copytree(run, out)
    with (out / "samples.csv").open(newline="") as file:
        rows = {row["pixel_sha256"]: row for row in csv.DictReader(file)}
    rows |= {
        digest: {"id": f"synthetic/{digest[:8]}", "pixel_sha256": digest, "split": split} for digest, split in digests.items()
    }
    with (out / "samples.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["id", "pixel_sha256", "split"])
        table.writeheader()
        table.writerows(rows.values())
    return out


def test_a_network_that_knows_test_frames_labels_nothing(
    frames: Path, finished_run: Path, unlabelled: Path, extracting: Callable[..., ExtractConfig], tmp_path: Path
) -> None:
    from polyp_difom.pipeline.data.frames import pixel_digest, read_image

    tests = [pair for pair in gather((Source(frames),), {"train", "test"}).pairs if pair.split == "test"]
    run = relisted(finished_run, {pixel_digest(read_image(tests[0].image)): "train"}, tmp_path / "knowing")
    pseudo = predicted(run, unlabelled, tmp_path / "pseudo")
    sources = (Source(frames), Source(pseudo))
    with pytest.raises(DataError, match="predicted the masks of 'pseudo' knows a test frame"):
        extract(extracting(frames, tmp_path / "s.zarr", sources=sources))
    assert not (tmp_path / "s.zarr").exists()
    shutil.rmtree(run)
    heard = Heard()
    extract(extracting(frames, tmp_path / "s.zarr", sources=sources), heard)
    assert any("nothing is known of what the network learned from" in line for line in heard.lines)


def test_a_predicted_picture_that_is_a_test_frame_is_refused(
    frames: Path, finished_run: Path, extracting: Callable[..., ExtractConfig], tmp_path: Path
) -> None:
    pseudo = predicted(finished_run, frames / "images", tmp_path / "pseudo")
    with pytest.raises(DataError, match="same picture lies in two splits"):
        extract(extracting(frames, tmp_path / "s.zarr", sources=(Source(frames), Source(pseudo))))


def test_what_the_network_has_seen_counts_as_seen_by_those_who_learn_from_its_masks(
    frames: Path, finished_run: Path, unlabelled: Path, extracting: Callable[..., ExtractConfig],
    distilling: Callable[..., DistillConfig], tmp_path: Path,
) -> None:  # fmt: skip
    write_dataset(tmp_path / "other", count=12, size=64, seed=21)
    pseudo = predicted(finished_run / "checkpoints/best.safetensors", unlabelled, tmp_path / "pseudo")
    store = extract(extracting(frames, tmp_path / "s.zarr", sources=(Source(tmp_path / "other"), Source(pseudo))))
    assert store.verify() == []
    run = distill(distilling(cache=str(store.location), epochs=1, objective="none"), tmp_path / "run").path
    assert sum(evaluate(run, (Source(frames),), split="all", overlays=0, device="cpu").seen.values()) == 22
    again = predicted(run, unlabelled, tmp_path / "again")
    with pytest.raises(DataError, match="masks of 'again' knows a test frame"):
        extract(extracting(frames, tmp_path / "t.zarr", sources=(Source(frames), Source(again)), seed=1))


def test_a_run_that_took_the_labellers_place_vouches_for_nothing(
    frames: Path, finished_run: Path, unlabelled: Path, extracting: Callable[..., ExtractConfig], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "labeller"))
    pseudo, heard = predicted(run, unlabelled, tmp_path / "pseudo"), Heard()
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub("signature: .*", f"signature: {'0' * 64}", text))
    extract(extracting(frames, tmp_path / "s.zarr", sources=(Source(frames), Source(pseudo))), heard)
    assert any("nothing is known of what the network learned from" in line for line in heard.lines)


@pytest.mark.parametrize("first", [True, False])
def test_a_prediction_has_a_name_of_its_own(first: bool, frames: Path, pseudo: Path, tmp_path: Path) -> None:
    same = pseudo.rename(tmp_path / frames.name)
    sources = (Source(same), Source(frames)) if first else (Source(frames), Source(same))
    with pytest.raises(DataError, match="called like another data set"):
        gather(sources, EVERY)
    twin = Path(shutil.copytree(same, tmp_path / "twin" / same.name))
    with pytest.raises(DataError, match="called like another data set"):
        gather((Source(same), Source(twin)), EVERY)


def test_a_prediction_alone_makes_no_store(pseudo: Path, extracting: Callable[..., ExtractConfig], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no frames to validate on"):
        extract(extracting(pseudo, tmp_path / "s.zarr"))


def test_an_export_is_not_compared_on_masks_of_a_network(finished_run: Path, pseudo: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no truth to compare with"):
        export(finished_run, "torchscript", out=tmp_path / "a.torchscript", sources=(Source(pseudo),))


def rewrite(table: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    with table.open(newline="") as file:
        rows = [change(row) for row in csv.DictReader(file)]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "masks"), "without a predicted mask"),
        (lambda folder: (folder / "predictions.csv").unlink(), "table of predictions cannot be read"),
        (lambda folder: (folder / "predictions.csv").write_text("name,source,frame\n"), "no rows"),
        (lambda folder: (folder / "predict.json").write_text("[]"), "record cannot be read"),
        (lambda folder: (folder / "predict.json").write_text("{" * 10), "record cannot be read"),
        (lambda folder: rewrite(folder / "predictions.csv", lambda row: row | {"source": "gone.jpg"}), "are gone"),
        (lambda folder: rewrite(folder / "predictions.csv", lambda row: row | {"frame": "3"}), "not predicted from picture"),
        (
            lambda folder: rewrite(folder / "predictions.csv", lambda row: row | {"source": "a.dcm"}),
            "not predicted from picture",
        ),
        (lambda folder: rewrite(folder / "predictions.csv", lambda row: row | {"name": "../../a"}), "outside the folder"),
        (lambda folder: rewrite(folder / "predictions.csv", lambda row: row | {"name": "\x1b[31m/a"}), "control characters"),
        (lambda folder: rewrite(folder / "predictions.csv", lambda row: row | {"source": f"{'a' * 5000}.png"}), "are gone"),
        (
            lambda folder: rewrite(folder / "predictions.csv", lambda row: row | {"name": "a" * 5000}),
            "without a predicted mask",
        ),
        (lambda folder: (folder / "predictions.csv").unlink() or os.mkfifo(folder / "predictions.csv"), "cannot be read"),
    ],
)
def test_what_is_no_whole_prediction_of_pictures_is_refused(
    change: Callable[[Path], object], message: str, pseudo: Path
) -> None:
    change(pseudo)
    with pytest.raises(DataError, match=message):
        find_pairs(pseudo)
