"""Spectra and bands: Parseval, exact splits, symmetry, the stored forms."""

from __future__ import annotations

import pytest
import torch

from polyp_difom.pipeline import spectra

GRIDS = [(11, 11), (22, 22), (44, 44), (7, 12), (12, 7), (6, 6), (13, 18), (4, 4), (1, 1)]


@pytest.mark.parametrize(("h", "w"), GRIDS)
def test_the_half_spectrum_holds_the_energy_of_the_map(h: int, w: int) -> None:
    maps = torch.randn(2, 3, h, w)
    torch.testing.assert_close(spectra.energy(spectra.spectrum(maps), w), maps.square().sum((-2, -1)), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("h", "w"), [(11, 11), (22, 22), (7, 12)])
def test_without_column_weights_about_half_of_the_energy_is_missing(h: int, w: int) -> None:
    maps = torch.randn(8, h, w)
    maps -= maps.mean((-2, -1), keepdim=True)
    bare = spectra.spectrum(maps).abs().square().sum()
    assert 0.4 < (bare / maps.square().sum()).item() < 0.7


@pytest.mark.parametrize("w", [1, 2, 7, 8, 11, 22])
def test_column_weights_count_every_column_of_the_full_spectrum_once(w: int) -> None:
    assert spectra.column_weights(w).sum().item() == w


@pytest.mark.parametrize(("h", "w"), GRIDS)
def test_bands_are_real_orthogonal_and_sum_to_the_map(h: int, w: int) -> None:
    maps = torch.randn(2, 3, h, w)
    low, high = spectra.split_bands(maps)
    assert low.dtype == high.dtype == torch.float32
    torch.testing.assert_close(low + high, maps, rtol=0, atol=1e-6)
    power = [band.double().square().sum().item() for band in (low, high, maps)]
    assert power[0] + power[1] == pytest.approx(power[2], rel=1e-5)
    assert abs((low * high).sum().item()) < 1e-4 * power[2]


@pytest.mark.parametrize(("h", "w"), GRIDS)
def test_the_low_band_vanishes_outside_the_cutoff_on_both_sides(h: int, w: int) -> None:
    r = min(h, w) // 6
    low, high = (torch.fft.fft2(band.double(), norm="ortho").abs() for band in spectra.split_bands(torch.randn(3, h, w)))
    ky = torch.fft.fftfreq(h, 1 / h).round().abs()[:, None].expand(h, w)
    kx = torch.fft.fftfreq(w, 1 / w).round().abs()[None].expand(h, w)
    inside = (ky <= r) & (kx <= r)
    assert inside.sum() == (2 * r + 1) ** 2
    assert (low[:, inside] > 1e-5).all()
    assert (low[:, ~inside] < 1e-5).all()
    assert (high[:, inside] < 1e-5).all()


@pytest.mark.parametrize(("h", "w"), GRIDS)
def test_the_low_band_is_the_masked_spectrum_however_maps_lie_and_whoever_asked_first(h: int, w: int) -> None:
    spectra.low_pass.cache_clear()
    maps = torch.randn(2, 3, h, w)
    expected = spectra.inverse(spectra.spectrum(maps) * spectra.low_mask(h, w), h, w)
    with torch.inference_mode():
        spectra.split_bands(maps)
    for laid in (maps, maps.contiguous(memory_format=torch.channels_last)):
        low = spectra.split_bands(laid.requires_grad_())[0]
        torch.testing.assert_close(low, expected, rtol=0, atol=1e-6)
        low.sum().backward()


@pytest.mark.parametrize(("h", "w"), GRIDS)
def test_the_low_mask_treats_a_wave_and_its_conjugate_alike(h: int, w: int) -> None:
    mask = spectra.low_mask(h, w)
    for column in [0, *([w // 2] if w % 2 == 0 else [])]:  # the columns that hold both
        rows = mask[:, column]
        assert torch.equal(rows, rows[(-torch.arange(h)) % h])


@pytest.mark.parametrize("cells", [1, 4, 6, 11, 12, 22, 44])
def test_the_low_block_is_the_low_band_and_nothing_else(cells: int) -> None:
    maps = torch.randn(2, 3, cells, cells)
    block = spectra.low_block(spectra.spectrum(maps))
    r = cells // 6
    rebuilt = torch.zeros(2, 3, cells, cells // 2 + 1, dtype=torch.complex64)
    for row, ky in enumerate([*range(r + 1), *range(-r, 0)]):
        rebuilt[..., ky % cells, : r + 1] = block[..., row, :]
    torch.testing.assert_close(spectra.inverse(rebuilt, cells, cells), spectra.split_bands(maps)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("cells", [1, 4, 6, 11, 22, 44])
def test_the_announced_shapes_are_those_of_the_stored_arrays(cells: int) -> None:
    spec = spectra.spectrum(torch.randn(5, cells, cells))
    assert spectra.pack(spec).shape[1:] == spectra.spectrum_shape(cells, "full")
    assert spectra.pack(spectra.low_block(spec)).shape[1:] == spectra.spectrum_shape(cells, "low")


def test_a_spectrum_survives_packing_in_float16() -> None:
    spec = spectra.spectrum(torch.randn(3, 11, 11))
    assert torch.equal(spectra.unpack(spectra.pack(spec)), spec)
    torch.testing.assert_close(spectra.unpack(spectra.pack(spec).half()), spec, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cells", [5, 11, 22])
def test_a_constant_map_is_all_low(cells: int) -> None:
    low, high = spectra.split_bands(torch.full((1, cells, cells), 3.0))
    torch.testing.assert_close(low, torch.full((1, cells, cells), 3.0))
    assert high.abs().max() < 1e-5


def test_a_wave_just_beyond_the_cutoff_is_all_high() -> None:
    x = torch.arange(22) / 22
    for waves, band in ((3, 0), (4, 1)):  # the cut-off at 22 cells is 3
        wave = torch.cos(2 * torch.pi * waves * x).expand(22, 22)
        torch.testing.assert_close(spectra.split_bands(wave)[band], wave, rtol=0, atol=1e-5)
        torch.testing.assert_close(spectra.split_bands(wave.T)[band], wave.T, rtol=0, atol=1e-5)


def test_half_precision_maps_are_transformed_in_float32() -> None:
    maps = torch.randn(2, 11, 11).half()
    assert torch.equal(spectra.spectrum(maps), spectra.spectrum(maps.float()))
