"""Outlines that close, and pictures in which truth and prediction differ by more than hue."""

from __future__ import annotations

import numpy as np
import pytest

from polyp_difom.cache.errors import DataError
from polyp_difom.pipeline.overlays import contact_sheet, outlines, overlay


def disc(height: int, width: int, radius: float, x: float, y: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.hypot(columns - x, rows - y) < radius


def enclosed_area(path: np.ndarray) -> float:
    """Signed area by the shoelace formula, positive when the path runs clockwise on a screen."""
    x, y = path.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def lightness(picture: np.ndarray) -> np.ndarray:
    return picture @ np.array([0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("seed", range(5))
def test_outlines_close_and_enclose_exactly_the_mask_minus_its_holes(seed):
    mask = np.random.default_rng(seed).random((17, 23)) > 0.4
    paths = outlines(mask)
    for path in paths:
        assert (np.abs(np.diff(np.concatenate([path, path[:1]]), axis=0)).sum(axis=1) == 1).all()
    assert sum(enclosed_area(path) for path in paths) == mask.sum()


def test_a_ring_has_two_outlines_and_an_empty_mask_none():
    ring = disc(40, 40, 15, 20, 20) & ~disc(40, 40, 6, 20, 20)
    assert len(outlines(ring)) == 2
    assert outlines(np.zeros((5, 5), bool)) == []


def test_the_truth_is_a_solid_line_and_the_prediction_a_broken_one():
    frame, mask, empty = np.zeros((200, 240, 3), np.uint8), disc(200, 240, 60, 120, 100), np.zeros((200, 240), bool)
    angles, radii = np.linspace(0, 2 * np.pi, 720, endpoint=False), np.arange(57, 63)[:, None]
    across = (np.round(100 + radii * np.sin(angles)).astype(int), np.round(120 + radii * np.cos(angles)).astype(int))
    solid = lightness(overlay(frame, mask, empty))[across].max(axis=0)
    dashed = lightness(overlay(frame, empty, mask))[across].max(axis=0)
    assert (solid > 150).all()
    assert 0.15 < (dashed < 40).mean() < 0.5
    assert np.median(dashed) < np.median(solid) - 30


@pytest.mark.parametrize("ground", [0, 128, 255])
def test_the_outline_stands_out_on_any_ground(ground):
    frame, mask = np.full((120, 120, 3), ground, np.uint8), disc(120, 120, 30, 60, 60)
    for truth, prediction in ((mask, ~mask & False), (None, mask)):
        assert np.abs(lightness(overlay(frame, truth, prediction)) - ground).max() > 100


def test_the_lines_grow_with_the_picture():
    def changed(size: int) -> float:
        frame, mask = np.full((size, size, 3), 128, np.uint8), disc(size, size, size / 4, size / 2, size / 2)
        return float((overlay(frame, mask, mask) != 128).any(axis=2).mean())

    assert changed(1040) == pytest.approx(changed(260), rel=0.2)


def test_a_caption_adds_a_strip_below_and_leaves_the_frame_alone():
    frame, mask = np.full((100, 300, 3), 90, np.uint8), disc(100, 300, 20, 50, 50)
    plain, short = overlay(frame, mask, mask), overlay(frame, mask, mask, "one line")
    long = overlay(frame, mask, mask, "many words " * 12 + "x" * 200)
    assert plain.shape == frame.shape
    assert short.shape[1:] == long.shape[1:] == (300, 3)
    assert frame.shape[0] < short.shape[0] < long.shape[0]
    assert (short[:100] == plain).all()


def test_the_legend_says_when_the_prediction_is_empty():
    frame, mask = np.full((100, 400, 3), 90, np.uint8), disc(100, 400, 20, 50, 50)
    found, missed = (overlay(frame, mask, prediction, "x")[100:] for prediction in (mask, np.zeros_like(mask)))
    assert (lightness(missed) > 100).any(axis=0).sum() > (lightness(found) > 100).any(axis=0).sum()


def test_the_legend_shows_a_solid_and_a_broken_sample():
    frame, mask = np.zeros((100, 400, 3), np.uint8), disc(100, 400, 20, 50, 50)
    legend = overlay(frame, mask, mask, "x")[100:].astype(int)
    yellow = (legend[..., 0] > legend[..., 2] + 60).any(axis=0)
    blue = (legend[..., 2] > legend[..., 0] + 60).any(axis=0)
    starts = [(np.diff(np.concatenate([[False], line]).astype(int)) == 1).sum() for line in (yellow, blue)]
    assert starts == [1, 3]


def test_a_mask_of_another_size_is_refused():
    frame, mask = np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), bool)
    for truth, prediction in ((mask.T, mask), (None, mask.T)):
        with pytest.raises(DataError, match=r"frame \[20, 30, 3\]"):
            overlay(frame, truth, prediction)


def test_a_contact_sheet_holds_pictures_of_all_sizes_in_rows():
    pictures = [np.full((height, width, 3), 200, np.uint8) for height, width in ((90, 120), (240, 320), (100, 100))]
    sheet = contact_sheet(pictures, 2)
    pale = (sheet == 200).all(axis=2)
    assert pale.sum() == pytest.approx(320 * (240 + 240 + 320), rel=0.01)
    assert sheet.shape[1] < 3 * 320
    with pytest.raises(DataError):
        contact_sheet([], 2)
