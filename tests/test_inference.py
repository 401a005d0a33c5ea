"""Three methods that compute b: the loop of the source document, its collapse, and the limit of both."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llgae_cli import inference as infer

pytestmark = pytest.mark.numeric
Problem = Callable[..., tuple[Tensor, Tensor, Tensor]]
ALPHAS = (0.0, 1.0)
SHARES = (1e-14, 1e-6, 0.3, 1.0, 1.999, 2.0, 2.4)  # beta * max h: near 0, stable, at the limit, beyond it


@pytest.fixture(scope="session")
def problem(normal: Callable[..., Tensor]) -> Problem:
    def make(seed: int, n: int = 7, K: int = 3, D: int = 6, E: int = 4) -> tuple[Tensor, Tensor, Tensor]:
        return normal(seed, n, D), normal(seed + 100, K, D), normal(seed + 200, K, D, E)

    return make


def largest(W: Tensor, alpha: float) -> float:
    return float(torch.linalg.matrix_norm(W, 2).max()) ** 2 + alpha


def close(one: Tensor, other: Tensor, tolerance: float = 1e-10) -> None:
    scale = float(other.detach().abs().max()) if other.numel() else 1.0
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_step_of_the_loop_is_a_gradient_step_on_the_likelihood(problem: Problem, alpha: float) -> None:
    x, mu, W = problem(1)
    beta, b = 0.01, torch.zeros(7, 3, 4, dtype=torch.float64)
    for T in range(1, 4):
        b.requires_grad_()
        residual = x[:, None] - mu - torch.einsum("kde,nke->nkd", W, b)
        likelihood = -residual.square().sum() / 2 - alpha * b.square().sum() / 2
        b = (b + beta * torch.autograd.grad(likelihood, b)[0]).detach()
        close(infer.loop(x, mu, W, beta, T, alpha), b, 1e-13)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("T", [1, 2, 3, 5, 16, 31])
def test_the_collapse_equals_the_loop_in_value_and_gradient(
    normal: Callable[..., Tensor],
    problem: Problem,
    T: int,
    share: float,
    alpha: float,
) -> None:
    for seed in range(3):
        leaves = problem(seed)
        beta = share / largest(leaves[2], alpha)
        for leaf in leaves:
            leaf.requires_grad_()
        weight = normal(seed + 300, 7, 3, 4)
        results = []
        for method in (infer.loop, infer.collapse):
            b = method(*leaves, beta, T, alpha)
            results.append((b, torch.autograd.grad((b * weight).sum(), leaves)))
        close(results[1][0], results[0][0])
        for one, other in zip(results[1][1], results[0][1], strict=True):
            close(one, other)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_collapse_has_a_gradient_where_eigenvalues_coincide(
    normal: Callable[..., Tensor], problem: Problem, alpha: float
) -> None:
    x, mu, _ = problem(4)
    U = torch.linalg.qr(normal(5, 3, 6, 4))[0]
    for W in (U, torch.zeros_like(U), U * torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)):
        W = W.clone().requires_grad_()
        one, other = (
            torch.autograd.grad(method(x, mu, W, 0.3, 5, alpha).square().sum(), W)[0]
            for method in (infer.collapse, infer.loop)
        )
        assert one.isfinite().all()
        close(one, other)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_collapse_tends_to_least_squares_or_ridge(problem: Problem, alpha: float) -> None:
    x, mu, W = problem(6, D=12)
    beta = 1 / largest(W, alpha)
    limit = infer.least_squares(x, mu, W, beta, 1, alpha)
    errors = [float((infer.collapse(x, mu, W, beta, T, alpha) - limit).norm()) for T in (1, 10, 100, 100_000)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 1e-3 and errors[-1] < 1e-9
    for k in range(3):
        if alpha == 0:
            expected = torch.linalg.lstsq(W[k], (x - mu[k]).T).solution.T
        else:
            expected = torch.linalg.solve(W[k].T @ W[k] + alpha * torch.eye(4), W[k].T @ (x - mu[k]).T).T
        close(limit[:, k], expected)


def test_a_rank_deficient_basis_gets_the_least_squares_answer_of_least_norm(
    problem: Problem,
) -> None:
    x, mu, W = problem(7, D=12)
    W[0, :, 3] = W[0, :, 2]  # twice the same direction
    W[1, :, 3] = 0  # a direction without length
    W[2] = 0
    b = infer.least_squares(x, mu, W, 0.1, 1, 0.0)
    for k in range(3):
        close(b[:, k], (x - mu[k]) @ torch.linalg.pinv(W[k]).T)
    assert (b[:, 1, 3] == 0).all() and (b[:, 2] == 0).all()
    # The steps never leave the row space, so they tend to that very answer.
    close(infer.collapse(x, mu, W, 1 / largest(W, 0), 1_000_000, 0.0), b, 1e-9)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("kind", infer.INFERENCES)
def test_map_and_function_agree(problem: Problem, kind: str, alpha: float) -> None:
    x, mu, W = problem(8)
    P = infer.MAPS[kind](W.mT @ W, 0.02, 5, alpha)
    c = torch.einsum("kde,nkd->nke", W, x[:, None] - mu)
    close(infer.correlations(x, mu, W), c)
    close(torch.einsum("kef,nkf->nke", P, c), infer.INFERENCES[kind](x, mu, W, 0.02, 5, alpha))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("share", [*SHARES, math.inf])
@pytest.mark.parametrize("T", [1, 2, 5])
def test_distances_equal_the_squared_residuals(problem: Problem, T: int, share: float, alpha: float) -> None:
    x, mu, W = problem(9)
    W[1, :, 1] = W[1, :, 0]  # one component without full rank
    kind = "least-squares" if math.isinf(share) else "collapse"
    beta = 0.1 if math.isinf(share) else share / largest(W, alpha)
    b = infer.INFERENCES[kind](x, mu, W, beta, T, alpha)
    residual = x[:, None] - mu - torch.einsum("kde,nke->nkd", W, b)
    G = W.mT @ W
    A, s = infer.fold(W, infer.gain(infer.MAPS[kind](G, beta, T, alpha), G))
    expected = residual.square().sum(2)
    close(infer.relative_distances(x, mu, A, s) + x.square().sum(1, keepdim=True), expected)


def test_where_the_steps_diverge_some_signs_are_negative(
    problem: Problem,
) -> None:
    W = problem(10)[2]
    beta = 2.4 / largest(W, 0.0)
    G = W.mT @ W
    _, s = infer.fold(W, infer.gain(infer.collapse_map(G, beta, 2, 0.0), G))
    assert (s < 0).any()  # two steps beyond the limit end farther away than they began


@pytest.mark.parametrize("beta", [1e-4, 0.01, 0.7])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_gauge_is_exact_for_every_number_of_steps(problem: Problem, alpha: float, beta: float) -> None:
    x, mu, W = problem(11)
    U = torch.linalg.qr(W)[0]
    gauged = infer.gauge(U, beta, alpha)
    projected = (1 - alpha * beta) * torch.einsum("kde,kfe,nkf->nkd", U, U, x[:, None] - mu)
    for kind in infer.INFERENCES:
        for T in (1, 2, 5, 50):
            b = infer.INFERENCES[kind](x, mu, gauged, beta, T, alpha)
            close(torch.einsum("kde,nke->nkd", gauged, b), projected, 1e-11)
    assert infer.step_limit(gauged, alpha) == pytest.approx(2 * beta)


@pytest.mark.parametrize("kind", infer.INFERENCES)
def test_without_latents_distances_are_those_from_the_offsets(problem: Problem, kind: str) -> None:
    x, mu, W = problem(12, E=0)
    assert infer.INFERENCES[kind](x, mu, W, 0.1, 5, 1.0).shape == (7, 3, 0)
    G = W.mT @ W
    A, s = infer.fold(W, infer.gain(infer.MAPS[kind](G, 0.1, 5, 1.0), G))
    distance = infer.relative_distances(x, mu, A, s) + x.square().sum(1, keepdim=True)
    close(distance, torch.cdist(x, mu).square())
    assert infer.step_limit(W, 1.0) == math.inf


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_step_limit_is_where_convergence_ends(problem: Problem, alpha: float) -> None:
    x, mu, W = problem(13)
    limit = infer.step_limit(W, alpha)
    assert limit == pytest.approx(2 / largest(W, alpha))
    target = infer.least_squares(x, mu, W, limit, 1, alpha)

    def error(beta: float, T: int) -> float:
        return float((infer.collapse(x, mu, W, beta, T, alpha) - target).norm())

    assert error(0.98 * limit, 4000) < error(0.98 * limit, 40)
    assert error(1.02 * limit, 4000) > 1e6 * error(1.02 * limit, 40)
    assert infer.step_limit(torch.zeros_like(W), 0.0) == math.inf


@pytest.mark.parametrize("bad", [1e30, math.inf, math.nan])
@pytest.mark.parametrize("kind", ["collapse", "least-squares"])
def test_an_overflow_comes_out_as_nan_and_never_as_another_component(problem: Problem, kind: str, bad: float) -> None:
    x, mu, W = (tensor.float() for tensor in problem(14))
    W[1] = bad
    G = W.mT @ W
    A, s = infer.fold(W, infer.gain(infer.MAPS[kind](G, 0.1, 5, 0.0), G))
    assert infer.relative_distances(x, mu, A, s)[:, 1].isnan().all()
    assert infer.step_limit(W, 0.0) == 0
