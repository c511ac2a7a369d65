"""Evaluation: figures equal those counted by hand at the original size; pictures, warnings and protocols."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from polyp_difom.cache.errors import DataError, RunError, UsageError
from polyp_difom.pipeline.data.layouts import find_pairs
from polyp_difom.pipeline.data.sources import Source
from polyp_difom.pipeline.data.synthetic import draw
from polyp_difom.pipeline.evaluation.evaluate import Evaluation, evaluate
from polyp_difom.pipeline.models.loading import load_model
from polyp_difom.pipeline.runs import RunFolder
from polyp_difom.pipeline.students.protocol import build_student

SIZES = [(90, 70), (70, 90), (64, 64), (131, 57), (200, 150), (48, 40), (66, 65), (80, 120)]


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight frames of other sizes than the store's, none of them square but one; the last has no lesion."""
    folder = tmp_path_factory.mktemp("mixed") / "mixed"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number, (width, height) in enumerate(SIZES):
        image, mask = draw(100 + number, 256)
        mask = mask & (number < len(SIZES) - 1)
        Image.fromarray(image).resize((width, height)).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.NEAREST).save(
            folder / "masks" / f"{number}.png"
        )
    return folder


def scored(run: Path, folder: Path, **options: Any) -> Evaluation:
    chosen: dict[str, Any] = {"split": "all", "overlays": 0, **options}
    return evaluate(run, (Source(folder),), device="cpu", **chosen)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def counted(probability: np.ndarray, truth: np.ndarray) -> tuple[float, float, float, float]:
    """Dice, IoU, precision and recall from sets of pixels."""
    predicted = set(zip(*np.nonzero(probability >= 0.5), strict=True))
    actual = set(zip(*np.nonzero(truth), strict=True))
    if not predicted and not actual:
        return 1.0, 1.0, 1.0, 1.0
    both = len(predicted & actual)
    if not both:
        return 0.0, 0.0, 0.0, 0.0
    return 2 * both / (len(predicted) + len(actual)), both / len(predicted | actual), both / len(predicted), both / len(actual)


def test_a_probability_map_is_the_squared_frames_logits_resized_to_the_picture(run: Path, mixed: Path) -> None:
    student = build_student("unet:4")
    student.load_state_dict(load_file(run / "checkpoints/best.safetensors"))
    student.eval()
    with Image.open(mixed / "images/3.png") as picture:
        squared = np.asarray(picture.resize((64, 64), Image.Resampling.BILINEAR)).astype(np.float32) / 255
    with torch.no_grad():
        logits = student(torch.from_numpy(squared.transpose(2, 0, 1))[None])
    wanted = torch.nn.functional.interpolate(logits, (57, 131), mode="bilinear", align_corners=False).sigmoid()[0, 0].numpy()
    image = np.asarray(Image.open(mixed / "images/3.png"))
    got = load_model(run, "cpu").probability(image)
    assert got.shape == (57, 131)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_figures_are_those_counted_by_hand_at_the_original_size(run: Path, mixed: Path) -> None:
    result = scored(run, mixed)
    model = load_model(run, "cpu")
    wanted = {}
    for pair in find_pairs(mixed):
        probability = model.probability(np.asarray(Image.open(pair.image)))
        truth = np.asarray(Image.open(pair.mask)) > 127
        wanted[pair.id] = (*counted(probability, truth), float(np.abs(probability - truth).mean()))
    assert any(0 < dice < 1 for dice, *_ in wanted.values()), "the run segments nothing: these figures would prove nothing"
    rows = {row["id"]: row for row in rows_of(run / "evaluation/per-image/mixed-all.csv")}
    assert set(rows) == set(wanted)
    names = ("dice", "iou", "precision", "recall", "mae")
    for name, row in rows.items():
        assert [float(row[column]) for column in names] == pytest.approx(wanted[name], abs=1e-6)
        assert (int(row["width"]), int(row["height"])) == SIZES[int(name.rpartition("/")[2])]
    (summary,) = result.summaries
    means = np.mean(list(wanted.values()), axis=0)
    assert [summary.mdice, summary.miou, summary.precision, summary.recall, summary.mae] == pytest.approx(means, abs=1e-6)
    assert summary.dice_interval[0] <= summary.mdice <= summary.dice_interval[1]
    (row,) = rows_of(run / "results.csv")
    assert (row["dataset"], row["split"], row["protocol"], row["images"]) == ("mixed", "all", "per-image", "8")
    assert [float(row[column]) for column in ("mdice", "miou", "precision", "recall", "mae")] == pytest.approx(means, abs=1e-6)


def test_json_and_table_say_the_same(run: Path, mixed: Path) -> None:
    result = scored(run, mixed)
    said = json.loads(json.dumps(result.as_json()))
    (row,) = rows_of(run / "results.csv")
    assert said["sets"][0]["mdice"] == float(row["mdice"])
    assert said["sets"][0]["images"] == 8
    assert said["split"] == "all"


def test_the_pranet_protocol_averages_256_thresholds_of_the_stretched_map(run: Path, mixed: Path) -> None:
    result = scored(run, mixed, protocol="pranet")
    model = load_model(run, "cpu")
    for pair, score in zip(find_pairs(mixed), result.scores, strict=True):
        assert pair.id == score.id
        values = model.probability(np.asarray(Image.open(pair.image))).astype(np.float64)
        values = (values - values.min()) / (values.max() - values.min())
        truth = np.asarray(Image.open(pair.mask)) > 127
        shared = [2 * ((values >= k / 255) & truth).sum() / max(1, (values >= k / 255).sum() + truth.sum()) for k in range(256)]
        assert score.dice == pytest.approx(np.mean(shared), abs=1e-6)


def test_the_pooled_protocol_scores_squared_frames_in_runs_of_six(run: Path, mixed: Path) -> None:
    result = scored(run, mixed, protocol="pooled-6", overlays=3)
    assert [score.frames for score in result.scores] == [6, 2]
    assert {(score.height, score.width) for score in result.scores} == {(64, 64)}
    assert result.overlays == []
    assert rows_of(run / "evaluation/pooled-6/mixed-all.csv")


def test_results_of_several_protocols_and_splits_stand_side_by_side_and_are_replaced_by_their_like(
    run: Path, mixed: Path
) -> None:
    for options in ({}, {"protocol": "pranet"}, {}):
        scored(run, mixed, **options)
    keys = [(row["split"], row["protocol"]) for row in rows_of(run / "results.csv")]
    assert sorted(keys) == [("all", "per-image"), ("all", "pranet")]


def test_several_data_sets_get_a_row_and_a_table_each(run: Path, mixed: Path, frames: Path) -> None:
    result = evaluate(run, (Source(mixed), Source(frames)), split="all", overlays=1, device="cpu")
    assert {(summary.dataset, summary.images) for summary in result.summaries} == {("mixed", 8), ("synthetic", 24)}
    assert {row["dataset"] for row in rows_of(run / "results.csv")} == {"mixed", "synthetic"}
    assert {path.parent.name for path in result.overlays} == {"mixed-all", "synthetic-all"}


def test_a_data_set_whose_name_holds_a_comma_keeps_its_row_whole(run: Path, mixed: Path, tmp_path: Path) -> None:
    shutil.copytree(mixed, tmp_path / "clinic, 2024")
    for _ in range(2):
        result = scored(run, tmp_path / "clinic, 2024")
    (row,) = rows_of(run / "results.csv")
    assert row["dataset"] == "clinic, 2024"
    assert float(row["mdice"]) == result.summaries[0].mdice


def test_overlays_are_pictures_as_wide_as_the_frame_from_worst_to_best(run: Path, mixed: Path) -> None:
    result = scored(run, mixed, overlays=3)
    assert len(result.overlays) == 3
    dices = {score.id: score.dice for score in result.scores}
    shown = []
    for path in result.overlays:
        stem = path.stem.rpartition("-")[2]
        with Image.open(path) as picture, Image.open(mixed / "images" / f"{stem}.png") as frame:
            picture.load()
            assert picture.width == frame.width
            assert picture.height > frame.height  # the caption's strip
        shown.append(dices[f"mixed/{stem}"])
    ranked = sorted(dices.values())
    assert shown == sorted(shown)
    assert (shown[0], shown[-1]) == (ranked[0], ranked[-1])


def test_an_overlay_differs_from_its_frame_where_the_outlines_run(run: Path, mixed: Path) -> None:
    (path,) = scored(run, mixed, overlays=1).overlays
    frame = np.asarray(Image.open(mixed / "images" / f"{path.stem.rpartition('-')[2]}.png")).astype(int)
    drawn = np.asarray(Image.open(path)).astype(int)[: len(frame)]
    assert (np.abs(drawn - frame).max(-1) > 60).mean() > 0.005


def test_pictures_of_an_earlier_evaluation_do_not_stay(run: Path, mixed: Path) -> None:
    scored(run, mixed, overlays=6)
    result = scored(run, mixed, overlays=2)
    assert sorted((run / "overlays/mixed-all").iterdir()) == sorted(result.overlays)


@pytest.mark.parametrize(("split", "seen"), [("all", {"train": 20, "val": 2}), ("test", {}), ("train", {"train": 20})])
def test_frames_that_the_run_has_seen_are_counted(split: str, seen: dict[str, int], run: Path, frames: Path) -> None:
    assert scored(run, frames, split=split).seen == seen


def test_frames_are_known_again_under_another_name(run: Path, frames: Path, tmp_path: Path) -> None:
    """The bytes decide, not the name: a renamed copy of a train frame is still no test."""
    for kind in ("images", "masks"):
        (tmp_path / "renamed" / kind).mkdir(parents=True)
        for number, path in enumerate(sorted((frames / kind).iterdir())):
            shutil.copy(path, tmp_path / "renamed" / kind / f"case_{number}{path.suffix}")
    assert scored(run, tmp_path / "renamed").seen == {"train": 20, "val": 2}


@pytest.mark.parametrize("objective", ["paper", "none"])
def test_students_of_other_objectives_are_scored_too(objective: str, distilling, frames: Path, tmp_path: Path) -> None:
    from polyp_difom.pipeline.distill import distill

    made = distill(distilling(objective=objective, epochs=1), tmp_path / "run")
    assert scored(made.path, frames, split="test").summaries[0].images == 2


def test_figures_do_not_depend_on_the_data_sets_scored_before(run: Path, mixed: Path, frames: Path) -> None:
    alone = scored(run, mixed).summaries[0]
    beside = evaluate(run, (Source(frames), Source(mixed)), split="all", overlays=0, device="cpu").summaries[0]
    assert beside == alone


def test_a_place_without_a_model_is_refused(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such model"):
        scored(tmp_path / "nowhere", mixed)


def test_a_damaged_checkpoint_is_refused_by_name(run: Path, mixed: Path) -> None:
    best = run / "checkpoints/best.safetensors"
    best.write_bytes(best.read_bytes()[:-100])
    with pytest.raises(RunError, match="damaged") as caught:
        scored(run, mixed)
    assert str(best) in str(caught.value)


def test_a_mask_of_another_size_is_refused_and_no_figures_are_written(run: Path, mixed: Path, tmp_path: Path) -> None:
    shutil.copytree(mixed, tmp_path / "bad")
    Image.new("L", (10, 10)).save(tmp_path / "bad/masks/4.png")
    with pytest.raises(DataError, match="not of its image's size"):
        scored(run, tmp_path / "bad")
    assert not (run / "results.csv").exists()


def test_an_unknown_protocol_is_answered_with_close_ones(run: Path, mixed: Path) -> None:
    with pytest.raises(UsageError, match="pranet"):
        scored(run, mixed, protocol="pranett")


def test_a_foreign_folder_without_a_split_is_scored_whole_or_not_at_all(run: Path, mixed: Path) -> None:
    with pytest.raises(UsageError, match="no test split of its own") as caught:
        scored(run, mixed, split="test")
    assert "--split all" in str(caught.value)


def test_the_same_picture_in_another_format_counts_as_seen(run: Path, frames: Path, tmp_path: Path) -> None:
    shutil.copytree(frames / "masks", tmp_path / "again" / "masks")
    (tmp_path / "again" / "images").mkdir()
    for path in (frames / "images").iterdir():
        Image.open(path).save(tmp_path / "again" / "images" / f"{path.stem}.png")
    assert sum(scored(run, tmp_path / "again", split="all").seen.values()) == len(RunFolder(run).seen())


def test_results_hold_every_measure_and_agree_in_all_three_formats(run: Path, mixed: Path) -> None:
    (summary,) = scored(run, mixed).summaries
    (row,) = rows_of(run / "results.csv")
    held = json.loads((run / "results.json").read_text())["results"][0]
    for name in ("mdice", "hd95", "s_measure", "weighted_f", "e_mean", "e_max"):
        assert float(row[name]) == held[name] == getattr(summary, name)
    assert float(row["ece"]) == held["calibration"]["ece"]
    page = (run / "results.md").read_text()
    assert f"| mixed | all | 8 | {summary.mdice:.3f} (" in page
    assert "per-image" in page


def test_overlap_alone_leaves_the_slow_measures_empty(run: Path, mixed: Path) -> None:
    full, quick = scored(run, mixed).summaries[0], scored(run, mixed, measures="overlap").summaries[0]
    assert (quick.mdice, quick.mae) == (full.mdice, full.mae)
    assert quick.hd95 is None
    assert rows_of(run / "results.csv")[0]["hd95"] == ""


def test_a_checkpoint_of_a_run_knows_the_runs_frames_and_keeps_its_figures_elsewhere(
    run: Path, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = scored(run / "checkpoints/best.safetensors", frames)
    assert result.seen == {"train": 20, "val": 2}
    assert result.record == Path("evaluations/run-best")
    assert not (run / "results.csv").exists()
    assert result.summaries == scored(run, frames).summaries


def test_figures_of_earlier_weights_give_way(run: Path, mixed: Path, frames: Path) -> None:
    scored(run, mixed)
    shutil.copy(run / "checkpoints/last.safetensors", run / "checkpoints/best.safetensors")
    scored(run, frames)
    assert [row["dataset"] for row in rows_of(run / "results.csv")] == ["synthetic"]


def test_an_evaluated_run_can_still_be_overwritten(run: Path, mixed: Path) -> None:
    scored(run, mixed)
    assert RunFolder(run).refuse_to_lose(overwrite=True)
