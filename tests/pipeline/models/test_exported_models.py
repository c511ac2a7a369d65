"""Exported files as models: what they answer, and that foreign and damaged ones are refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from polyp_difom.cache.errors import DataError, MissingDependencyError, PolypDifomError, RunError, UsageError
from polyp_difom.pipeline.export.exporting import export
from polyp_difom.pipeline.export.formats import FORMATS
from polyp_difom.pipeline.models.exported import KEY, ExportedModel
from polyp_difom.pipeline.models.loading import load_model

FILES = {"onnx": "onnxruntime", "openvino": "openvino", "torchscript": "torch"}
Exporter = Callable[..., Path]


@pytest.fixture(scope="session")
def exports(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    """`exports("onnx")`: folder with an export of the finished run; made once."""

    @cache
    def make(to: str, embedded: bool) -> Path:
        folder = tmp_path_factory.mktemp("exports")
        export(finished_run, to, out=folder / f"e{FORMATS.get(to).suffix}", embed_preprocessing=embedded)
        return folder

    return make


@pytest.fixture
def made(exports: Exporter, tmp_path: Path) -> Exporter:
    """`made("onnx")`: a copy to play with."""

    def copy(to: str, embedded: bool = False) -> Path:
        pytest.importorskip(FILES[to])
        if to != "torchscript":
            pytest.importorskip("onnx")
        shutil.copytree(exports(to, embedded), tmp_path, dirs_exist_ok=True)
        return tmp_path / f"e{FORMATS.get(to).suffix}"

    return copy


@pytest.mark.parametrize("to", ["onnx", "torchscript"])
def test_an_embedded_export_gives_the_log_odds_of_squared_frames_too(
    to: str, made: Exporter, run: Path, odd_pictures: list[np.ndarray]
) -> None:
    frames = np.stack([np.ascontiguousarray(picture[:64, :64].transpose(2, 0, 1)) for picture in odd_pictures])
    got, wanted = (load_model(path, "cpu", trust=True).logits(frames) for path in (made(to, embedded=True), run))
    assert got.shape == (3, 1, 64, 64)
    torch.testing.assert_close(got.sigmoid(), wanted.sigmoid(), atol=1e-5, rtol=0)
    near = wanted.abs() < 8
    torch.testing.assert_close(got[near], wanted[near], atol=1e-2, rtol=0)
    assert got.isfinite().all()


@pytest.mark.parametrize("embedded", [False, True])
def test_what_is_no_picture_is_refused(embedded: bool, made: Exporter) -> None:
    model = load_model(made("torchscript", embedded), "cpu", trust=True)
    for wrong in (
        np.zeros((9, 9), np.uint8),
        np.zeros((9, 9, 4), np.uint8),
        np.zeros((9, 9, 3)),
        np.zeros((0, 9, 3), np.uint8),
    ):
        with pytest.raises(DataError, match="not an RGB picture"):
            model.probability(wrong)


@pytest.mark.parametrize("to", FILES)
def test_a_model_says_what_it_is(to: str, made: Exporter) -> None:
    path = made(to)
    model = load_model(path, "cpu", trust=True)
    assert isinstance(model, ExportedModel)
    assert (model.info.kind, model.info.name, model.info.frame_size, model.info.device) == (to, "e", 64, "cpu, float32")
    assert model.info.header["student"] == "unet:4"
    assert model.info.header["export"]["parity"]["max_difference"] <= 1e-3


@pytest.mark.parametrize("to", FILES)
def test_a_damaged_file_is_refused_by_name(to: str, made: Exporter) -> None:
    path = made(to)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(RunError) as caught:
        load_model(path, "cpu", trust=True)
    assert path.name in str(caught.value)


def test_openvino_without_its_weights_is_refused(made: Exporter) -> None:
    path = made("openvino")
    path.with_suffix(".bin").unlink()
    with pytest.raises(RunError, match=r"e\.bin beside it"):
        load_model(path)


def test_a_foreign_onnx_file_is_told_what_it_has_and_what_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,224,224] x) => (float[1,3,224,224] y) { y = Relu(x) }'
    model = onnx.parser.parse_model(text)

    def opened(*_: object) -> None:
        raise AssertionError("a runtime worked on a stranger's file")

    monkeypatch.setattr(runtime, "InferenceSession", opened)
    onnx.save(model, tmp_path / "f.onnx")
    with pytest.raises(RunError, match="not an ONNX file that polyp-difom exported") as caught:
        load_model(tmp_path / "f.onnx", "cpu")
    assert "input x FLOAT [1, 3, 224, 224]" in str(caught.value)
    onnx.helper.set_model_props(model, {KEY: '{"version": 9}'})
    onnx.save(model, tmp_path / "f.onnx")
    with pytest.raises(RunError, match="cannot be used"):
        load_model(tmp_path / "f.onnx", "cpu")


def test_a_description_of_another_input_is_not_believed(made: Exporter) -> None:
    onnx = pytest.importorskip("onnx")
    path = made("onnx")
    model = onnx.load(path)
    (entry,) = [one for one in model.metadata_props if one.key == KEY]
    entry.value = entry.value.replace('"name":"frames"', '"name":"pictures"')
    onnx.save(model, path)
    with pytest.raises(RunError, match="input frames"):
        load_model(path, "cpu")


def test_a_foreign_openvino_file_is_refused(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    x = openvino.opset8.parameter([1, 3, 8, 8], name="x")
    openvino.save_model(openvino.Model([openvino.opset8.relu(x)], [x]), tmp_path / "f.xml")
    with pytest.raises(RunError, match="not an OpenVINO file that polyp-difom exported"):
        load_model(tmp_path / "f.xml")


@pytest.mark.filterwarnings("ignore")
def test_a_foreign_torchscript_file_is_refused(tmp_path: Path) -> None:
    torch.jit.trace(nn.ReLU(), torch.zeros(2)).save(str(tmp_path / "f.torchscript"))
    with pytest.raises(RunError, match="not a TorchScript file that polyp-difom exported"):
        load_model(tmp_path / "f.torchscript", "cpu", trust=True)


@pytest.mark.parametrize(("device", "error"), [("cuda", MissingDependencyError), ("gpu", UsageError), ("cuda:x", UsageError)])
def test_a_device_that_onnx_runtime_has_not_got_is_refused(device: str, error: type[PolypDifomError], made: Exporter) -> None:
    path = made("onnx")
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers() and device == "cuda":
        pytest.skip("there is one")
    with pytest.raises(error):
        load_model(path, device)


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_threads_are_passed_on(to: str, made: Exporter) -> None:
    model = load_model(made(to), "cpu", threads=1)
    if to == "onnx":
        assert model.session.get_session_options().intra_op_num_threads == 1  # type: ignore[attr-defined]
    else:
        assert model.compiled.get_property("INFERENCE_NUM_THREADS") == 1  # type: ignore[attr-defined]


class Evil(nn.Module):
    """Writes a file as soon as it is opened."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return frames

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.path)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_not_opened_unless_trusted_for_it_may_write_files(tmp_path: Path) -> None:
    written, path = tmp_path / "written", tmp_path / "evil.torchscript"
    torch.jit.script(Evil(str(written))).save(str(path))
    with pytest.raises(RunError, match="may write files when it is opened") as caught:
        load_model(path, "cpu")
    assert "trust=True" in str(caught.value)
    assert not written.exists()
    with pytest.raises(RunError, match="not a TorchScript file that polyp-difom exported"):
        load_model(path, "cpu", trust=True)
    assert written.exists(), "the file does nothing: its refusal would prove nothing"


@pytest.mark.parametrize("to", ["torchscript", "onnx"])
def test_a_backend_that_fails_without_a_word_is_told_by_the_errors_name(
    to: str, made: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(to)

    def silent(*_: object, **__: object) -> None:
        raise RuntimeError

    if to == "onnx":
        monkeypatch.setattr(pytest.importorskip("onnxruntime"), "InferenceSession", silent)
    else:
        monkeypatch.setattr(torch.jit, "load", silent)
    with pytest.raises(RunError, match="RuntimeError"):
        load_model(path, "cpu", trust=True)
