"""`polyp-difom bench`: tables and JSON on stdout, refusals with the right exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from polyp_difom.cache.errors import MissingDependencyError
from polyp_difom.pipeline.bench import student as bench

QUICK = ("--batch", "1,2", "--runtimes", "eager", "--repeats", "2", "--device", "cpu")


def test_student_prints_sizes_speeds_and_the_machine(cli: Callable[..., Any], finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "taught")
    result = cli("bench", "student", run, "unet:8", "--size", "64", *QUICK, "--threads", "1")
    assert result.exit_code == 0, result.stderr
    for word in ("GMACs", "x eager", "unet:8", "1 of ", str(run / "bench.json")):
        assert word in result.stdout.replace("\n", "")
    assert "warming up" in result.stderr


def test_student_gives_one_json_object(cli: Callable[..., Any]) -> None:
    result = cli("bench", "student", "unet:4", "--size", "64", *QUICK, "--json", "-q")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [(row["runtime"], row["batch"]) for row in found["rows"]] == [("eager", 1), ("eager", 2)]
    assert found["models"][0]["flops"] == 2 * found["models"][0]["macs"] > 0
    assert {"device", "threads", "load", "versions"} <= set(found)


@pytest.mark.parametrize("batch", ["0", "a", "-1", "1.5", ","])
def test_student_refuses_what_is_no_batch_size(refused: Callable[..., str], batch: str) -> None:
    assert "--batch" in refused(2, "bench", "student", "unet:4", "--batch", batch)


def test_student_refuses_an_unknown_name_and_a_missing_file(refused: Callable[..., str]) -> None:
    assert "did you mean" in refused(2, "bench", "student", "unett")
    assert "no such model" in refused(1, "bench", "student", "missing.onnx")


def test_a_runtime_asked_for_by_name_must_be_there(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> Path:
        raise MissingDependencyError("not here", remedy="pip install 'polyp-difom[openvino]'")

    monkeypatch.setattr(bench, "_exported", missing)
    assert "polyp-difom[openvino]" in refused(5, "bench", "student", "unet:4", "--size", "64", "--runtimes", "openvino")


def test_reader_tells_first_from_later_passes_and_which_samples_are_too_small_to_judge(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyp_difom.pipeline.bench import reader
    from polyp_difom.pipeline.bench.reader import KEY, drawn_store

    monkeypatch.setattr(reader, "bench_reader", partial(reader.bench_reader, repeats=1))
    drawn_store(tmp_path / "s.zarr", (4, 6, 6), 20)
    table = cli("bench", "reader", tmp_path / "s.zarr", "-q")
    assert table.exit_code == 0, table.stderr
    printed = " ".join(table.stdout.split())
    assert "first pass" in printed
    assert f"not judged: {KEY}: the bars are for samples of 100 KB and more" in printed
    rows = json.loads(cli("bench", "reader", tmp_path / "s.zarr", "--json", "-q").stdout)["rows"]
    assert {row["way"] for row in rows} >= {"polyp-difom", "polyp-difom, first pass", "zarr-python", "npy memmap"}
    assert {row["met"] for row in rows} == {None}


def test_metrics_prints_a_row_for_each_measure(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from polyp_difom.pipeline.bench import metrics
    from polyp_difom.pipeline.bench.metrics import MetricSpeed

    speeds = [MetricSpeed("overlap", "per-image", 1234.5), MetricSpeed("HD95", "", 99.0)]
    monkeypatch.setattr(metrics, "bench_metrics", lambda: speeds)
    table = cli("bench", "metrics")
    assert table.exit_code == 0, table.stderr
    assert "1234.5" in table.stdout
    assert json.loads(cli("bench", "metrics", "--json").stdout)["rows"][1] == {
        "name": "HD95", "protocol": "", "maps_per_second": 99.0,
    }  # fmt: skip
