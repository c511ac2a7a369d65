"""Area resampling: a partition of the unit square at any ratio."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from polyp_difom.pipeline.resample import area_matrix, area_resample

RATIOS = [(64, 44), (64, 22), (37, 11), (11, 44), (16, 22), (7, 3), (3, 7), (5, 5), (1, 4), (4, 1)]


@pytest.mark.parametrize(("n_in", "n_out"), RATIOS)
def test_every_output_cell_is_an_average_and_every_input_cell_counts_alike(n_in: int, n_out: int) -> None:
    matrix = area_matrix(n_in, n_out)
    assert matrix.shape == (n_out, n_in)
    assert (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(1), torch.ones(n_out))
    torch.testing.assert_close(matrix.sum(0), torch.full((n_in,), n_out / n_in))


@pytest.mark.parametrize(("cells", "factor"), [(11, 2), (4, 3), (1, 8)])
def test_an_integer_ratio_is_average_pooling(cells: int, factor: int) -> None:
    maps = torch.randn(2, 3, cells * factor, cells * factor)
    torch.testing.assert_close(area_resample(maps, cells), F.avg_pool2d(maps, factor))


def test_an_integer_enlargement_repeats_cells() -> None:
    maps = torch.randn(2, 4, 4)
    torch.testing.assert_close(area_resample(maps, 12), maps.repeat_interleave(3, -1).repeat_interleave(3, -2))


@pytest.mark.parametrize(("n_in", "n_out"), RATIOS)
def test_constants_and_means_are_kept(n_in: int, n_out: int) -> None:
    maps = torch.randn(3, n_in, n_in)
    torch.testing.assert_close(area_resample(torch.full((1, n_in, n_in), 2.5), n_out), torch.full((1, n_out, n_out), 2.5))
    torch.testing.assert_close(area_resample(maps, n_out).mean((-2, -1)), maps.mean((-2, -1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axes", [(-1,), (-2,), (-2, -1)])
@pytest.mark.parametrize(("n_in", "n_out"), RATIOS)
def test_it_commutes_with_flips(n_in: int, n_out: int, axes: tuple[int, ...]) -> None:
    maps = torch.randn(2, n_in, n_in)
    torch.testing.assert_close(area_resample(maps.flip(axes), n_out), area_resample(maps, n_out).flip(axes))


def test_rows_and_columns_are_not_confused() -> None:
    maps = torch.arange(6.0).repeat(4, 1)  # varies along the columns only; 4 rows, 6 columns
    out = area_resample(maps, 2)
    assert torch.equal(out, torch.tensor([[1.0, 4.0], [1.0, 4.0]]))
