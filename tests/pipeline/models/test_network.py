"""Checkpoints as models: headers that cannot be used, and weights that are another network's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from polyp_difom.cache.errors import RunError
from polyp_difom.pipeline.header import checked
from polyp_difom.pipeline.models import network
from polyp_difom.pipeline.models.loading import load_model
from polyp_difom.pipeline.models.network import student_of
from polyp_difom.pipeline.runs import read_checkpoint, write_checkpoint
from polyp_difom.pipeline.students.protocol import Student, build_student

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def changed(finished_run: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """`changed(edit)`: the finished run's checkpoint under an edited header."""

    def make(edit: Change) -> Path:
        tensors, header = read_checkpoint(finished_run / "checkpoints/best.safetensors")
        edit(header)
        write_checkpoint(tmp_path / "c.safetensors", tensors, header)
        return tmp_path / "c.safetensors"

    return make


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda header: header.pop("student"), "header.student: field required"),
        (lambda header: header.update(student=7), "header.student: .*, it is 7"),
        (lambda header: header.update(student="unett:8"), "unknown student 'unett'"),
        (lambda header: header.update(student="unet:9999"), "unknown U-Net width '9999'"),
        (lambda header: header.update(frame_size="64"), "header.frame_size: .*, it is '64'"),
        (lambda header: header.update(frame_size=10**9), "header.frame_size"),
        (lambda header: header.update(split=None), "header.split"),
        (lambda header: header.update(split={"policy": "seeded", "seed": 0}), "header.split.val_fraction: field required"),
        (lambda header: header.update(provenance=[]), "header.provenance"),
        (lambda header: header.update(provenance={"datasets": [{"name": 3}]}), "header.provenance.datasets.0.name"),
        (lambda header: header["provenance"]["teachers"][0].pop("licence"), "header.provenance.teachers.0.licence"),
        (lambda header: header.update(teachers=[1]), "header.teachers.0"),
    ],
)
def test_a_damaged_header_is_refused_with_its_file_and_what_is_wrong(edit: Change, said: str, changed: Callable) -> None:
    path = changed(edit)
    with pytest.raises(RunError, match=said) as caught:
        load_model(path, "cpu")
    assert caught.value.details["where"] == path
    assert caught.value.details["got"]


@pytest.mark.parametrize("header", [None, [], "unet", 3])
def test_what_is_no_header_at_all_is_refused(header: object, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be used"):
        checked(header, tmp_path)


def test_a_header_of_an_older_version_is_enough(changed: Callable) -> None:
    def old(header: dict[str, Any]) -> None:
        for name in header.keys() - {"student", "frame_size"}:
            del header[name]

    assert load_model(changed(old), "cpu").info.header == {"student": "unet:4", "frame_size": 64}


@pytest.mark.parametrize("name", ["unet:64", "unetpp:8", "light", "pranet", "smp:FPN/resnet18"])
def test_a_network_that_the_weights_are_not_of_is_never_built(
    name: str, changed: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in {"light": ["timm"], "pranet": ["timm"], "smp:FPN/resnet18": ["segmentation_models_pytorch"]}.get(name, []):
        pytest.importorskip(package)
    path, devices = changed(lambda header: header.update(student=name)), []

    def watched(*words: Any) -> Student:
        student = build_student(*words)
        devices.extend({value.device.type for value in student.state_dict().values()})
        return student

    monkeypatch.setattr(network, "build_student", watched)
    with pytest.raises(RunError, match="not those of the student"):
        load_model(path, "cpu")
    assert devices == ["meta"]


@pytest.mark.parametrize("name", ["unet:8", "light", "smp:FPN/resnet18", "smp:FPN/mit_b0"])
def test_weights_come_back_whether_or_not_a_student_can_be_built_without_memory(name: str, tmp_path: Path) -> None:
    if name != "unet:8":
        pytest.importorskip("segmentation_models_pytorch" if name.startswith("smp") else "timm")
    student = build_student(name)
    tensors = student.state_dict()
    again = student_of(tensors, {"student": name, "frame_size": 64}, tmp_path)
    assert all(torch.equal(value, tensors[key]) for key, value in again.state_dict().items())
    assert {value.device.type for value in [*again.parameters(), *again.buffers()]} == {"cpu"}
    with pytest.raises(RunError, match=f"more .1., wanted|more .1.(.|\n)*{name}"):
        student_of({**tensors, "more": torch.zeros(1)}, {"student": name, "frame_size": 64}, tmp_path)
