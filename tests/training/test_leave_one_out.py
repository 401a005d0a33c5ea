"""Leave-one-out costs: what a row's component would be without it, by numpy's eigenvectors, and by fitting again."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from llgae_cli.training.components import orthonormalise
from llgae_cli.training.leave_one_out import compute_correction, exclude_row
from llgae_cli.training.mixture import Mixture, MixtureScorer
from llgae_cli.training.scoring import Workspace

pytestmark = pytest.mark.numeric
DOUBLE = torch.float64


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@pytest.mark.parametrize("rho", [1e-3, 0.05, 0.9])
@pytest.mark.parametrize("E", [1, 4])
def test_the_residual_without_a_row_is_along_numpys_least_eigenvector(E: int, rho: float) -> None:
    a = draw(1, 50, E + 1)
    d = draw(2, 50, E + 1).square().sort(1, descending=True).values + 0.1
    v, w = d[:, :E], 0.95 * d[:, E]
    found = exclude_row(a[:, :E].square(), a[:, E].square(), v, w, torch.full((50,), rho, dtype=DOUBLE))
    matrix = torch.cat([v, w[:, None]], 1).diag_embed() - rho * a[:, :, None] * a[:, None, :]
    _, x = np.linalg.eigh(matrix.numpy())
    np.testing.assert_allclose(found, (a.numpy() * x[:, :, 0]).sum(1) ** 2, rtol=1e-7, atol=1e-5)


def test_a_row_without_residual_and_latents_that_are_not_coded_change_nothing() -> None:
    a2, v = draw(1, 20, 3).square(), torch.tensor([[4.0, math.inf, math.inf]], dtype=DOUBLE).expand(20, 3)
    a2[:, 1:] = 0
    w, rho = torch.ones(20, dtype=DOUBLE), torch.full((20,), 0.01, dtype=DOUBLE)
    alone = exclude_row(a2[:, :1], torch.ones(20, dtype=DOUBLE), v[:, :1], w, rho)
    torch.testing.assert_close(exclude_row(a2, torch.ones(20, dtype=DOUBLE), v, w, rho), alone)
    assert (exclude_row(a2, torch.zeros(20, dtype=DOUBLE), v, w, rho) == 0).all()
    unlinked = exclude_row(torch.zeros_like(a2), torch.full((20,), 3.0, dtype=DOUBLE), v, w, rho)
    torch.testing.assert_close(unlinked, torch.full((20,), 3.0, dtype=DOUBLE))


def test_float32_gives_finite_residuals_close_to_those_of_float64() -> None:
    residual, a2 = torch.logspace(-10, 0, 50, dtype=DOUBLE), torch.ones(50, 1, dtype=DOUBLE)
    v, w, rho = 2 * a2, a2[:, 0], 0.1 * a2[:, 0]
    arguments = (a2, residual, v, w, rho)
    single = exclude_row(*(argument.float() for argument in arguments))
    torch.testing.assert_close(single.double(), exclude_row(*arguments), rtol=0.01, atol=3e-3)
    assert (single >= residual.float()).all()


def fit(y: Tensor, E: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, axes and variances of rows."""
    v, U = torch.linalg.eigh(torch.cov(y.T, correction=0))
    return y.mean(0), U.flip(1)[:, :E], v.flip(0)[:E]


def test_it_is_what_fitting_again_without_each_row_gives() -> None:
    """Two components in 4 coordinates, 3 of them axes: all that is approximate is the variance along the residual."""
    n, scale = 40, torch.tensor([6.0, 4.0, 3.0, 1.0], dtype=DOUBLE)
    groups = [draw(k, n, 4) * scale + 50 * k for k in range(2)]
    whole = [fit(group, 3) for group in groups]
    m = Mixture(*(torch.stack(column) for column in zip(*whole, strict=True)), torch.full((2,), 0.5, dtype=DOUBLE))
    y, own = torch.cat(groups), torch.arange(2).repeat_interleave(n)
    again = []
    for i, row in enumerate(y):
        mu, U, _ = fit(y[(own == own[i]) & (torch.arange(2 * n) != i)], 3)
        again.append((row - mu).square().sum() - (U.T @ (row - mu)).square().sum())
    rest = y - m.mu[own]
    present = rest.square().sum(1) - (m.U[own].mT @ rest[:, :, None]).square().sum((1, 2))
    count = torch.full((2,), float(n), dtype=DOUBLE)
    added, true = compute_correction(y, own, m, 1.0, count, 0.0), torch.stack(again) - present
    assert true.mean() > 0.05 * present.mean()
    assert float(added.mean()) == pytest.approx(float(true.mean()), rel=0.25)
    assert float(torch.corrcoef(torch.stack([added, true]))[0, 1]) > 0.95
    assert compute_correction(y, own, m, 1.0, count, 1e9).abs().max() < 0.06 * present.max()  # only the mean moves


@pytest.mark.parametrize("E", [0, 2])
def test_costs_are_finite_and_not_negative_for_degenerate_components(E: int) -> None:
    mu, U = draw(1, 4, 5), orthonormalise(draw(2, 4, 5, E))
    m = Mixture(mu, U, torch.tensor([[9.0, 4.0], [9.0, 0.0], [0.0, 0.0], [1e-3, 0.0]], dtype=DOUBLE)[:, :E], mu[:, 0])
    y, own = torch.cat([mu, mu + draw(3, 4, 5)]), torch.arange(4).repeat(2)
    for count in (0.0, 1.0, 2.0, 1e9):
        added = compute_correction(y, own, m, 0.1, torch.full((4,), count, dtype=DOUBLE), 0.0)
        assert added.isfinite().all() and (added >= 0).all()
    assert compute_correction(y[:0], own[:0], m, 0.1, torch.ones(4), 0.0).shape == (0,)


def test_an_added_cost_moves_a_row_to_the_next_component() -> None:
    y = torch.tensor([[0.0], [1.0], [9.0]], dtype=DOUBLE).repeat(300, 1)
    m = Mixture(
        torch.tensor([[0.0], [3.0], [9.0]], dtype=DOUBLE),
        y.new_zeros(3, 1, 0),
        y.new_zeros(3, 0),
        y.new_full((3,), 1 / 3),
    )
    score = MixtureScorer(m, 1.0, Workspace())
    own = score.assign(y)
    assert own.unique().tolist() == [0, 2]
    more = torch.full((900,), 3.5, dtype=DOUBLE)
    assert score.assign(y, own, more).view(300, 3).unique(dim=0).tolist() == [[0, 1, 2]]
