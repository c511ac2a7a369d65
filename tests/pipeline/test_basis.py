"""The fixed channel basis: standardised, orthogonal, reproducible, and commuting with the FFT."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polyp_difom.cache.manifest import BasisKind
from polyp_difom.pipeline import spectra
from polyp_difom.pipeline.basis import Basis, Moments, fit_basis, mixing_kind, mixing_matrix


def correlated(channels: int, n: int = 6, cells: int = 9, seed: int = 0) -> torch.Tensor:
    """Maps [n, channels, cells, cells] with offsets and widely differing, correlated channels."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((n, cells, cells, channels)) * np.geomspace(30, 0.1, channels)
    mixed = mixed @ np.linalg.qr(rng.standard_normal((channels, channels)))[0] + 5 * rng.standard_normal(channels)
    return torch.from_numpy(mixed).movedim(-1, 1).float()


def fitted(maps: torch.Tensor, channels: int, seed: int = 0, kind: BasisKind = "phi-s") -> Basis:
    moments = Moments()
    moments.add(maps)
    return fit_basis(moments, channels, seed, kind)


def test_moments_of_batches_are_those_of_all_cells_together() -> None:
    maps, moments = correlated(5), Moments()
    for part in maps.split([1, 3, 2]):
        moments.add(part)
    cells = maps.double().movedim(1, -1).reshape(-1, 5).numpy()
    assert moments.count == len(cells)
    np.testing.assert_allclose(moments.mean(), cells.mean(0))
    np.testing.assert_allclose(moments.covariance(), np.cov(cells.T, bias=True), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("native", "channels"), [(8, 8), (16, 8), (12, 4), (5, 1), (20, 16)])
def test_a_hadamard_basis_gives_every_channel_the_same_variance(native: int, channels: int) -> None:
    maps = correlated(native)
    stored = fitted(maps, channels).apply(maps)
    assert stored.shape == (6, channels, 9, 9)
    assert stored.dtype == torch.float32
    variances = stored.var((0, 2, 3), correction=0)
    torch.testing.assert_close(variances, torch.ones(channels), rtol=0, atol=1e-3)
    torch.testing.assert_close(stored.mean((0, 2, 3)), torch.zeros(channels), rtol=0, atol=1e-4)


@pytest.mark.parametrize("channels", [6, 12])
def test_other_sizes_have_unit_variance_on_average(channels: int) -> None:
    maps = correlated(12)
    basis = fitted(maps, channels)
    assert basis.mixing == "random-orthogonal"
    assert basis.apply(maps).var((0, 2, 3), correction=0).mean().item() == pytest.approx(1, abs=1e-3)


def test_without_mixing_the_variances_would_differ_widely() -> None:
    maps = correlated(8)
    moments = Moments()
    moments.add(maps)
    values = np.linalg.eigvalsh(moments.covariance())
    assert values.max() / values.min() > 100  # what the mixing evens out


def test_variance_reports_what_apply_yields_on_other_maps() -> None:
    basis, other, moments = fitted(correlated(8), 4), correlated(8, seed=1), Moments()
    moments.add(other)
    assert basis.variance(moments) == pytest.approx(basis.apply(other).var((0, 2, 3), correction=0).mean().item(), rel=1e-4)


def test_explained_variance_is_a_descending_share() -> None:
    explained = fitted(correlated(12), 4).explained
    assert explained.shape == (12,)
    assert explained.sum() == pytest.approx(1)
    assert (np.diff(explained) <= 0).all()
    assert explained[0] > 0.3


@pytest.mark.parametrize("channels", [1, 4, 6, 12])
def test_rotation_rows_are_orthonormal(channels: int) -> None:
    rotation = fitted(correlated(12), channels).rotation
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(channels), atol=1e-10)


def test_the_stored_channels_span_the_leading_directions() -> None:
    maps = correlated(12)
    basis = fitted(maps, 4)
    centred = maps.double().movedim(1, -1).reshape(-1, 12).numpy() - basis.mean
    kept = (centred @ basis.rotation.T).var(0).sum() / centred.var(0).sum()
    assert kept == pytest.approx(basis.explained[:4].sum(), rel=1e-6)


def test_it_commutes_with_the_fourier_transform() -> None:
    maps = correlated(12)
    basis = fitted(maps, 4)
    weight = torch.from_numpy(basis.rotation / basis.scale).to(torch.complex64)
    spec = spectra.spectrum(maps - torch.from_numpy(basis.mean).float()[:, None, None])
    after = torch.einsum("ci,bihk->bchk", weight, spec)
    torch.testing.assert_close(spectra.spectrum(basis.apply(maps)), after, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("channels", [6, 8])
def test_the_same_moments_give_the_same_bits(channels: int) -> None:
    one, two = fitted(correlated(12), channels, seed=3), fitted(correlated(12), channels, seed=3)
    assert one.rotation.tobytes() == two.rotation.tobytes()
    assert (one.mean.tobytes(), one.scale) == (two.mean.tobytes(), two.scale)


def test_the_seed_moves_a_random_mixing() -> None:
    assert not np.allclose(fitted(correlated(12), 6, seed=0).rotation, fitted(correlated(12), 6, seed=1).rotation)


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 64])
def test_mixing_matrices_are_orthogonal(channels: int) -> None:
    matrix = mixing_matrix(channels, seed=0)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(channels), atol=1e-12)
    power_of_two = channels in (1, 2, 64)
    assert mixing_kind(channels) == ("hadamard" if power_of_two else "random-orthogonal")
    assert np.allclose(np.abs(matrix), channels**-0.5) == power_of_two


@pytest.mark.parametrize("value", [0.0, 0.1, 100.0])
def test_constant_maps_give_finite_channels(value: float) -> None:
    maps = torch.full((4, 8, 5, 5), value)
    basis = fitted(maps, 4)
    assert np.isfinite(basis.explained).all()
    stored = basis.apply(maps)
    assert torch.isfinite(stored.half()).all()


def test_a_dead_channel_is_no_obstacle() -> None:
    maps = correlated(8)
    maps[:, 3] = 0
    variances = fitted(maps, 8).apply(maps).var((0, 2, 3), correction=0)
    torch.testing.assert_close(variances, torch.ones(8), rtol=0, atol=1e-3)


def test_a_basis_of_constant_maps_does_not_blow_up_other_frames() -> None:
    basis = fitted(torch.full((4, 8, 5, 5), 0.1), 4)
    assert torch.isfinite(basis.apply(correlated(8)).half()).all()


def test_an_offset_far_larger_than_the_spread_costs_no_accuracy() -> None:
    maps = torch.randn(6, 8, 9, 9) + 2.0**14
    basis = fitted(maps, 8)
    exact = np.einsum("ci,bihw->bchw", basis.rotation / basis.scale, maps.double().numpy() - basis.mean[:, None, None])
    np.testing.assert_allclose(basis.apply(maps).numpy(), exact, rtol=0, atol=2e-3)  # the mean itself is rounded to 2^-10


def test_pca_leaves_the_leading_directions_unmixed_and_divides_by_one_number() -> None:
    maps = correlated(12)
    variances = fitted(maps, 4, kind="pca").apply(maps).var((0, 2, 3), correction=0)
    explained = fitted(maps, 4, kind="pca").explained[:4]
    torch.testing.assert_close(variances, torch.from_numpy(explained / explained.mean()).float(), rtol=1e-3, atol=1e-3)
    assert variances.max() / variances.min() > 2


def test_standard_keeps_the_widest_of_the_teachers_own_channels_each_with_variance_one() -> None:
    maps = correlated(12)
    stored = fitted(maps, 4, kind="standard").apply(maps)
    widest = maps.var((0, 2, 3), correction=0).argsort(descending=True)[:4]
    own = maps[:, widest]
    alone = (own - own.mean((0, 2, 3), keepdim=True)) / own.std((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(stored, alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["phi-s", "pca", "standard"])
def test_fewer_stored_channels_are_those_that_a_smaller_basis_would_have_stored(kind: BasisKind) -> None:
    maps = correlated(12)
    large, small = fitted(maps, 8, kind=kind), fitted(maps, 4, kind=kind)
    narrowed = torch.einsum("kc,bchw->bkhw", torch.from_numpy(large.narrowing(4, 0)).float(), large.apply(maps))
    torch.testing.assert_close(narrowed, small.apply(maps), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 100.0])
def test_a_standard_basis_of_constant_maps_is_finite(value: float) -> None:
    maps = torch.full((4, 8, 5, 5), value)
    assert torch.isfinite(fitted(maps, 4, kind="standard").apply(maps).half()).all()
