"""Figures of a pass against their formulas, for few and for many components."""

import numpy as np
import pytest
import torch

from llgae_cli.evaluation.metrics import measure
from llgae_cli.models import LLGAE
from llgae_cli.tasks import Samples

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("K", [3, 128, 129, 300])
def test_figures_of_a_pass_are_those_of_their_formulas(K: int) -> None:
    """Also where the number of a component needs more than a byte."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 4, generator=g)
    model = LLGAE(K, 4, 2, beta=1.0, n_step=1)
    W = torch.linalg.qr(torch.randn(K, 4, 2, generator=g))[0]
    model.load_state_dict({"mu": torch.randn(K, 4, generator=g), "W": W})
    labels = torch.randint(3, (5000,), generator=g)
    measured = measure(model, Samples(x.numpy(), labels.numpy(), centring="none"), 1.0)
    code = model.encode(x)
    squared = (x - model.decode(code).detach()).double().square().sum(1)
    assert torch.equal(measured.k.long(), code.k) and int(code.k.max()) > K - 10
    np.testing.assert_allclose(measured.squared, squared, rtol=1e-4, atol=1e-5)
    metrics = measured.metrics
    assert metrics.mean_l2 == pytest.approx(float(squared.mean()) / 4, rel=1e-6)
    assert metrics.usage == pytest.approx((torch.bincount(code.k, minlength=K) / 5000).tolist())
    expected = {j: float(squared[labels == j].mean()) / 4 for j in range(3)}
    assert metrics.per_class == pytest.approx(expected, rel=1e-6)
