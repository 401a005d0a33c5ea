"""Passes over narrow rows by the products of their values, against the passes over all other rows."""

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from llgae_cli.models import LLGAE
from llgae_cli.tasks import Samples
from llgae_cli.training import ClosedForm
from llgae_cli.training.components import Components, Coordinates, join, orthonormalise
from llgae_cli.training.narrow import MomentScorer, are_quicker, multiply_values, with_products
from llgae_cli.training.scoring import Scorer, Workspace
from llgae_cli.training.statistics import Statistics, collect_soft_statistics, collect_statistics, update_components
from llgae_cli.training.subset import Subset, run_passes

pytestmark = pytest.mark.numeric
DOUBLE = torch.float64
K, E, D = 5, 2, 7


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def planes(n: int, noise: float = 0.2, offset: float = 0.0) -> Tensor:
    """Rows of five planes in seven dimensions; the noise is normal."""
    k = torch.arange(n) % K
    return (
        offset
        + 4 * draw(1, K, D)[k]
        + torch.einsum("ne,ned->nd", draw(2, n, E), draw(3, K, E, D)[k])
        + noise * draw(4, n, D)
    )


def some_components(x: Tensor, K: int = K, E: int = E) -> Components:
    return Components(x[:K].clone(), orthonormalise(draw(5, K, x.shape[1], E)))


def collect(x: Tensor, components: Components, coordinates: Coordinates | None = None) -> Statistics:
    chunks = with_products(x.split(len(x) // 3), Workspace())
    return MomentScorer(components).collect(chunks).to_statistics(components, coordinates)


def assert_same(ours: Statistics, theirs: Statistics, distortion: bool = True) -> None:
    names = ["count", "mean_shift", "latent", "centred_product", "scatter"]
    for name in names + ["distortion"] * distortion:
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-9, atol=1e-9)


def test_the_products_of_a_row_are_those_of_all_pairs_and_the_values() -> None:
    products = multiply_values(torch.tensor([[2.0, 3.0], [5.0, 7.0]]))
    assert products.T.tolist() == [[1, 2, 3, 4, 6, 9], [1, 5, 7, 25, 35, 49]]


@pytest.mark.parametrize(("K", "E"), [(5, 2), (1, 3), (4, 0), (3, D)])
def test_statistics_are_those_of_other_passes(K: int, E: int) -> None:
    x = planes(900)
    components = some_components(x, K, E)
    coordinates = Coordinates(x.mean(0), orthonormalise(draw(6, 1, D, 4))[0])
    ours, theirs = collect(x, components, coordinates), collect_statistics([x], components, coordinates)
    assert_same(ours, theirs)
    full = collect_statistics([x], components, Coordinates.identity(x)).scatter
    torch.testing.assert_close(ours.full, full, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("temperature", [100.0, 1.0, 1e-3])
def test_soft_statistics_are_those_of_other_passes(temperature: float) -> None:
    x = planes(900)
    components = some_components(x)
    ours = Subset(x, products=True).collect_soft_statistics(components, temperature)
    score = Scorer(components, columns=K * (E + 1))
    assert_same(ours, collect_soft_statistics([x], components, temperature, score), distortion=False)


def test_samples_of_each_pair_count_for_that_pair_only() -> None:
    x = planes(900)
    pairs = some_components(x, 6)
    parts = x.split([400, 300, 200])
    ours = MomentScorer(pairs).collect_pairs([(part, multiply_values(part)) for part in parts]).to_statistics(pairs)
    for p, part in enumerate(parts):
        pair = slice(2 * p, 2 * p + 2)
        theirs = collect_statistics([part], Components(pairs.mu[pair], pairs.U[pair]))
        torch.testing.assert_close(ours.count[pair], theirs.count)
        torch.testing.assert_close(ours.distortion[pair], theirs.distortion)
        torch.testing.assert_close(ours.centred_product[pair], theirs.centred_product)


@pytest.mark.parametrize("noise", [0.2, 0.0])
def test_samples_count_once_in_every_group(noise: float) -> None:
    x = planes(900, noise)
    groups = [some_components(x + 0.1 * draw(seed, 900, D)) for seed in (8, 9)]
    fit = PCA(E).fit(x[0::K])  # without noise, these samples lose their digits in the second group
    groups[1].mu[0], groups[1].U[0] = torch.as_tensor(fit.mean_), torch.as_tensor(fit.components_.T)
    joined = join(groups)
    together = MomentScorer(joined).collect(with_products(x.split(400), Workspace()), groups=2).to_statistics(joined)
    for g, components in enumerate(groups):
        alone = collect(x, components)
        own = slice(g * K, (g + 1) * K)
        torch.testing.assert_close(together.count[own], alone.count)
        torch.testing.assert_close(together.distortion[own], alone.distortion)
        torch.testing.assert_close(together.centred_product[own], alone.centred_product)


def test_rows_on_a_subspace_are_assigned_by_their_exact_residuals() -> None:
    x = planes(900, noise=0.0)
    k = torch.arange(900) % K
    fits = [PCA(E).fit(x[k == j]) for j in range(K)]
    mu, axes = (torch.stack([torch.as_tensor(getattr(fit, name)) for fit in fits]) for name in ("mean_", "components_"))
    components = Components(mu, axes.mT.contiguous())
    # Of two equal components, the first is chosen: the differences of squares would draw lots.
    doubled = Components(torch.cat([mu, mu]), torch.cat([components.U, components.U]))
    ours = collect(x, doubled)
    assert ours.count.tolist() == [180] * K + [0] * K
    assert 0 <= ours.objective < 1e-25
    pairs = MomentScorer(Components(doubled.mu[[0, K, 1, K + 1]], doubled.U[[0, K, 1, K + 1]]))
    parts = [(x[k == j], multiply_values(x[k == j])) for j in (0, 1)]
    assert pairs.collect_pairs(parts).to_statistics(pairs.components).count.tolist() == [180, 0, 180, 0]


def test_an_update_is_the_pca_of_each_component() -> None:
    x = planes(900, offset=100.0)
    components = some_components(x)
    components.mu[-1] = 1e3  # far from all samples
    updated = update_components(components, collect(x, components))
    k = Scorer(components).nearest(x)[1]
    for j in range(K - 1):
        fit = PCA(E).fit(x[k == j])
        U = updated.U[j]
        torch.testing.assert_close(updated.mu[j], torch.as_tensor(fit.mean_))
        torch.testing.assert_close(U @ U.T, torch.as_tensor(fit.components_.T @ fit.components_), atol=1e-8, rtol=0)
    assert torch.equal(updated.mu[-1], components.mu[-1])
    torch.testing.assert_close(updated.U[-1].abs(), components.U[-1].abs())


@pytest.mark.parametrize("spread", [1e-4, 1e-6, 1e-8])
def test_components_far_smaller_than_their_distances_are_fitted_at_least_as_pca_fits_each(spread: float) -> None:
    k = torch.arange(1500) % K
    x = draw(1, K, D)[k] + spread * torch.einsum("nd,ndc->nc", draw(2, 1500, D), draw(3, K, D, D)[k])
    fits = [PCA(E).fit((x[k == j] - x[k == j][0]) / spread) for j in range(K)]
    lost = [fit.noise_variance_ * (D - E) * (fit.n_samples_ - 1) * spread**2 for fit in fits]
    trainer = ClosedForm(LLGAE(K, D, E).double(), Samples(x.numpy(), centring="none"), seed=1, tol=1e-6)
    trainer.initialise()
    while not trainer.finished:
        trainer.epoch()
    assert trainer.statistics is not None
    assert trainer.statistics.objective <= (1 + 1e-6) * sum(lost) / 1500


def test_a_column_with_zeros_and_huge_values_takes_no_digits_from_the_others() -> None:
    x = draw(1, 1500, D)
    x[:, 0] = torch.where(torch.arange(1500) % 2 == 0, 0.0, 1e7 * (1 + 0.1 * draw(2, 1500)))
    x[:, 1] = 0.1 * x[:, 1] + torch.where(torch.arange(1500) % 2 == 0, 5.0, -5.0)
    components = Components(torch.stack([x[0::2].mean(0), x[1::2].mean(0)]), some_components(x, 2).U)
    for _ in range(5):
        ours, theirs = collect(x, components), collect_statistics([x], components)
        torch.testing.assert_close(ours.mean_shift, theirs.mean_shift, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.distortion, theirs.distortion, rtol=1e-6, atol=0)
        before, components = ours.objective, update_components(components, ours)
        assert collect(x, components).objective <= before * (1 + 1e-9)


def test_a_component_of_few_samples_keeps_a_basis_that_passes_through_them() -> None:
    x = planes(900)
    x[:2] = 50 + draw(7, 2, D)
    components = some_components(x, 2)
    components.mu[0], components.mu[1] = 50.0, x[2:].mean(0)
    for _ in range(30):
        statistics = collect(x, components)
        components = update_components(components, statistics)
    assert statistics.count.tolist() == [2, 898] and statistics.distortion[0] < 1e-9


def test_passes_over_a_subset_lower_the_objective_and_end_below_those_of_one_iteration_each() -> None:
    x = planes(1500)
    start = some_components(x)
    objectives = [run_passes(Subset(x, products=True), start, passes)[1] for passes in (1, 2, 4, 8)]
    assert objectives == sorted(objectives, reverse=True)
    assert objectives[1] < run_passes(Subset(x), start, 2)[1]


def test_products_are_for_few_values_many_axes_and_float64() -> None:
    def narrow(D: int, E: int, dtype: torch.dtype = DOUBLE) -> bool:
        return are_quicker(torch.zeros(3, D, dtype=dtype), E)

    assert narrow(11, 1) and narrow(16, 3) and not narrow(12, 1) and not narrow(17, 16)
    assert not narrow(4, 0) and not narrow(4, 2, torch.float32)


def test_a_run_that_is_resumed_goes_on_with_the_same_values() -> None:
    data = Samples(planes(4000).numpy(), centring="none")
    whole, resumed = (ClosedForm(LLGAE(K, D, E).double(), data, seed=1, restarts=2, moves=2, tol=0.0) for _ in range(2))
    whole.initialise()
    whole.epoch()
    resumed.model.load_state_dict(whole.model.state_dict())
    resumed.load_state_dict(whole.state_dict())
    assert [resumed.epoch() for _ in range(3)] == [whole.epoch() for _ in range(3)]
