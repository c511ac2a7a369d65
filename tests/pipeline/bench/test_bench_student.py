"""Students in their runtimes, side by side. What compiling costs minutes is faked; exported files are real."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from polyp_difom.cache.errors import MissingDependencyError, RunError, UsageError
from polyp_difom.pipeline.bench import student as bench
from polyp_difom.pipeline.bench.student import StudentBench, bench_students

NAME = "unet:4"
Benching = Callable[..., StudentBench]


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "taught"))


@pytest.fixture
def benching() -> Benching:
    """One quick measurement in eager mode, unless told otherwise."""

    def measure(*models: object, **changes: Any) -> StudentBench:
        values = {"size": 64, "batches": (1,), "runtimes": ("eager",), "repeats": 2, "device": "cpu"}
        return bench_students([str(model) for model in models], **{**values, **changes})

    return measure


def test_every_network_is_timed_at_every_batch_size(benching: Benching) -> None:
    found = benching(NAME, "unet:8", batches=(1, 3))
    assert [(row.model, row.runtime, row.batch) for row in found.rows] == [
        (NAME, "eager", 1), ("unet:8", "eager", 1), (NAME, "eager", 3), ("unet:8", "eager", 3),
    ]  # fmt: skip
    for row in found.rows:
        assert row.median_ms
        assert row.p95_ms
        assert 0 < row.median_ms <= row.p95_ms
        assert row.fps == pytest.approx(row.batch * 1000 / row.median_ms)
        assert (row.speedup, row.repeats, row.device) == (pytest.approx(1), 2, "cpu, float32")


def test_the_machine_is_named(benching: Benching) -> None:
    machine = benching(NAME).machine
    assert machine.device
    assert machine.versions["torch"] in machine.title
    assert f"{machine.threads} of {machine.cores} CPU threads" in machine.title


def test_all_runtimes_get_the_threads_asked_for_and_torch_gets_its_own_back(
    benching: Benching, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = torch.get_num_threads(), []
    real = bench.load_model

    def watched(path: Path, *rest: Any) -> Any:
        seen.append((torch.get_num_threads(), rest[-1]))
        return real(path, *rest)

    monkeypatch.setattr(bench, "load_model", watched)
    assert benching(NAME, threads=before + 1).machine.threads == before + 1
    assert seen == [(before + 1, before + 1)]
    assert torch.get_num_threads() == before
    with pytest.raises(UsageError):
        benching("unett", threads=before + 1)
    assert torch.get_num_threads() == before


def test_a_run_keeps_its_figures_at_its_own_side(benching: Benching, run: Path) -> None:
    found = benching(run, NAME, size=None, batches=(1, 2))
    assert [subject.size for subject in found.subjects] == [64, 352]
    assert found.written == [run / "bench.json"]
    record = json.loads((run / "bench.json").read_text())
    assert record["device"] == found.machine.device
    assert (record["threads"], record["size"]) == (found.machine.threads, 64)
    assert record["macs"] * 2 == record["flops"] == found.subjects[0].flops
    assert [(row["runtime"], row["batch"]) for row in record["rows"]] == [("eager", 1), ("eager", 2)]
    assert record["rows"][1]["fps"] == found.rows[2].fps
    assert {"median_ms", "p95_ms"} < set(record["rows"][0])


def test_a_run_that_was_measured_can_still_be_trained_afresh(benching: Benching, run: Path) -> None:
    from polyp_difom.pipeline.runs import RunFolder

    benching(run)
    assert RunFolder(run).refuse_to_lose(overwrite=True)


def test_a_runtime_that_is_not_installed_is_a_row_with_the_line_to_type(
    benching: Benching, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> Path:
        raise MissingDependencyError("not here", remedy="pip install 'polyp-difom[export]'")

    monkeypatch.setattr(bench, "_exported", missing)
    monkeypatch.setattr(nn.Module, "compile", lambda *_, **__: None)
    rows = {row.runtime: row for row in benching(NAME, runtimes=None).rows}
    assert list(rows) == ["eager", "compiled", "onnx", "openvino"]
    assert rows["onnx"].note == "not installed: pip install 'polyp-difom[export]'"
    assert rows["onnx"].median_ms is None
    assert rows["eager"].median_ms
    with pytest.raises(MissingDependencyError):
        benching(NAME, runtimes=("eager", "onnx"))


@pytest.mark.parametrize(("runtime", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_student_is_timed_in_a_runtime_through_an_export_of_its_own(benching: Benching, runtime: str, package: str) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip(package)
    eager, exported = benching(NAME, runtimes=("eager", runtime), batches=(2,)).rows
    assert (exported.runtime, exported.device) == (runtime, "cpu, float32")
    assert exported.median_ms
    assert eager.median_ms
    assert exported.speedup == pytest.approx(eager.median_ms / exported.median_ms)  # one turn each


def test_an_exported_file_has_its_own_runtime_and_side(benching: Benching, run: Path, tmp_path: Path) -> None:
    from polyp_difom.pipeline.export.exporting import export

    file = export(run, "onnx", out=tmp_path / "net.onnx").path
    found = benching(file, size=None, runtimes=None)
    assert [(row.runtime, row.batch) for row in found.rows] == [("onnx", 1)]
    (subject,) = found.subjects
    assert (subject.size, subject.macs, subject.run) == (64, None, None)
    assert found.written == []
    with pytest.raises(UsageError, match="another frame side"):
        benching(file, size=96)


def test_a_network_that_does_not_compile_is_a_row_with_the_reason(
    benching: Benching, monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(nn.Module, "compile", lambda module, **_: module.register_forward_pre_hook(fail))  # at its first call
    rows = benching(run, runtimes=("compiled", "eager")).rows
    assert (rows[0].runtime, rows[0].note, rows[0].median_ms) == ("compiled", "failed: no compiler", None)
    assert rows[1].median_ms
    assert [row["runtime"] for row in json.loads((run / "bench.json").read_text())["rows"]] == ["eager"]


def test_compiling_takes_the_whole_network_and_one_shape(benching: Benching, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: asked.append((type(module).__name__, options)))
    benching(NAME, runtimes=("compiled",))
    assert asked == [("UNet", {"fullgraph": True, "dynamic": False})]


@pytest.mark.parametrize(
    ("model", "changes", "error", "text"),
    [
        ("unett", {}, UsageError, "did you mean unet"),
        (NAME, {"runtimes": ("eagre",)}, UsageError, "unknown runtime"),
        (NAME, {"size": 63}, UsageError, "does not fit"),
        ("nothing.onnx", {}, RunError, "no such model"),
        ("runs/nothing", {}, RunError, "no such model"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    benching: Benching, model: str, changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        benching(model, **changes)


def test_a_folder_that_is_no_model_is_refused(benching: Benching, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no model in this folder"):
        benching(tmp_path)
