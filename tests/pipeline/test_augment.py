"""Augmentation: exact flips, one matrix for frame, mask and map, colour within range, draws from the generator alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from polyp_difom.pipeline import augment
from polyp_difom.pipeline.data.frames import VIEWS, flip_axes

AXES = [flip_axes(view) for view in VIEWS]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blob(side: int, x: float, y: float, sigma: float = 0.08) -> Tensor:
    """A Gaussian blob [1, 1, side, side] at (x, y) of the unit square."""
    at = (torch.arange(side) + 0.5) / side
    return torch.exp(-((at[None, :] - x) ** 2 + (at[:, None] - y) ** 2) / (2 * sigma**2))[None, None]


def centre(maps: Tensor) -> tuple[float, float]:
    """(x, y) of the centre of mass in the unit square."""
    at = (torch.arange(maps.shape[-1]) + 0.5) / maps.shape[-1]
    maps = maps[0, 0] / maps.sum()
    return (maps.sum(0) @ at).item(), (maps.sum(1) @ at).item()


def test_each_row_is_flipped_under_its_own_view_exactly() -> None:
    tensor = torch.randn(8, 3, 6, 6)
    before = tensor.clone()
    views = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
    flips = augment.rows_by_view(views, AXES)
    out = augment.flip_views(tensor, flips)
    for row, view in enumerate(views.tolist()):
        assert torch.equal(out[row], tensor[row].flip(AXES[view]))
    assert torch.equal(tensor, before)
    assert torch.equal(augment.flip_views(out, flips), tensor)


def test_the_identity_leaves_frames_and_maps_unchanged() -> None:
    still = torch.eye(2, 3).expand(2, 2, 3)
    for side in (8, 11, 64):
        tensor = torch.rand(2, 3, side, side)
        torch.testing.assert_close(augment.resample(tensor, still), tensor, rtol=0, atol=1e-5)
        mask = (tensor > 0.5).float()
        assert torch.equal(augment.resample(mask, still, mode="nearest"), mask)


@pytest.mark.parametrize("seed", range(6))
def test_one_matrix_moves_frame_mask_and_map_alike(seed: int) -> None:
    matrices = next(m for m in augment.draw_affine(generator(seed), 64).split(1) if not torch.equal(m[0], torch.eye(2, 3)))
    frame, mask, maps = blob(64, 0.45, 0.6), (blob(64, 0.45, 0.6) > 0.5).float(), blob(8, 0.45, 0.6)
    moved = [
        centre(augment.resample(frame, matrices)),
        centre(augment.resample(mask, matrices, mode="nearest")),
        centre(augment.resample(maps, matrices)),
    ]
    assert math.dist(moved[0], moved[1]) < 1 / 64
    assert math.dist(moved[0], moved[2]) < 0.5 / 8
    point = torch.tensor([2 * moved[0][0] - 1, 2 * moved[0][1] - 1, 1.0])
    source = (matrices[0] @ point + 1) / 2  # the matrix maps output to input
    assert math.dist(source.tolist(), (0.45, 0.6)) < 1 / 64


def test_half_of_the_frames_stay_and_the_others_stay_within_bounds() -> None:
    matrices = augment.draw_affine(generator(), 4000)
    still = (matrices == torch.eye(2, 3)).all((1, 2))
    assert still.float().mean().item() == pytest.approx(1 - augment.AFFINE_SHARE, abs=0.03)
    linear, shift = matrices[~still][:, :, :2], matrices[~still][:, :, 2]
    zoom = linear.det().rsqrt()
    assert 1 / augment.ZOOM - 1e-5 <= zoom.min() < 0.8
    assert 1.25 < zoom.max() <= augment.ZOOM + 1e-5
    angle = torch.atan2(linear[:, 1, 0], linear[:, 0, 0]).rad2deg()
    assert angle.abs().max() <= augment.ROTATION + 1e-3
    assert angle.min() < -20
    assert angle.max() > 20
    assert shift.abs().max() <= 2 * augment.SHIFT  # the square is two units wide
    similarity = linear @ linear.transpose(1, 2) * zoom.square()[:, None, None]
    torch.testing.assert_close(similarity, torch.eye(2).expand_as(similarity), rtol=0, atol=1e-4)


def test_what_lies_outside_is_mirrored_in() -> None:
    ones = torch.ones(64, 1, 16, 16)
    assert torch.allclose(augment.resample(ones, augment.draw_affine(generator(), 64)), ones)


def test_colour_stays_within_range_and_shape() -> None:
    frames = torch.rand(16, 3, 8, 8)
    before = frames.clone()
    out = augment.jitter_colour(frames, augment.draw_colour(generator(), len(frames)))
    assert out.shape == frames.shape
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.equal(frames, before)


def test_colour_differs_between_frames_and_moves_no_pixel() -> None:
    frames = torch.full((4, 3, 8, 8), 0.5)
    frames[..., :4] = 0.4
    out = augment.jitter_colour(frames, augment.draw_colour(generator(), len(frames)))
    assert all(torch.equal(row[..., :4], row[..., :1].expand(3, 8, 4)) for row in out)
    assert all((row[..., 7] > row[..., 0]).all() for row in out)
    assert len({round(row.mean().item(), 4) for row in out}) == 4


def test_the_same_generator_state_gives_the_same_output() -> None:
    for draw in (lambda g: augment.draw_affine(g, 8), lambda g: augment.draw_colour(g, 8)):
        torch.manual_seed(1)
        first = draw(generator(5))
        torch.manual_seed(2)
        assert torch.equal(first, draw(generator(5)))
        assert not torch.equal(first, draw(generator(6)))
