"""Arithmetic is counted as one would by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.bench.complexity import Complexity, complexity
from polyp_difom.pipeline.students.protocol import build_student


def test_a_small_network_is_counted_as_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 16 x 16 cells x 8 x 3 x 9
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),  # 16 x 16 cells x 8 x 9: depthwise
        nn.Upsample(scale_factor=2),
        nn.Conv2d(8, 4, 1, bias=False),  # 32 x 32 cells x 4 x 8
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5, bias=False),  # 4 x 5
    )
    macs = 256 * 8 * 27 + 256 * 8 * 9 + 1024 * 4 * 8 + 4 * 5
    parameters = (8 * 27 + 8) + 16 + 8 * 9 + 4 * 8 + 4 * 5
    assert complexity(network, 32) == Complexity(parameters, macs, 2 * macs)


def test_the_unet_is_counted_as_by_hand() -> None:
    widths, sides = [32, 64, 128, 256, 512], [352 >> level for level in range(5)]
    encoder = sum(9 * s * s * (a * b + b * b) for a, b, s in zip([3, *widths], widths, sides, strict=False))
    decoder = sum(9 * s * s * ((a + b) * b + b * b) for a, b, s in zip(widths[:0:-1], widths[3::-1], sides[3::-1], strict=True))
    counted = complexity(build_student("unet"), 352)
    assert counted.macs == encoder + decoder + 352 * 352 * 32 == 26_374_701_056
    assert counted.flops == 2 * counted.macs


def test_counting_leaves_the_network_as_it_is() -> None:
    student = build_student("unet:4").train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    complexity(student, 64)
    assert all(module.training for module in student.modules())
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_a_side_that_does_not_fit_is_refused_in_the_students_words() -> None:
    with pytest.raises(UsageError, match="does not fit"):
        complexity(build_student("unet:4"), 63)
