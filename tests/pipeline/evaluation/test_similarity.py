"""CKA and linear probes: cases whose answer is known, and the same answer from any number of batches."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from polyp_difom.pipeline.evaluation.similarity import Fit, LinearCKA, LinearProbe, PairSums


def cka(x: Tensor, y: Tensor, batch: int = 1000) -> float | None:
    measure = LinearCKA()
    for a, b in zip(x.split(batch), y.split(batch), strict=True):
        measure.add(a, b)
    return measure.value()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 7)


def test_identical_features_have_cka_one(x: Tensor) -> None:
    assert cka(x, x) == pytest.approx(1, abs=1e-9)


def test_cka_does_not_see_rotations_factors_and_shifts(x: Tensor) -> None:
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2))).Q
    y = torch.randn(40, 3, generator=torch.Generator().manual_seed(3)) + x[:, :3]
    plain = cka(x, y)
    assert plain is not None
    assert 0.05 < plain < 0.95
    assert cka(3 * x @ rotation + 100, y - 7) == pytest.approx(plain, abs=1e-5)


def test_cka_sees_another_linear_map(x: Tensor) -> None:
    found = cka(x, x * torch.tensor([9.0, 0, 0, 0, 0, 0]))
    assert found is not None
    assert found < 0.9


def test_independent_noise_has_cka_about_zero_however_few_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    found = [cka(*torch.randn(2, 12, 64, generator=generator)) for _ in range(200)]
    assert abs(np.mean(np.array(found, float))) < 0.02  # the biased estimate is above 0.8 here


def test_the_estimate_is_the_mean_over_all_quadruples_of_samples() -> None:
    """Against the U-statistic itself (Song et al. 2012, equation 7): mean of k_ij (l_ij + l_qr - 2 l_iq) over distinct i, j, q, r."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(6, 3, generator=generator).double(), torch.randn(6, 2, generator=generator).double()
    k, l = a @ a.T, b @ b.T  # noqa: E741
    terms = [float(k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])) for i, j, q, r in permutations(range(6), 4)]
    sums = PairSums()
    sums.add(a, b)
    assert sums.hsic() / (6 * 3) == pytest.approx(np.mean(terms))


def test_batches_do_not_change_what_is_measured(x: Tensor) -> None:
    y = x.flip(1).square()
    assert cka(x, y, batch=7) == pytest.approx(cka(x, y), abs=1e-9)


def test_features_that_do_not_vary_have_no_cka(x: Tensor) -> None:
    assert cka(x, torch.ones(40, 2)) is None
    assert cka(x[:3], x[:3]) is None


def test_a_probe_finds_the_linear_map_that_is_there() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(8, 5, 4, 4, generator=generator)
    maps[:, 4] = 0  # a channel that is dead
    weight = torch.randn(3, 5, generator=generator)
    target = torch.einsum("ci,bihw->bchw", weight, maps) + torch.tensor([1.0, -2.0, 30.0])[:, None, None]
    probe = LinearProbe()
    for x, y in zip(maps.split(3), target.split(3), strict=True):
        probe.add(x.movedim(1, -1).flatten(0, 2), y.movedim(1, -1).flatten(0, 2))
    predicted = probe.solve()(maps)
    torch.testing.assert_close(predicted, target, rtol=5e-3, atol=2e-2)
    fit = Fit()
    fit.add(predicted, target)
    assert fit.explained() == pytest.approx(1, abs=1e-4)
    assert fit.cosine() == pytest.approx(1, abs=1e-4)


def test_a_fit_is_what_is_computed_by_hand() -> None:
    fit = Fit()
    fit.add(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), torch.tensor([1.0, 0.0]).view(1, 2, 1, 1))
    fit.add(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), torch.tensor([0.0, 2.0]).view(1, 2, 1, 1))
    # residual 0 + 5; around the mean (0.5, 1): 2 * 0.25 + 2 * 1
    assert fit.explained() == pytest.approx(1 - 5 / 2.5)
    assert fit.cosine() == pytest.approx(0.5)


def test_the_mean_explains_nothing_and_one_channel_has_no_cosine() -> None:
    target = torch.randn(2, 1, 3, 3)
    fit = Fit()
    fit.add(target.mean().expand(2, 1, 3, 3), target)
    assert fit.explained() == pytest.approx(0, abs=1e-6)
    assert fit.cosine() is None
    constant = Fit()
    constant.add(target, torch.ones(2, 1, 3, 3))
    assert constant.explained() is None
