"""Whatever a model is loaded from: checkpoints, pickles, exported files, run folders, hub folders. None may be opened."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from .corpus import Case, damaged

HEADER = {"student": "unet:4", "frame_size": 32, "objective": "none"}
DEEP = b"[" * 200_000


class Executed:
    """Its pickle makes a file when it is opened."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.marker),))


def checkpoint(header: object = HEADER, student: str = "unet:4") -> bytes:
    """A checkpoint of a tiny network, as `distill` writes it."""
    from safetensors.torch import save

    from polyp_difom.pipeline.students.protocol import build_student

    torch.manual_seed(0)
    tensors = {name: tensor.contiguous() for name, tensor in build_student(student).state_dict().items()}
    return save(tensors, metadata={"polyp_difom": json.dumps(header)})


def _safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _tensors(**entries: object) -> bytes:
    return _safetensors({"__metadata__": {"polyp_difom": json.dumps(HEADER)}, **entries}, bytes(16))


def network_cases(folder: Path, marker: Path) -> list[Case]:
    """All of them, written below `folder`; a pickle that is opened makes the folder `marker`."""
    folder.mkdir()
    cases = []
    for kind, files in (
        ("checkpoint", _checkpoints()), ("pickle", _pickles(marker)), ("ONNX", _onnx(folder.parent)), ("OpenVINO", _openvino()),
    ):  # fmt: skip
        for name, data in files.items():
            (folder / name).write_bytes(data)
            cases.append(Case(kind, folder / name, "either" if name.startswith("noise") else "refused"))
    with (folder / "sparse.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 1 << 35))
        file.truncate(1 << 36)
    os.mkfifo(folder / "pipe.onnx")
    (folder / "device.safetensors").symlink_to("/dev/zero")
    (folder / "folder.onnx").mkdir()
    names = ("sparse.safetensors", "pipe.onnx", "device.safetensors", "folder.onnx", "missing.safetensors")
    cases += [Case("checkpoint", folder / name, "refused") for name in names]
    whole = folder / "whole.safetensors"
    whole.write_bytes(checkpoint())
    return [*cases, Case("checkpoint", whole, "read"), *_folders(folder / "folders", whole)]


def _checkpoints() -> dict[str, bytes]:
    whole = checkpoint()
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    headers = {
        "student-unknown": {**HEADER, "student": "resnet"}, "student-list": {**HEADER, "student": []}, "no-student": {"frame_size": 32},
        "student-path": {**HEADER, "student": "../../etc/passwd"}, "student-distant": {**HEADER, "student": "smp:Unet/tu-hf-hub:a/b"},
        "student-giant": {**HEADER, "student": "unet:1000000"}, "frame-giant": {**HEADER, "frame_size": 10**9},
        "frame-text": {**HEADER, "frame_size": "32"}, "frame-negative": {**HEADER, "frame_size": -32}, "list": [], "null": None,
        "other-student": {**HEADER, "student": "unet:8"}, "datasets": {**HEADER, "provenance": {"datasets": [1]}},
        "split": {**HEADER, "split": {"policy": 1}}, "teachers": {**HEADER, "teachers": "all"},
    }  # fmt: skip
    broken = {
        "empty": b"", "zeros": bytes(8), "short": b"\1\2\3", "length-2-63": _safetensors(b"", length=2**63), "length-2-40": _safetensors(b"{}", length=2**40),
        "deep": _safetensors(b'{"a":' + DEEP), "array": _safetensors([]), "no-metadata": _safetensors({"a": one}, bytes(8)),
        "foreign": _safetensors({"__metadata__": {"format": "pt"}}), "metadata-list": _safetensors({"__metadata__": []}),
        "overlapping": _tensors(a=one, b={**one, "data_offsets": [4, 12]}), "beyond": _tensors(a={**one, "data_offsets": [0, 10**12]}),
        "negative": _tensors(a={**one, "data_offsets": [-8, 0]}), "dtype": _tensors(a={**one, "dtype": "PICKLE"}),
        "shape": _tensors(a={**one, "shape": [2**62, 2**62]}), "backwards": _tensors(a={**one, "data_offsets": [8, 0]}),
        "not-utf-8": _safetensors(b'{"\xff": 1}'), "half": whole[: len(whole) // 2], "long-header": _safetensors(b"{" + b" " * (5 << 20) + b"}"),
    }  # fmt: skip
    files = broken | {name: checkpoint(header) for name, header in headers.items()}
    return {f"{name}.safetensors": data for name, data in files.items()} | {
        f"noise-{seed}.safetensors": damaged(whole, seed, 4) for seed in range(4)
    }


def _pickles(marker: Path) -> dict[str, bytes]:
    torch_file = io.BytesIO()
    torch.save({"state_dict": Executed(marker)}, torch_file)
    legacy = io.BytesIO()
    torch.save(Executed(marker), legacy, _use_new_zipfile_serialization=False)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(Executed(marker)))
        archive.writestr("model/code/a.py", "raise SystemExit")
    files = {"model.pt": torch_file.getvalue(), "legacy.pth": legacy.getvalue(), "script.torchscript": zipped.getvalue()}
    for protocol in (0, 2, 5):
        plain = pickle.dumps(Executed(marker), protocol)
        files |= {f"{protocol}.{suffix}": plain for suffix in ("pkl", "pt", "safetensors", "onnx", "xml")}
    return files | {"cut.pt": torch_file.getvalue()[:-30], "tail.pt": b"\0" * 40 + b"PK\x05\x06" + bytes(18), "none.ckpt": b""}


def _onnx(outside: Path) -> dict[str, bytes]:
    import onnx
    from onnx import TensorProto, helper

    (outside / "secret.bin").write_bytes(bytes(4))

    def model(nodes: list[Any], tensors: list[Any]) -> bytes:
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
        return helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], initializer=tensors)).SerializeToString()

    def elsewhere(location: str) -> Any:
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=location)
        return tensor

    add, plain = helper.make_node("Add", ["x", "w"], ["y"]), helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    inner = helper.make_graph(
        [], "inner", [], [helper.make_tensor_value_info("w", 1, [1])], initializer=[elsewhere("../secret.bin")]
    )
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    constant = helper.make_node("Constant", [], ["w"], value=elsewhere("/etc/hostname"))
    whole = model([add], [plain])
    return {
        "empty.onnx": b"", "garbage.onnx": b"\xff" * 500, "html.onnx": b"<html></html>", "foreign.onnx": whole, "cut.onnx": whole[:-10],
        "outside.onnx": model([add], [elsewhere("../secret.bin")]), "absolute.onnx": model([add], [elsewhere("/etc/hostname")]),
        "inner.onnx": model([branch], []), "constant.onnx": model([constant, add], []), "deep.onnx": b"\x3a\x7f" * 5000,
        "own-operators.onnx": onnx.ModelProto.FromString(model([helper.make_node("Run", ["x"], ["y"], domain="evil")], [])).SerializeToString(),
    }  # fmt: skip


def _openvino() -> dict[str, bytes]:
    laughs = b"".join(b'<!ENTITY l%d "%s">' % (level, b"&l%d;" % (level - 1) * 10) for level in range(1, 10))
    return {
        "empty.xml": b"", "page.xml": b"<html></html>", "laughs.xml": b'<!DOCTYPE n [<!ENTITY l0 "ha">' + laughs + b"]><net>&l9;</net>",
        "outside.xml": b'<!DOCTYPE n [<!ENTITY x SYSTEM "file:///etc/passwd">]><net name="a" version="11">&x;</net>',
        "deep.xml": b"<net>" * 20_000, "no-layers.xml": b'<net name="a" version="11"></net>', "version.xml": b'<net name="a" version="999"/>',
    }  # fmt: skip


def _folders(folder: Path, whole: Path) -> list[Case]:
    """Run and hub folders, most of them with something that leads out of them."""
    outside = folder.parent / "outside"
    (outside / "checkpoints").mkdir(parents=True)
    (outside / "checkpoints/best.safetensors").write_bytes(whole.read_bytes())
    cases = []

    def run(name: str, expected: Any = "refused") -> Path:
        (folder / name / "checkpoints").mkdir(parents=True)
        (folder / name / "config.yaml").write_text("student: unet:4\n")
        (folder / name / "checkpoints/best.safetensors").write_bytes(whole.read_bytes())
        cases.append(Case("run folder", folder / name, expected))
        return folder / name

    def relinked(place: Path, target: Path | str) -> None:
        place.unlink() if place.is_file() else (place / "best.safetensors").unlink() or place.rmdir()
        place.symlink_to(target)

    run("whole", "read")
    relinked(run("inner-link", "read") / "config.yaml", "checkpoints/best.safetensors")
    relinked(run("best-elsewhere") / "checkpoints/best.safetensors", outside / "checkpoints/best.safetensors")
    relinked(run("best-relative") / "checkpoints/best.safetensors", "../../../outside/checkpoints/best.safetensors")
    relinked(run("best-passwd") / "checkpoints/best.safetensors", "/etc/passwd")
    relinked(run("checkpoints-elsewhere") / "checkpoints", outside / "checkpoints")
    relinked(run("config-elsewhere") / "config.yaml", "/etc/hostname")
    relinked(run("best-loop") / "checkpoints/best.safetensors", "best.safetensors")
    (run("frames-elsewhere") / "samples.csv").symlink_to("/etc/passwd")
    os.mkfifo(run("frames-pipe") / "samples.csv")
    (run("device") / "metrics.jsonl").symlink_to("/dev/zero")
    (run("no-checkpoint") / "checkpoints/best.safetensors").unlink()
    (run("pickle") / "checkpoints/best.safetensors").write_bytes(pickle.dumps({}))
    relinked(run("config-pipe") / "config.yaml", "nothing")
    for name, config in {
        "empty": b"",
        "deep": DEEP,
        "list": b"[]",
        "large": b" " * (2 << 20),
        "not-utf-8": b"\xff\xfe",
    }.items():
        (folder / f"hub-{name}").mkdir()
        (folder / f"hub-{name}/config.json").write_bytes(config)
        (folder / f"hub-{name}/model.safetensors").write_bytes(whole.read_bytes())
        cases.append(Case("hub folder", folder / f"hub-{name}", "refused"))
    (folder / "hub-link").mkdir()
    (folder / "hub-link/config.json").write_text("{}")
    (folder / "hub-link/model.safetensors").symlink_to(whole)
    (folder / "nothing").mkdir()
    return [*cases, Case("hub folder", folder / "hub-link", "refused"), Case("run folder", folder / "nothing", "refused")]
