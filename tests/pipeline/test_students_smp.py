"""Students of segmentation_models_pytorch: taps of any architecture, and names that do not go together."""

from __future__ import annotations

import sys

import pytest
import torch

from polyp_difom.cache.errors import MissingDependencyError, UsageError
from polyp_difom.pipeline.students.protocol import build_student

ENCODER = "tu-mobilenetv3_small_050"


@pytest.fixture(autouse=True)
def _package() -> None:
    pytest.importorskip("segmentation_models_pytorch")


@pytest.mark.parametrize(
    ("name", "stride", "taps"),
    [
        ("Unet/tu-mobilenetv3_small_050", 32, {"encoder8": 8, "encoder16": 16, "bottleneck": 32, "decoder": 8}),
        ("Linknet/tu-mobilenetv3_small_050", 32, {"encoder8": 8, "encoder16": 16, "bottleneck": 32, "decoder": 8}),
        ("PSPNet/resnet18", 8, {"bottleneck": 8, "decoder": 8}),
        ("DeepLabV3Plus/resnet18", 16, {"encoder8": 8, "encoder16": 16, "bottleneck": 16, "decoder": 8}),
        ("Segformer/mit_b0", 32, {"encoder8": 8, "encoder16": 16, "bottleneck": 32, "decoder": 8}),
    ],
)
def test_taps_have_the_strides_of_the_maps_that_the_architecture_makes(name: str, stride: int, taps: dict[str, int]) -> None:
    student = build_student(f"smp:{name}").eval()
    assert (student.stride, {tap.name: tap.stride for tap in student.taps}) == (stride, taps)
    logits, maps = student.features(torch.rand(1, 3, 64, 96))
    assert logits.shape == (1, 1, 64, 96)
    for tap in student.taps:
        assert maps[tap.name].shape == (1, tap.channels, 64 // tap.stride, 96 // tap.stride)


def test_a_decoder_map_is_folded_to_stride_8_without_loss() -> None:
    student = build_student(f"smp:FPN/{ENCODER}").eval()
    frames = torch.rand(1, 3, 64, 64)
    logits, maps = student.features(frames)
    unfolded = torch.nn.functional.pixel_shuffle(maps["decoder"], 2)
    torch.testing.assert_close(student.get_submodule("head")(unfolded), logits)


@pytest.mark.parametrize(("encoder", "mean"), [("timm-tf_efficientnet_lite0", 0.5), ("resnet18", 0.485), (ENCODER, 0.485)])
def test_pixels_are_scaled_as_the_encoders_own_weights_want_them(encoder: str, mean: float) -> None:
    student = build_student(f"smp:FPN/{encoder}")
    assert float(student.mean[0]) == pytest.approx(mean)
    assert encoder in str(student.pretraining)


def test_an_encoder_without_published_weights_has_nothing_to_load() -> None:
    assert build_student("smp:FPN/tu-mobilenetv2_035", pretrained=True).pretraining is None


@pytest.mark.parametrize(
    ("name", "what", "remedy"),
    [
        ("smp", "unknown architecture ''", None),
        ("smp:Unett/resnet18", "unknown architecture 'Unett'", "Unet"),
        ("smp:DPT/resnet18", "unknown architecture 'DPT'", None),
        ("smp:Unet", "unknown encoder ''", None),
        ("smp:Unet/resnet19", "unknown encoder 'resnet19'", "resnet18"),
        ("smp:Unet/tu-mobilenetv3_smal_050", "unknown encoder", ENCODER),
        ("smp:Unet/tu-resnet18.nobody", "cannot be built", None),
        ("smp:Unet/resnet18.nobody", "cannot be built", None),
        ("smp:UnetPlusPlus/mit_b0", "cannot be built", None),
        ("smp:Unet/tu-vit_tiny_patch16_224", "cannot be built", None),
    ],
)
def test_names_that_cannot_be_built_are_refused_with_close_matches(name: str, what: str, remedy: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        build_student(name)
    assert what in caught.value.what
    assert remedy is None or remedy in str(caught.value.details["next"])


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(MissingDependencyError) as caught:
        build_student("smp:FPN/resnet18")
    assert "pip install 'polyp-difom[students]'" in str(caught.value.details["next"])
