"""Soft LLGAE: what it is for given gates, and what it becomes when they harden."""

import pytest
import torch

from llgae_cli.models import LLGAE, Code, SoftLLGAE

pytestmark = pytest.mark.numeric
K, D, E, N = 4, 9, 3, 60


def a_model(inference: str = "collapse", tau: float = 0.3, gate_dim: int = 0, alpha: float = 0.0) -> SoftLLGAE:
    generator = torch.Generator().manual_seed(1)
    model = SoftLLGAE(
        K, D, E, tau=tau, gate_dim=gate_dim, beta=0.02, n_step=6, alpha=alpha, inference=inference
    ).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def samples() -> torch.Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_for_given_gates_inference_is_the_steps_of_one_affine_model_a_sample(alpha: float) -> None:
    model, x = a_model(alpha=alpha), samples()
    g = torch.softmax(-model.tau * torch.cdist(x, model.mu).square(), 1)
    W, m = torch.einsum("nk,kde->nde", g, model.W), g @ model.mu
    b = torch.zeros(N, E, dtype=torch.float64)
    for _ in range(model.n_step):  # the source's steps, one by one
        b = b + model.beta * (torch.einsum("nde,nd->ne", W, x - m - torch.einsum("nde,ne->nd", W, b)) - alpha * b)
    code = model.encode(x)
    assert torch.allclose(code.b[:, E:], g) and torch.allclose(code.b[:, :E], b)
    x_hat = m + torch.einsum("nde,ne->nd", W, b)
    assert torch.allclose(model.decode(code), x_hat)
    assert torch.allclose(model.loss(x), (x - x_hat).square().mean())


def test_with_large_tau_it_is_the_hard_model_with_the_nearest_mean() -> None:
    model, x = a_model(tau=1e4), samples()
    hard = LLGAE(K, D, E, beta=model.beta, n_step=model.n_step).double()
    hard.load_state_dict({"mu": model.mu, "W": model.W})
    k = torch.cdist(x, model.mu).argmin(1)
    code = model.encode(x)
    assert torch.equal(code.b[:, E:].argmax(1), k)
    assert torch.allclose(code.b[:, :E], hard.encode_in(x, k))
    assert torch.allclose(model.decode(code), hard.decode(Code(k, hard.encode_in(x, k))))


def loss_at(model: SoftLLGAE, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Mean L2 for given embeddings w (n, F), from the definition: one affine model a sample, and b in it."""
    g = torch.softmax(-(w[:, None] - model.a).square().sum(2) / 2, 1)
    W, m = torch.einsum("nk,kde->nde", g, model.W), g @ model.mu
    if model.inference == "least-squares":
        b = torch.linalg.lstsq(W, (x - m)[:, :, None]).solution[:, :, 0]
    else:
        b = torch.zeros(len(x), E, dtype=x.dtype)
        for _ in range(model.n_step):
            b = b + model.beta * torch.einsum("nde,nd->ne", W, x - m - torch.einsum("nde,ne->nd", W, b))
    return (x - m - torch.einsum("nde,ne->nd", W, b)).square().mean()


@pytest.mark.parametrize("gate_dim", [0, 2])
@pytest.mark.parametrize("inference", ["collapse", "least-squares"])
def test_the_loss_is_that_of_the_code_and_has_the_gradient_of_its_values(inference: str, gate_dim: int) -> None:
    """With gates from an embedding, the gradient is that at the embedding of the code, held constant."""
    model, x = a_model(inference, gate_dim=gate_dim), samples()
    loss = model.loss(x)
    code = model.encode(x)
    assert torch.allclose(loss, (x - model.decode(code)).square().mean())
    w = code.b[:, E:]
    if gate_dim:
        assert torch.allclose(loss, loss_at(model, x, w))
    loss.backward()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter += step * direction
                values.append(loss_at(model, x, w) if gate_dim else model.loss(x))
                parameter -= step * direction
        slope, size = float(values[0] - values[1]) / 2e-5, float(parameter.grad.norm())
        assert size > 1e-3, name  # there is something to compare
        assert float((parameter.grad * direction).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-6 * size), name
    assert {name for name, _ in model.named_parameters()} == {"mu", "W", *(["a"] if gate_dim else [])}


def test_the_ascent_on_the_embedding_never_lowers_the_likelihood() -> None:
    """Its initial point is the best of the K centres, where one gate is close to 1."""
    x = samples()
    squared = []
    for steps in (1, 5, 25):
        model = a_model("least-squares", gate_dim=2)
        model.n_step = steps
        squared.append((x - model.decode(model.encode(x))).square().sum(1))
    assert (squared[1] <= squared[0] + 1e-9).all() and (squared[2] <= squared[1] + 1e-9).all()
    assert squared[2].sum().item() < squared[0].sum().item()


def test_chunks_agree_and_no_samples_give_no_codes() -> None:
    for gate_dim in (0, 2):
        model, x = a_model("least-squares", gate_dim=gate_dim), samples()
        whole, parts = model.encode(x), torch.cat([model.encode(part).b for part in x.split(7)])
        assert torch.allclose(whole.b, parts)
        assert model.encode(x[:0]).b.shape == (0, model.E)
