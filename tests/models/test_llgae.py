"""LLGAE: encode, decode and loss are one model, whichever inference finds b."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llgae_cli.models import LLGAE, Code

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="session")
def a_model(normal: Callable[..., Tensor]) -> Callable[..., LLGAE]:
    def make(inference: str = "collapse", K: int = 4, D: int = 9, E: int = 3, share: float = 0.7, **options) -> LLGAE:
        """A float64 model with random mu and W; beta is `share` of 1 / max eigenvalue of H."""
        W = normal(2, K, D, E)
        h = float(torch.linalg.matrix_norm(W, 2).max()) ** 2 if E else 1.0
        model = LLGAE(K, D, E, beta=share / (h + options.get("alpha", 0)), inference=inference, **options).double()
        with torch.no_grad():
            model.mu.copy_(normal(1, K, D))
            model.W.copy_(W)
        return model

    return make


@pytest.fixture(scope="session")
def X(normal: Callable[..., Tensor]) -> Tensor:
    return normal(3, 40, 9)


CASES = [
    {},
    {"K": 1},
    {"E": 0},
    {"K": 1, "E": 0},
    {"E": 9},
    {"K": 50},  # more components than samples
    {"alpha": 1.0},
    {"n_step": 1},
    {"n_step": 40, "share": 1.9},
    {"n_step": 4, "share": 2.3},  # diverging steps are still steps
]


def name_of(case: dict) -> str:
    return "-".join(f"{key}{value}" for key, value in case.items()) or "plain"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_loss_of_the_collapse_equals_the_loops_in_value_and_gradient(
    a_model: Callable[..., LLGAE], X: Tensor, case: dict
) -> None:
    results = []
    for inference in ("loop", "collapse"):
        model = a_model(inference, **case)
        loss = model.loss(X)
        loss.backward()
        results.append((loss.detach(), model.mu.grad, model.W.grad))
    for one, other in zip(*results, strict=True):
        scale = float(other.abs().max()) if other.numel() else 1.0
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10 * scale)


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.parametrize("inference", ["loop", "collapse", "least-squares"])
def test_encode_decode_and_loss_are_one_model(
    a_model: Callable[..., LLGAE], X: Tensor, inference: str, case: dict
) -> None:
    model = a_model(inference, **case)
    code = model.encode(X)
    K, E = model.K, model.E
    assert code.k.shape == (40,) and code.k.dtype == torch.int64 and code.b.shape == (40, E)
    squared = (X - model.decode(code)).square().mean()
    torch.testing.assert_close(squared, model.loss(X), rtol=1e-10, atol=1e-12)
    every = torch.stack([(X - model.decode(Code(k, model.encode_in(X, k)))).square().sum(1) for k in _all_k(K)], 1)
    torch.testing.assert_close(model.measure_all(X), every, rtol=1e-9, atol=1e-9)
    own = every.gather(1, code.k[:, None])[:, 0]
    torch.testing.assert_close(own, every.min(1).values, rtol=1e-9, atol=1e-9)
    expected = model.mu[code.k] + torch.einsum("nde,ne->nd", model.W[code.k], code.b)
    torch.testing.assert_close(model.decode(code), expected)


def _all_k(K: int) -> list[Tensor]:
    return [torch.full((40,), k) for k in range(K)]


@pytest.mark.parametrize("inference", ["collapse", "least-squares"])
def test_the_gradient_by_hand_is_the_derivative(
    normal: Callable[..., Tensor], a_model: Callable[..., LLGAE], inference: str
) -> None:
    model = a_model(inference, K=2, D=5, E=2)
    x = normal(4, 6, 5)

    def loss(mu: Tensor, W: Tensor) -> Tensor:
        return torch.func.functional_call(model, {"mu": mu, "W": W}, (x,))

    model.forward = model.loss  # type: ignore[method-assign]
    leaves = (model.mu.detach().requires_grad_(), model.W.detach().requires_grad_())
    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize("inference", ["collapse", "least-squares"])
def test_an_offset_that_all_samples_share_costs_no_digits(
    a_model: Callable[..., LLGAE], X: Tensor, inference: str
) -> None:
    model = a_model(inference).float()
    x = X.float()
    expected = model.encode(x).k
    model.mu.data += 4096  # and float32 keeps three digits behind the point
    assert (model.encode(x + 4096).k == expected).float().mean() > 0.95


def test_components_without_samples_have_no_gradient(a_model: Callable[..., LLGAE], X: Tensor) -> None:
    model = a_model()
    with torch.no_grad():
        model.mu[2] += 1000
    model.loss(X).backward()
    assert 2 not in model.encode(X).k
    assert model.mu.grad is not None and model.W.grad is not None
    assert not model.mu.grad[2].any() and not model.W.grad[2].any() and model.mu.grad[0].any()


@pytest.mark.parametrize("inference", ["loop", "collapse", "least-squares"])
def test_of_equal_components_only_one_counts(a_model: Callable[..., LLGAE], X: Tensor, inference: str) -> None:
    model = a_model(inference, K=2)
    with torch.no_grad():
        model.mu[1], model.W[1] = model.mu[0], model.W[0]
    single = a_model(inference, K=2)
    single.mu.data, single.W.data = model.mu.data[:1], model.W.data[:1]
    single.K = 1
    loss = model.loss(X)
    loss.backward()
    torch.testing.assert_close(loss, single.loss(X))
    single.loss(X).backward()
    assert model.mu.grad is not None and single.mu.grad is not None
    torch.testing.assert_close(model.mu.grad.sum(0), single.mu.grad[0])  # counted once, not once for each
    assert torch.equal(model.encode(X).k, model.encode(X).k)


def test_a_single_component_with_no_basis_is_the_distance_to_its_offset(
    a_model: Callable[..., LLGAE], X: Tensor
) -> None:
    model = a_model(K=1, E=0)
    torch.testing.assert_close(model.loss(X), (X - model.mu[0]).square().mean())


def test_codes_decode_without_the_sample(a_model: Callable[..., LLGAE]) -> None:
    model = a_model()
    code = Code(torch.tensor([2, 0]), torch.tensor([[1.0, 0, 0], [0, 0, 0]], dtype=torch.float64))
    torch.testing.assert_close(model.decode(code), torch.stack([model.mu[2] + model.W[2, :, 0], model.mu[0]]))


def test_no_samples_give_no_codes(a_model: Callable[..., LLGAE], X: Tensor) -> None:
    for inference in ("loop", "collapse", "least-squares"):
        code = a_model(inference).encode(X[:0])
        assert code.k.shape == (0,) and code.b.shape == (0, 3)


def test_an_overflow_is_nan_in_the_loss_of_every_inference(a_model: Callable[..., LLGAE], X: Tensor) -> None:
    for inference in ("loop", "collapse", "least-squares"):
        model = a_model(inference)
        model.W.data[1] = math.inf
        assert not model.loss(X).isfinite()
        assert not model.decode(model.encode(X)).isfinite().all()


@pytest.mark.parametrize("K", [5, 40])
@pytest.mark.parametrize("inference", ["collapse", "least-squares"])
def test_a_code_depends_on_its_row_alone_to_the_last_bit(normal: Callable[..., Tensor], K: int, inference: str) -> None:
    D, E = 30, 4
    model = LLGAE(K, D, E, beta=0.01, inference=inference)
    with torch.no_grad():
        model.mu.copy_(100 * normal(1, K, D))  # far from each other: differences of squares lose digits
        model.W.copy_(normal(2, K, D, E))
        model.mu[3], model.W[3] = model.mu[1], model.W[1]  # equal components: every tie goes to the first
        x = model.mu[torch.arange(3000) % K] + normal(3, 3000, D).float()
    k, b, _ = model.encode(x)
    assert not (k == 3).any() and (k == 1).any()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    permuted = model.encode(x[order])
    assert torch.equal(permuted.k, k[order]) and torch.equal(permuted.b, b[order])
    for size in (1, 7, 500):
        few = model.encode(x[:size])
        assert torch.equal(few.k, k[:size]) and torch.equal(few.b, b[:size])


def test_float32_latents_are_those_of_float64_but_for_a_few_ulps(normal: Callable[..., Tensor]) -> None:
    K, D, E = 3, 700, 5
    model = LLGAE(K, D, E, beta=0.01)
    with torch.no_grad():
        model.mu.copy_(normal(1, K, D))
        model.W.copy_(torch.linalg.qr(normal(2, K, D, E))[0])
        scale = torch.logspace(-30, 30, 200)[:, None]  # each row has its own power of two
        x = model.mu[0] + scale * normal(3, 200, D).float()
        x[0] = model.mu[0]  # a row of zeros
        k = torch.zeros(200, dtype=torch.int64)
        b, exact = model.encode_in(x, k), model.double().encode_in(x.double(), k)
    length = torch.linalg.vector_norm(x.double() - model.mu[0], dim=1, keepdim=True)
    P = model.maps()[0].abs().amax()
    assert ((b - exact).abs() <= 2.0**-22 * P * length + 2.0**-24 * exact.abs()).all()
    assert not b[0].any()


def test_a_row_that_is_not_finite_changes_no_other(normal: Callable[..., Tensor]) -> None:
    model = LLGAE(2, 6, 2, beta=0.01)
    with torch.no_grad():
        model.W.copy_(normal(2, 2, 6, 2))
    x = normal(3, 9, 6).float()
    k, b, _ = model.encode(x)
    x[4, 2] = math.inf
    broken = model.encode(x)
    others = torch.arange(9) != 4
    assert torch.equal(broken.k[others], k[others]) and torch.equal(broken.b[others], b[others])
    assert not broken.b[4].isfinite().any()


def test_latents_of_basis_vectors_of_very_different_lengths_keep_their_digits(normal: Callable[..., Tensor]) -> None:
    D, E = 784, 6
    model = LLGAE(1, D, E, inference="least-squares")
    with torch.no_grad():
        model.W.copy_(torch.linalg.qr(normal(2, 1, D, E))[0] * torch.logspace(0, -2.5, E))
        model.mu.zero_()
        x, k = normal(3, 100, D).float(), torch.zeros(100, dtype=torch.int64)
        P = model.maps()[0]
        b, exact = model.encode_in(x, k, P), x.double() @ model.W[0].double() @ P[0].double().T
    assert ((b - exact).abs().amax(0) <= 1e-5 * exact.abs().amax(0)).all()


@pytest.mark.parametrize("far", [1e2, 1e4])
def test_components_with_offsets_far_along_their_own_bases_are_told_apart(
    normal: Callable[..., Tensor], far: float
) -> None:
    K, D, E = 20, 30, 2
    model = LLGAE(K, D, E, inference="least-squares")
    with torch.no_grad():
        W = torch.linalg.qr(normal(2, K, D, E))[0]
        model.W.copy_(W)
        # Pairs of offsets on both sides: the rows are near the mean of all, where only the offsets' squares are large.
        model.mu.copy_(normal(1, K, D) + far * torch.tensor([1.0, -1.0]).repeat(K // 2)[:, None] * W[:, :, 0])
        x = normal(3, 2000, D).float()
        k = model.encode(x).k
        model, x = model.double(), x.double()
        codes = [Code(j, model.encode_in(x, j)) for j in torch.arange(K)[:, None].expand(K, len(x))]
        every = torch.stack([model.residual(x, code).square().sum(1) for code in codes], 1)
    least = every.min(1).values
    assert (every.gather(1, k[:, None])[:, 0] <= least * (1 + 1e-9)).all()
