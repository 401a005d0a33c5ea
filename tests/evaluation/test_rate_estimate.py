"""The estimate of the rate of a model without a codec."""

import math

import pytest
import torch

from llgae_cli.evaluation import measure
from llgae_cli.evaluation.metrics import entropy
from llgae_cli.evaluation.rate import Rate
from llgae_cli.evaluation.rate_estimate import SHARE, estimate_rate, quantisation_axes
from llgae_cli.models import LLGAE
from llgae_cli.tasks import Samples

pytestmark = pytest.mark.numeric


def samples(n: int = 20_000, scale: float = 30.0) -> Samples:
    """Gaussian values of variance scale^2 / (i + 1)^2 along axis i of 8."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 8, generator=generator) * scale / torch.arange(1, 9)
    return Samples(x, None, "none", "made")


def model_of(W: torch.Tensor) -> LLGAE:
    model = LLGAE(1, W.shape[0], W.shape[1], inference="least-squares")
    with torch.no_grad():
        model.W.copy_(W[None])
    return model


def rate_of(model: LLGAE, test: Samples) -> tuple[float, Rate]:
    measured = measure(model, test, 1.0)
    mean_l2 = measured.metrics.mean_l2
    return mean_l2, estimate_rate(model, test, mean_l2, measured.latents)


def test_entropy_is_the_textbooks() -> None:
    assert entropy(torch.tensor([2, 2, 1, 1]) / 6) == pytest.approx(1.9182958)
    assert entropy(torch.tensor([1.0, 0.0])) == 0


def test_rounding_adds_the_stated_share_of_the_mean_l2() -> None:
    mean_l2, rate = rate_of(model_of(torch.eye(8)[:, :3]), samples())
    assert rate.mean_l2_coded == pytest.approx(mean_l2 * (1 + SHARE), rel=2e-3)


def test_the_rate_of_gaussians_is_their_differential_entropy_less_log_step() -> None:
    # h(N(0, s^2)) - log2 step is the entropy of finely rounded Gaussians (Cover and Thomas, theorem 8.3.1).
    _, rate = rate_of(model_of(torch.eye(8)[:, :3]), samples(200_000))
    expected = sum(0.5 * math.log2(2 * math.pi * math.e * (30 / i) ** 2) - math.log2(rate.step) for i in (1, 2, 3))
    assert rate.bits_coded == pytest.approx(expected, abs=0.02)
    assert (rate.bits_float, rate.bits_k) == (96, 0)


def test_the_rate_does_not_depend_on_the_basis() -> None:
    W = torch.eye(8)[:, :3]
    mixed = W @ torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.3, 0.1], [0.5, 0.0, 5.0]])
    one, other = rate_of(model_of(W), samples())[1], rate_of(model_of(mixed), samples())[1]
    assert other.bits_coded == pytest.approx(one.bits_coded, abs=1e-3)
    assert other.mean_l2_coded == pytest.approx(one.mean_l2_coded, rel=1e-4)


def test_without_latents_the_rate_is_the_entropy_of_k() -> None:
    model = LLGAE(2, 8, 0)
    with torch.no_grad():
        model.mu[0, 0], model.mu[1, 0] = 20.0, -20.0
    mean_l2, rate = rate_of(model, samples())
    assert rate.bits_float == 1 and rate.bits_coded == rate.bits_k == pytest.approx(1, abs=1e-3)
    assert rate.mean_l2_coded == pytest.approx(mean_l2)


def test_axes_invert_each_other_and_leave_out_directions_without_length() -> None:
    generator = torch.Generator().manual_seed(3)
    W = torch.randn(2, 6, 3, generator=generator)
    W[1, :, 2] = 0
    root = torch.randn(2, 3, 3, generator=generator)
    to_z, to_b = quantisation_axes(W, root @ root.mT)
    assert torch.allclose(to_b[0] @ to_z[0], torch.eye(3).double(), atol=1e-9)
    assert torch.allclose(to_b[1] @ to_z[1], torch.diag(torch.tensor([1.0, 1.0, 0.0])).double(), atol=1e-9)
