"""Exports say what the network says, and a file that does not is never kept."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyp_difom.cache.errors import MissingDependencyError, RunError, UsageError
from polyp_difom.pipeline.data.sources import Source
from polyp_difom.pipeline.export import exporting
from polyp_difom.pipeline.export.describe import describe
from polyp_difom.pipeline.export.exporting import Exported, export
from polyp_difom.pipeline.export.formats import FORMATS, Job
from polyp_difom.pipeline.export.onnx import OnnxFormat, to_onnx
from polyp_difom.pipeline.models.exported import ExportedModel
from polyp_difom.pipeline.models.loading import kind_of, load_model
from polyp_difom.pipeline.students.protocol import Student, build_student

KINDS = {
    "onnx": ("onnx", "onnxruntime"), "tensorrt-ready": ("onnx", "onnxruntime"), "openvino": ("openvino", "onnx"),
    "torchscript": (), "hub-folder": (),
}  # fmt: skip
EXACT = [(to, False) for to in KINDS] + [("onnx", True), ("torchscript", True)]


def exported(run: Path, to: str, **options: Any) -> Exported:
    for package in KINDS[to]:
        pytest.importorskip(package)
    values = {"out": run.parent / f"e{FORMATS.get(to).suffix}", **options}
    return export(run, to, **values)


@pytest.mark.parametrize(("to", "embedded"), EXACT)
def test_an_export_says_what_torch_says_on_pictures_of_odd_sizes(to: str, embedded: bool, run: Path, odd_pictures) -> None:
    done = exported(run, to, embed_preprocessing=embedded)
    assert done.path in done.files or kind_of(done.path) == "hub-folder"
    network, model = load_model(run, "cpu"), load_model(done.path, "cpu", trust=True)
    assert model.info.frame_size == 64
    assert model.info.parameters == network.info.parameters
    wanted = network.probabilities(odd_pictures)
    assert max(map(np.max, wanted)) > 0.6, "the network sees nothing: its agreement would prove nothing"
    for picture, got, want in zip(odd_pictures, model.probabilities(odd_pictures), wanted, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, atol=1e-4)
        np.testing.assert_allclose(model.probability(picture), want, atol=1e-4)
    same = [odd_pictures[0], odd_pictures[0][::-1].copy(), odd_pictures[0][:, ::-1].copy()]
    np.testing.assert_allclose(np.stack(model.probabilities(same)), np.stack(network.probabilities(same)), atol=1e-4)


def test_of_pictures_higher_than_wide_an_embedded_export_says_nearly_the_same(run: Path, odd_pictures) -> None:
    model = load_model(exported(run, "torchscript", embed_preprocessing=True).path, "cpu", trust=True)
    picture = np.ascontiguousarray(odd_pictures[0].transpose(1, 0, 2))
    np.testing.assert_allclose(model.probability(picture), load_model(run, "cpu").probability(picture), atol=2e-2)


@pytest.mark.parametrize(("to", "embedded"), [("onnx", True), ("openvino", False)])
def test_float16_halves_the_file_and_stays_near(to: str, embedded: bool, run: Path) -> None:
    whole = exported(run, to, embed_preprocessing=embedded, out=run.parent / f"whole{FORMATS.get(to).suffix}")
    half = exported(run, to, embed_preprocessing=embedded, precision="float16")
    assert 0 < half.parity.max_difference < 5e-2
    weights = [max(path.stat().st_size for path in done.files) for done in (half, whole)]
    assert weights[0] < (0.6 if to == "openvino" else 0.75) * weights[1]


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_int8_tells_what_it_costs_in_dice(to: str, run: Path) -> None:
    done = exported(run, to, precision="int8")
    parity = done.parity
    assert parity.max_difference > 1e-4
    assert parity.cost == pytest.approx(100 * (parity.dice_torch - parity.dice_export))
    assert abs(parity.cost) < 10
    assert f"{parity.dice_export:.4f} exported" in parity.words()


def test_int8_scales_weights_by_channel_and_leaves_the_preprocessing_alone(run: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(exported(run, "onnx", precision="int8", embed_preprocessing=True).path).graph
    scales = {one.name: list(one.dims) for one in graph.initializer if one.name.endswith("scale")}
    assert any(dims and dims[0] > 1 for dims in scales.values())
    quantised = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert quantised
    producer = {name: node for node in graph.node for name in node.output}
    outside = [name for name in quantised if name in producer and not producer[name].name.startswith("/network/")]
    assert outside in ([], [next(n.input[0] for n in graph.node if n.name.startswith("/network/Sub"))])


def test_the_description_tells_origin_and_figures_and_no_path_of_this_machine(run: Path) -> None:
    (run / "results.csv").write_text("dataset,split,protocol,images,mdice,miou,hd95\nmine,test,per-image,7,0.5,0.25,\n")
    model = load_model(exported(run, "torchscript").path, "cpu", trust=True)
    assert isinstance(model, ExportedModel)
    about = model.about
    assert about.figures == (
        {"dataset": "mine", "split": "test", "protocol": "per-image", "images": 7, "mdice": 0.5, "miou": 0.25},
    )
    assert about.classes == ("polyp",)
    assert about.header["student"] == "unet:4"
    assert about.header["provenance"]["teachers"][0]["name"] == "dinov2:small"
    assert about.parity is not None
    assert about.parity["max_difference"] <= 1e-3
    assert "not a medical device" in about.disclaimer
    assert str(run.parent.parent) not in about.model_dump_json()
    assert "cache" not in about.header


def test_figures_stay_when_a_hub_folder_is_exported_on(run: Path) -> None:
    (run / "results.csv").write_text("dataset,split,protocol,images,mdice,miou\nmine,test,per-image,7,0.5,0.25\n")
    folder = exported(run, "hub-folder").path
    again = load_model(export(folder, "torchscript", out=run.parent / "b.torchscript").path, "cpu", trust=True)
    assert isinstance(again, ExportedModel)
    assert again.about.figures[0]["mdice"] == 0.5
    assert "export" not in again.about.header


def test_a_file_that_says_something_else_is_not_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    make = OnnxFormat.__init__

    def spoilt(self: OnnxFormat, job: Job) -> None:
        job.student.head.bias.data += 0.01  # type: ignore[union-attr, operator]
        make(self, job)
        job.student.head.bias.data -= 0.01  # type: ignore[union-attr, operator]

    monkeypatch.setattr(OnnxFormat, "__init__", spoilt)
    with pytest.raises(RunError, match="not kept") as caught:
        exported(run, "onnx")
    assert "within 0.001" in str(caught.value)
    assert not (run.parent / "e.onnx").exists()


def test_what_is_there_is_replaced_only_when_asked(run: Path) -> None:
    out = run.parent / "e.torchscript"
    out.write_text("mine")
    with pytest.raises(RunError, match="--overwrite"):
        exported(run, "torchscript")
    assert out.read_text() == "mine"
    exported(run, "torchscript", overwrite=True)
    assert kind_of(out) == "torchscript"


@pytest.mark.parametrize(("to", "beside"), [("openvino", "e.bin"), ("tensorrt-ready", "e.trtexec.sh")])
def test_what_lies_where_a_companion_goes_is_replaced_only_when_asked(to: str, beside: str, run: Path) -> None:
    mine = run.parent / beside
    mine.write_text("mine")
    with pytest.raises(RunError, match="--overwrite") as caught:
        exported(run, to)
    assert str(mine) in str(caught.value)
    assert mine.read_text() == "mine"
    assert mine in exported(run, to, overwrite=True).files
    assert mine.read_bytes() != b"mine"


def test_openvino_is_written_without_the_call_that_sends_telemetry(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino")

    def sends(*_: object, **__: object) -> None:
        raise AssertionError("telemetry")

    monkeypatch.setattr(openvino, "convert_model", sends)
    assert exported(run, "openvino").path.is_file()


@pytest.mark.parametrize("name", ["it's $(touch ran).onnx", "two words.onnx"])
def test_the_command_for_tensorrt_takes_any_file_name(name: str, run: Path) -> None:
    done = exported(run, "tensorrt-ready", out=run.parent / name)
    script = done.path.with_suffix(".trtexec.sh").read_text().replace("\\\n", "")
    words = shlex.split(script, comments=True)
    assert words[:3] == ["trtexec", f"--onnx={name}", f"--saveEngine={Path(name).with_suffix('.engine')}"]


def test_the_normalisation_told_is_the_students_own(run: Path) -> None:
    header = load_model(run, "cpu").info.header
    student = build_student("light")
    about = describe("light", {**header, "student": "light"}, 1, "float32", False, (), student)
    assert (about.mean, about.std) == (pytest.approx((127 / 255,) * 3), pytest.approx((128 / 255,) * 3))
    assert "the normalisation (mean and std below) is part of the network" in about.input.meaning
    told = load_model(exported(run, "torchscript").path, "cpu", trust=True)
    assert isinstance(told, ExportedModel)
    assert told.about.mean == pytest.approx((0.485, 0.456, 0.406))


def test_a_folder_with_something_else_in_it_is_never_overwritten(run: Path) -> None:
    for folder in (run, run.parent):
        with pytest.raises(RunError, match="no export wrote"):
            export(run, "hub-folder", out=folder, overwrite=True)


def test_a_write_that_fails_leaves_no_half_model(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = exported(run, "hub-folder").path
    write = exporting.write_bytes

    def full(path: Path, data: bytes) -> None:
        if path.name == "README.md":
            raise RunError("cannot write", where=path)
        write(path, data)

    monkeypatch.setattr(exporting, "write_bytes", full)
    with pytest.raises(RunError, match="cannot write"):
        exported(run, "hub-folder", overwrite=True)
    with pytest.raises(RunError, match="no model in this folder"):
        kind_of(folder)


def test_a_place_that_cannot_be_written_to_is_an_error(run: Path) -> None:
    (run.parent / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made or written"):
        exported(run, "torchscript", out=run.parent / "file/e.torchscript")


@pytest.mark.parametrize(
    ("to", "options", "said"),
    [
        ("onxx", {}, "did you mean onnx"),
        ("torchscript", {"precision": "int8"}, "not written in int8"),
        ("openvino", {"embed_preprocessing": True}, "does not take the preprocessing in"),
        ("onnx", {"out": Path("network.pt")}, "is a .onnx file"),
    ],
)
def test_what_does_not_go_together_is_refused(to: str, options: dict[str, Any], said: str, run: Path) -> None:
    with pytest.raises(UsageError, match=said):
        export(run, to, **options)


def test_an_export_is_not_exported_again(run: Path) -> None:
    with pytest.raises(UsageError, match="not a trained network"):
        export(exported(run, "torchscript").path, "onnx")


@pytest.mark.parametrize(("to", "package", "extra"), [("onnx", "onnx", "export"), ("openvino", "openvino", "openvino")])
def test_a_missing_package_is_named_with_the_way_to_get_it(
    to: str, package: str, extra: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'polyp-difom\[{extra}\]'"):
        export(run, to, out=run.parent / f"e{FORMATS.get(to).suffix}")
    assert list(run.parent.glob("e*")) == []


def test_tensorrt_gets_one_frame_size_symmetric_scales_and_its_command(run: Path) -> None:
    onnx = pytest.importorskip("onnx")
    done = exported(run, "tensorrt-ready", precision="int8")
    graph = onnx.load(done.path).graph
    assert [dim.dim_param or dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == ["batch", 3, 64, 64]
    values = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    zeros = [values[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear" and len(node.input) > 2]
    assert zeros
    assert not any(zero.any() for zero in zeros)
    script = (run.parent / "e.trtexec.sh").read_text()
    assert "trtexec --onnx=e.onnx " in script
    assert "--maxShapes=frames:8x3x64x64" in script
    assert "--stronglyTyped" in script
    assert "no TensorRT ran here" in " ".join(done.remarks)


class Odd(Student):
    """A network with one operation of choice."""

    stride = 16

    def __init__(self, layer: torch.nn.Module):
        super().__init__()
        self.layer = layer

    def segment(self, inputs: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.layer(inputs)[:, :1], {}


def test_an_operator_that_tensorrt_is_not_known_to_take_is_named() -> None:
    pytest.importorskip("onnx")

    class Atan(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.atan()

    with pytest.raises(RunError, match="Atan"):
        FORMATS.get("tensorrt-ready")(Job(Odd(Atan()).eval(), 32, "float32", False))


def test_dilated_convolutions_with_same_padding_run_in_onnx_runtime() -> None:
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    student = Odd(torch.nn.Conv2d(3, 2, (3, 5), padding="same", dilation=3)).eval()
    session = runtime.InferenceSession(to_onnx(Job(student, 32, "float32", False)).SerializeToString())
    frames = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        wanted = student(frames).numpy()
    np.testing.assert_allclose(session.run(None, {"frames": frames.numpy()})[0], wanted, atol=1e-5)


def test_the_default_place_is_named_after_run_precision_and_format(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    assert exported(run, "torchscript", out=None, embed_preprocessing=True).path == Path("exports/taught-embedded.torchscript")


def test_data_is_split_as_the_store_was(run: Path, frames: Path) -> None:
    assert exported(run, "torchscript", sources=(Source(frames),)).parity.frames == "2 val frames of synthetic"


def test_a_checkpoint_alone_is_exported_too(run: Path, odd_pictures) -> None:
    alone = Path(shutil.copy(run / "checkpoints/best.safetensors", run.parent / "alone.safetensors"))
    done = export(alone, "torchscript", out=run.parent / "e.torchscript")
    wanted = load_model(run, "cpu").probability(odd_pictures[0])
    np.testing.assert_allclose(load_model(done.path, "cpu", trust=True).probability(odd_pictures[0]), wanted, atol=1e-4)


def test_a_job_embeds_only_when_asked(run: Path) -> None:
    job = Job(load_model(run, "cpu").student, 64, "float32", False)  # type: ignore[attr-defined]
    assert job.network is job.student
    assert replace(job, embedded=True).network is not job.student
