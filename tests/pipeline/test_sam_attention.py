"""SAM's fused attention against the package's own, on random weights: every way of computing it, every kind of block."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention
from torch import nn

from polyp_difom.pipeline.teachers.attention import FusedAttention, Way, fuse_attention, restore_attention
from polyp_difom.pipeline.teachers.protocol import weights_digest

WAYS: tuple[Way, ...] = ("fold", "mask", "heads")


def random_weights(module: nn.Module) -> Any:
    for parameter in module.parameters():  # positions start at zero
        nn.init.normal_(parameter, std=0.2)
    return module.eval().requires_grad_(False)


def encoder(cells: int, window: int, rel_pos: bool = True, dim: int = 48, heads: int = 3) -> ImageEncoderViT:
    """Two windowed blocks and a global one."""
    made = ImageEncoderViT(
        depth=3, embed_dim=dim, img_size=8 * cells, mlp_ratio=2, norm_layer=partial(nn.LayerNorm, eps=1e-6), num_heads=heads,
        patch_size=8, qkv_bias=True, use_rel_pos=rel_pos, global_attn_indexes=(1,), window_size=window, out_chans=8,
    )  # fmt: skip
    return random_weights(made)


@pytest.mark.parametrize("rel_pos", [True, False])
@pytest.mark.parametrize("dim", [(32, 4), (48, 3), (40, 1)])
@pytest.mark.parametrize("grid", [(4, 4), (5, 3), (1, 7)])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_packages_attention(
    way: Way, grid: tuple[int, int], dim: tuple[int, int], rel_pos: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    own = random_weights(Attention(dim[0], dim[1], use_rel_pos=rel_pos, input_size=grid))
    tokens = torch.randn(2, *grid, dim[0])
    fused = FusedAttention(own, grid, windowed=True)
    monkeypatch.setattr(fused, "way", lambda device: way)
    torch.testing.assert_close(fused(tokens), own(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_positions_matter_and_are_not_transposed(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    own = random_weights(Attention(16, 2, use_rel_pos=True, input_size=(4, 4)))
    tokens = 3 * torch.randn(1, 4, 4, 16)
    swapped = copy.deepcopy(own)
    swapped.rel_pos_h, swapped.rel_pos_w = own.rel_pos_w, own.rel_pos_h
    fused = FusedAttention(swapped, (4, 4), windowed=False)
    monkeypatch.setattr(fused, "way", lambda device: way)
    assert (fused(tokens) - own(tokens)).abs().max() > 1e-2


def test_positions_of_another_length_are_interpolated_as_the_package_does() -> None:
    own = random_weights(Attention(16, 2, use_rel_pos=True, input_size=(7, 7)))
    tokens = torch.randn(2, 4, 4, 16)
    torch.testing.assert_close(FusedAttention(own, (4, 4), windowed=False)(tokens), own(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("cells", "window"), [(4, 2), (5, 2), (7, 3), (6, 14), (4, 0)])
@pytest.mark.parametrize("rel_pos", [True, False])
def test_an_encoder_gives_the_same_maps(cells: int, window: int, rel_pos: bool) -> None:
    torch.manual_seed(0)
    own = encoder(cells, window, rel_pos)
    fused = copy.deepcopy(own)
    fuse_attention(fused)
    assert all(isinstance(block.attn, FusedAttention) for block in fused.blocks)
    frames = torch.randn(2, 3, 8 * cells, 8 * cells)
    torch.testing.assert_close(fused(frames), own(frames), rtol=1e-5, atol=1e-5)


def test_bfloat16_is_no_further_from_float32_than_the_packages_own() -> None:
    torch.manual_seed(0)
    own = encoder(8, 4)
    fused = copy.deepcopy(own)
    fuse_attention(fused)
    frames = torch.randn(2, 3, 64, 64)
    exact = own(frames)
    with torch.autocast("cpu", torch.bfloat16):
        errors = [((made(frames).float() - exact).norm() / exact.norm()).item() for made in (own, fused)]
    assert 0 < errors[1] < 1.2 * errors[0]
    assert errors[1] < 0.05


def test_the_state_dict_and_its_digest_stay() -> None:
    own = encoder(4, 2)
    names, digest = list(own.state_dict()), weights_digest(own)
    fuse_attention(own)
    assert sorted(own.state_dict()) == sorted(names)
    assert weights_digest(own) == digest
    restore_attention(own)
    assert list(own.state_dict()) == names
    assert weights_digest(own) == digest


def test_the_packages_attention_comes_back() -> None:
    own = encoder(5, 2)
    again = copy.deepcopy(own)
    fuse_attention(again)
    restore_attention(again)
    assert all(type(block.attn) is Attention for block in again.blocks)
    frames = torch.randn(1, 3, 40, 40)
    assert torch.equal(again(frames), own(frames))


@pytest.mark.parametrize(
    ("windowed", "device", "way"),
    [(True, "cpu", "mask"), (True, "cuda", "mask"), (False, "cpu", "heads"), (False, "cuda", "fold")],
)
def test_global_blocks_never_write_all_masks_out(windowed: bool, device: str, way: Way) -> None:
    fused = FusedAttention(Attention(16, 2, use_rel_pos=True, input_size=(4, 4)), (4, 4), windowed)
    assert fused.way(torch.device(device)) == way
