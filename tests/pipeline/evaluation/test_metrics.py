"""From rows to a set's figures, the comparison of two runs, and both on disk."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from polyp_difom.cache.errors import DataError, RunError, UsageError
from polyp_difom.pipeline.bench.metrics import blob_case
from polyp_difom.pipeline.evaluation.metrics import (
    read_scores_csv,
    read_summary,
    score_set,
    summarise,
    write_scores_csv,
    write_summary,
)
from polyp_difom.pipeline.evaluation.scoring import Case, ImageScore, Measures


def row(id: str, dice: float, share: float = 0.1, dataset: str = "kvasir") -> ImageScore:
    return ImageScore(id, dataset, 8, 10, share, dice, dice / (2 - dice), dice, dice, 1 - dice, 1)


def cases(count: int) -> list[Case]:
    return [blob_case(48, seed) for seed in range(count)]


def test_a_summary_averages_over_images_and_names_its_protocol():
    summary = summarise([row("a", 0.5, 0.01), row("b", 0.7, 0.05), row("c", 0.9, 0.149)], "per-image", "kvasir")
    assert (summary.protocol, summary.dataset, summary.images) == ("per-image", "kvasir", 3)
    assert summary.mdice == pytest.approx(0.7)
    assert summary.mae == pytest.approx(0.3)
    bands = {band.name: (band.images, band.mdice) for band in summary.dice_by_size}
    assert bands == {"small": (1, 0.5), "medium": (2, pytest.approx(0.8)), "large": (0, None)}


def test_a_set_without_some_frames_scores_as_if_they_had_never_been_there() -> None:
    whole = score_set("per-image", "blobs", cases(5))
    assert [found.id for found in whole.rows] == ["0", "1", "2", "3", "4"]
    part = score_set("per-image", "blobs", [case for case in cases(5) if case.id not in "13"])
    assert whole.summary(exclude={"1", "3", "of another set"}) == part.summary()
    assert whole.summary() != part.summary()
    with pytest.raises(DataError, match="no frames are left"):
        whole.summary(exclude="01234")


def test_pooled_rows_cannot_leave_frames_out_afterwards() -> None:
    pooled = score_set("pooled-6", "blobs", cases(8))
    assert pooled.summary().images == 8
    with pytest.raises(UsageError, match="before scoring"):
        pooled.summary(exclude={"1"})


@pytest.mark.parametrize("protocol", ["per-image", "pranet"])
def test_a_set_is_scored_without_holding_its_maps(protocol: str) -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def stream() -> Iterator[Case]:
        for case in cases(5):
            assert sum(ref() is not None for ref in alive) <= 1
            fresh = replace(case, probability=case.probability.copy())
            alive.append(weakref.ref(fresh.probability))
            yield fresh
            del fresh

    scores = score_set(protocol, "blobs", stream())
    assert len(scores.rows) == 5
    assert not any(ref() is not None for ref in alive)


def test_a_mean_is_missing_where_one_row_lacks_the_measure() -> None:
    rows = [replace(row("a", 0.5), hd95=2.0, s_measure=0.5), replace(row("b", 0.5), hd95=4.0)]
    summary = summarise(rows, "per-image", "kvasir")
    assert (summary.hd95, summary.s_measure) == (3.0, None)


@pytest.mark.parametrize("measures", ["all", "overlap"])
def test_a_summary_comes_back_from_disk_bit_for_bit(tmp_path: Path, measures: Measures) -> None:
    summary = score_set("per-image", "blobs", cases(4), measures).summary()
    assert (summary.calibration is None) == (measures == "overlap")
    write_summary(tmp_path / "new" / "set.json", summary)
    assert read_summary(tmp_path / "new" / "set.json") == summary


@pytest.mark.parametrize("damage", ["missing", "no json", "key lost", "word for a number"])
def test_a_damaged_summary_is_a_data_error_with_its_path(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "set.json"
    write_summary(path, score_set("per-image", "blobs", cases(2), "overlap").summary())
    values = json.loads(path.read_text())
    if damage == "missing":
        path.unlink()
    elif damage == "no json":
        path.write_text(path.read_text()[:-20])
    else:
        values.pop("miou") if damage == "key lost" else values.update(miou="high")
        path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"set\.json"):
        read_summary(path)


def test_the_interval_holds_the_mean_narrows_with_more_images_and_repeats():
    dice = np.random.default_rng(3).beta(8, 2, 400)
    scores = [row(str(k), float(value)) for k, value in enumerate(dice)]
    few, many = summarise(scores[:20], "per-image", "kvasir"), summarise(scores, "per-image", "kvasir")
    for summary in (few, many):
        assert summary.dice_interval[0] < summary.mdice < summary.dice_interval[1]
    assert np.diff(many.dice_interval) < np.diff(few.dice_interval) / 2
    assert np.diff(many.dice_interval)[0] == pytest.approx(2 * 1.96 * dice.std() / np.sqrt(400), rel=0.1)
    assert summarise(scores, "per-image", "kvasir") == many


@pytest.mark.parametrize(
    "scores",
    [
        [],
        [row("a", 0.5), row("a", 0.6)],
        [row("a", 0.5), row("b", 0.6, dataset="etis")],
        [row("a", 0.5), replace(row("b", 0.6), protocol="pranet")],
    ],
    ids=["none", "twice", "two datasets", "two protocols"],
)
def test_rows_that_do_not_belong_together_are_not_averaged(scores):
    with pytest.raises(DataError):
        summarise(scores, "per-image", "kvasir")


@pytest.mark.parametrize("measures", ["all", "overlap"])
def test_scores_come_back_from_disk_bit_for_bit(tmp_path: Path, measures: Measures) -> None:
    scores = score_set("per-image", "blobs", cases(3), measures).rows
    scores.append(replace(row('with, comma and "quotes"\nand é', 1 / 3), lesion_share=0.1 + 0.2))
    path = tmp_path / "new" / "results.csv"
    write_scores_csv(path, scores)
    assert read_scores_csv(path) == scores
    assert scores[-1].hd95 is None
    assert [file.name for file in path.parent.iterdir()] == ["results.csv"]


def test_a_failed_write_leaves_the_old_table_in_place(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    write_scores_csv(path, [row("a", 0.5)])
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(RunError, match="disk full"):
        write_scores_csv(path, [row("b", 0.6)])
    assert read_scores_csv(path) == [row("a", 0.5)]
    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]


@pytest.mark.parametrize("damage", ["missing", "columns", "cell", "short row"])
def test_a_damaged_table_is_a_data_error_with_its_path(tmp_path, damage):
    path = tmp_path / "results.csv"
    write_scores_csv(path, [row("a", 0.5)])
    text = path.read_text()
    if damage == "missing":
        path.unlink()
    else:
        changed = {"columns": text.replace("dice", "dise", 1), "cell": text.replace("0.5", "half", 1), "short row": text[:-20]}
        path.write_text(changed[damage])
    with pytest.raises(DataError, match=r"results\.csv"):
        read_scores_csv(path)
