"""Pictures of a store: maps lie where their frames lie, under every view."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polyp_difom.cache.errors import UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import showing
from polyp_difom.pipeline.showing import Colours, choose_samples, show

StoreMaker = Callable[..., FeatureStore]
SIDE, GAP, STRIP = 64, 6, 16
COLUMNS = 8


def lefts(sheet: Image.Image) -> list[int]:
    """Where columns begin."""
    pitch, rest = divmod(sheet.width - GAP, COLUMNS)
    assert rest == 0
    return [GAP + column * pitch for column in range(COLUMNS)]


def panel(sheet: Image.Image, row: int, column: int) -> np.ndarray:
    left, top = lefts(sheet)[column], STRIP + row * (STRIP + SIDE + GAP) + STRIP
    return np.asarray(sheet)[top : top + SIDE, left : left + SIDE]


@pytest.mark.parametrize("view", ["identity", "hflip", "vflip", "rot180"])
def test_maps_lie_over_the_frame_under_every_view(make_store: StoreMaker, view: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(showing, "_outlined", lambda picture, mask: picture)
    plain = Colours(np.zeros(3), np.eye(3), np.zeros(3), np.ones(3))  # these maps are the frame's own colours, averaged
    monkeypatch.setattr(Colours, "fit", lambda maps: plain)
    sheet = show(make_store(), ["frame3"], view)
    frame, mask, drawn = (panel(sheet, 0, column).astype(float) for column in (0, 1, 2))
    assert np.abs(frame - drawn).mean() < 12
    assert np.abs(frame[:, ::-1] - drawn).mean() > 20
    assert np.array_equal(mask[..., 0] > 0, frame[..., 0] > 127)
    cell = drawn[8:16, 16:24].reshape(-1, 3)  # enlarged without smoothing
    assert np.array_equal(cell, np.broadcast_to(cell[0], cell.shape))


def test_there_is_a_row_for_each_sample_and_a_column_for_each_band(make_store: StoreMaker) -> None:
    sheet = show(make_store(kind="low"), ["frame1", "frame7"], "hflip")
    assert sheet.height == STRIP + 2 * (STRIP + SIDE + GAP)
    high = panel(sheet, 1, 4)
    assert high.std() > 0


def test_titles_of_small_frames_do_not_run_into_one_another(make_store: StoreMaker) -> None:
    sheet = show(make_store(), ["frame1"])
    titles = np.asarray(sheet)[:STRIP].astype(int) - np.asarray(sheet)[0, 0]
    for left, following in pairwise([*lefts(sheet), sheet.width]):
        assert np.abs(titles[:, left : following - GAP]).any()
        assert not np.abs(titles[:, following - GAP : following - 1]).any()  # a letter may hang over by one


def test_a_few_samples_are_spread_over_the_store_where_none_is_named(make_store: StoreMaker) -> None:
    assert choose_samples(make_store(), []).tolist() == [0, 3, 6, 9]
    assert choose_samples(make_store(), ["frame9", "frame2"]).tolist() == [9, 2]


def test_unknown_samples_and_views_are_refused_by_name(make_store: StoreMaker) -> None:
    store = make_store(n_views=2)
    with pytest.raises(UsageError, match="no sample 'fram3'") as caught:
        show(store, ["fram3"])
    assert "frame3" in caught.value.message
    with pytest.raises(UsageError, match="no view 'vflip'"):
        show(store, view="vflip")


def test_colours_are_the_leading_directions_of_the_maps_they_are_fitted_to() -> None:
    rng = np.random.default_rng(0)
    strong, weak = rng.standard_normal((2, 1, 8, 8))
    maps = np.stack([10 * strong, weak, 0.1 * weak[:, ::-1], 0.01 * strong[:, ::-1]], 1)
    painted = Colours.fit(maps).paint(maps).astype(float)
    assert abs(np.corrcoef(painted[..., 0].ravel(), strong.ravel())[0, 1]) > 0.98
    assert abs(np.corrcoef(painted[..., 1].ravel(), weak.ravel())[0, 1]) > 0.9


@pytest.mark.parametrize("channels", [1, 2])
def test_maps_of_fewer_than_three_channels_can_be_painted(channels: int) -> None:
    maps: Any = np.random.default_rng(0).standard_normal((2, channels, 4, 4)).astype(np.float32)
    painted = Colours.fit(maps).paint(maps)
    assert painted.shape == (2, 4, 4, 3)
    assert painted[..., 0].std() > 0
