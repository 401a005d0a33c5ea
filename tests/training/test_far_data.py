"""Data far from the origin: metrics and chosen components equal those of float64, and no objective is negative."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from llgae_cli.evaluation import metrics
from llgae_cli.inference import choose_exactly
from llgae_cli.models import LLGAE
from llgae_cli.tasks import Samples, load_task
from llgae_cli.training import ClosedForm
from llgae_cli.training.components import Components, Coordinates, orthonormalise
from llgae_cli.training.scoring import Scorer
from llgae_cli.training.statistics import collect_statistics, update_components

pytestmark = pytest.mark.numeric
DOUBLE = torch.float64
SPREAD = 8.5  # within a group of `groups`


def sheet(offset: float, n: int = 5000) -> Tensor:
    """n samples of 40 values near three dimensions, `offset` from the origin in every value."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3)) @ rng.normal(size=(3, 40)) + 0.8 * rng.normal(size=(n, 40)) + offset
    return torch.tensor(x.astype(np.float32))


def groups(R: float, n: int = 3000, D: int = 20) -> Tensor:
    """Samples of eight planes, half of them around -R and half around +R in every value."""
    rng = np.random.default_rng(1)
    k = rng.integers(8, size=n)
    bases, centres = rng.normal(size=(8, 3, D)), 3 * rng.normal(size=(8, D))
    x = np.einsum("ne,ned->nd", 4 * rng.normal(size=(n, 3)), bases[k]) + centres[k] + 2 * rng.normal(size=(n, D))
    x = x * SPREAD / x.std(0).mean() + np.where(k < 4, -R, R)[:, None]
    return torch.tensor(x.astype(np.float32))


def train(x: Tensor, K: int, E: int) -> tuple[LLGAE, list[float]]:
    """A model trained on x, and the mean L2 after each pass."""
    model = LLGAE(K, x.shape[1], E)
    trainer = ClosedForm(model, Samples(x, centring="none"), seed=28, dtype=x.dtype)
    trainer.initialise()
    record = []
    while not trainer.finished and len(record) < 100:
        record.append(trainer.epoch()["train_mean_l2"])
    return model, record


def exact_distances(model: LLGAE, x: Tensor) -> Tensor:
    """Squared distances (n, K) in float64, from explicit residuals."""
    exact = LLGAE(model.K, model.D, model.E, beta=model.beta, n_step=model.n_step, inference=model.inference).double()
    exact.load_state_dict(model.state_dict())
    with torch.no_grad():
        parts = []
        for j in range(model.K):
            k = torch.full((len(x),), j)
            code_b = exact.encode_in(x.double(), k)
            parts.append((x.double() - exact.mu[j] - code_b @ exact.W[j].T).square().sum(1))
        return torch.stack(parts, 1)


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e5, 1e6])
def test_explained_variance_equals_that_of_float64(offset: float) -> None:
    x = sheet(offset)
    model, _ = train(x, 1, 3)
    evaluation = metrics.measure(model, Samples(x, centring="none"), 1.0).metrics
    wide = x.double()
    variance = (wide - wide.mean(0)).square().sum()
    expected = 1 - float(exact_distances(model, x).sum() / variance)
    assert evaluation.explained_variance == pytest.approx(expected, abs=1e-4)
    # PCA is the optimum for these samples.
    singular = torch.linalg.svdvals(wide - wide.mean(0)).square()
    assert evaluation.explained_variance == pytest.approx(float(singular[:3].sum() / singular.sum()), abs=1e-4)


@pytest.mark.parametrize("n", [1, 5])
def test_without_variance_there_is_nothing_to_explain(n: int) -> None:
    x = sheet(1e4)
    model, _ = train(x, 1, 3)
    evaluation = metrics.measure(model, Samples(x[:1].repeat(n, 1), centring="none"), 1.0).metrics
    assert math.isnan(evaluation.explained_variance) and evaluation.mean_l2 > 0


@pytest.mark.parametrize("ratio", [1e1, 1e3, 1e4, 1e5, 1e6])
def test_far_groups_get_the_component_that_float64_gives(ratio: float, messages: list[str]) -> None:
    x = groups(ratio * SPREAD)
    model, record = train(x, 8, 3)
    distances = exact_distances(model, x)
    best, second = distances.topk(2, 1, largest=False).values.unbind(1)
    k = model.encode(x).k
    decided = second > best * (1 + 1e-4)
    assert decided.float().mean() > 0.9
    assert int((k != distances.argmin(1))[decided].sum()) == 0
    assert min(record) >= 0
    assert record[-1] == pytest.approx(float(best.mean()) / x.shape[1], rel=0.02)
    restarts = [message for message in messages if message.startswith("restart")]
    assert len(restarts) == 4
    assert not any("-" in message.partition("mean L2")[2].split(" on ")[0] for message in restarts)
    assert metrics.mean_l2(model, Samples(x, centring="none")) == pytest.approx(
        float(best.mean()) / x.shape[1], rel=1e-3
    )


@pytest.mark.parametrize("R", [1e3, 1e4, 1e5])
def test_statistics_far_from_the_origin_equal_those_of_float64(R: float) -> None:
    x = groups(R, 800)
    U = orthonormalise(torch.randn(8, 20, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE))
    single = Components(x[:8].clone(), U.float())
    exact = Components(single.mu.double(), U)  # U in float32 is orthonormal to 1e-7 only, which 1e5 squared would show
    ours = collect_statistics(x.split(300), single, Coordinates.identity(x))
    theirs = collect_statistics(x.double().split(300), exact, Coordinates.identity(x.double()))
    assert torch.equal(ours.count.double(), theirs.count)
    for one, other in zip(ours.tensors(), theirs.tensors(), strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(one.double(), other, rtol=0, atol=2e-3 * scale)
    after, expected = update_components(single, ours), update_components(exact, theirs)
    torch.testing.assert_close(after.mu.double(), expected.mu, rtol=0, atol=1e-6 * R + 1e-3)


def test_components_are_chosen_by_their_residuals_and_ties_go_to_the_first() -> None:
    mu, W = torch.zeros(3, 4), orthonormalise(torch.randn(3, 4, 1, generator=torch.Generator().manual_seed(0)))
    W[2] = W[1]
    x = 5 * W[1, :, 0] + 1e6 * torch.eye(4)[:1]
    k, distance = choose_exactly(x, mu + 1e6 * torch.eye(4)[0], W, torch.tensor([[True, True, True]]))
    assert int(k) == 1 and float(distance) == pytest.approx(0, abs=1e-1)
    k, _ = choose_exactly(x, mu + 1e6 * torch.eye(4)[0], W, torch.tensor([[True, False, True]]))
    assert int(k) == 2


def test_data_near_the_origin_needs_no_float64() -> None:
    """Distances in float64 cost time: data that does not need them must not cause them."""
    train = load_task("subspaces", Path("unused")).train
    x = train.rows(slice(100, 2100))
    generator = torch.Generator().manual_seed(0)
    components = Components(train.rows(slice(0, 6)), orthonormalise(torch.randn(6, train.D, 3, generator=generator)))
    distance, _, _ = Scorer(components).nearest(x)
    squared = x.square().sum(1)
    assert bool((distance + squared > squared / 256).all())
