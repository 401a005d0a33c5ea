"""Shrinkage of scatters toward those of neighbours: its limits, its formula, and the choice of its strength."""

import pytest
import torch
from torch import Tensor

from llgae_cli.training.components import Components, Coordinates, orthonormalise
from llgae_cli.training.shrinkage import (
    NEIGHBOURS,
    STRENGTHS,
    choose_strength,
    multiply_pooled_covariance,
    update_with_shrinkage,
)
from llgae_cli.training.statistics import Statistics, collect_statistics, update_components

pytestmark = pytest.mark.numeric
DOUBLE = torch.float64


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def clusters(K: int, n: int, D: int) -> tuple[Tensor, Components]:
    """K clusters of n samples, far apart, with one covariance; and a component at each, with a random basis."""
    centres = 50 * draw(1, K, D)
    scale = 2.0 ** -torch.arange(D, dtype=DOUBLE)
    x = (centres[:, None] + draw(2, K, n, D) * scale).flatten(0, 1)
    return x, Components(centres, orthonormalise(draw(3, K, D, 2)))


def measured(x: Tensor, components: Components) -> tuple[Statistics, Coordinates]:
    coordinates = Coordinates.identity(x)
    return collect_statistics([x], components, coordinates), coordinates


def covariances(x: Tensor, k: Tensor, K: int) -> Tensor:
    """The scatter of each component about its own mean, (K, D, D)."""
    own = [x[k == j] - x[k == j].mean(0) for j in range(K)]
    return torch.stack([one.T @ one for one in own])


def projectors(U: Tensor) -> Tensor:
    return U @ U.mT


def test_strength_zero_is_the_plain_update() -> None:
    x, components = clusters(5, 8, 6)
    statistics, coordinates = measured(x, components)
    plain, shrunken = (
        update_components(components, statistics),
        update_with_shrinkage(components, statistics, coordinates, 0.0),
    )
    assert torch.equal(plain.mu, shrunken.mu) and torch.equal(plain.U, shrunken.U)


@pytest.mark.parametrize(("K", "E"), [(1, 2), (5, 0)])
def test_one_component_and_no_latents_have_nothing_to_shrink(K: int, E: int) -> None:
    x, components = clusters(K, 8, 6)
    components = Components(components.mu, components.U[:, :, :E])
    statistics, coordinates = measured(x, components)
    plain, shrunken = (
        update_components(components, statistics),
        update_with_shrinkage(components, statistics, coordinates, 100.0),
    )
    assert torch.equal(plain.mu, shrunken.mu) and torch.equal(plain.U, shrunken.U)


@pytest.mark.parametrize("strength", [0.5, 30.0])
def test_the_update_is_an_iteration_with_the_scatter_plus_the_pooled_covariance(strength: float) -> None:
    K, n, D = 4, 9, 6
    x, components = clusters(K, n, D)
    statistics, coordinates = measured(x, components)
    scatter = covariances(x, torch.arange(K).repeat_interleave(n), K)
    pooled = scatter.sum(0) / (K * n)  # K - 1 < NEIGHBOURS: every component pools all of them
    expected = orthonormalise((scatter + strength * pooled) @ components.U)
    shrunken = update_with_shrinkage(components, statistics, coordinates, strength)
    torch.testing.assert_close(projectors(shrunken.U), projectors(expected))
    torch.testing.assert_close(shrunken.mu, x.view(K, n, D).mean(1))


def test_a_large_strength_tends_to_the_basis_of_the_pooled_covariance() -> None:
    K, n, D = 4, 9, 6
    x, components = clusters(K, n, D)
    scatter = covariances(x, torch.arange(K).repeat_interleave(n), K)
    limit = projectors(torch.linalg.eigh(scatter.sum(0))[1][:, -2:])
    distances = []
    for strength in (0.0, 10.0, 1e3, 1e7):
        iterated = components
        for _ in range(200):
            statistics, coordinates = measured(x, iterated)
            iterated = update_with_shrinkage(iterated, statistics, coordinates, strength)
        distances.append(float((projectors(iterated.U) - limit).norm()))
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.1 and distances[-1] < 1e-5


def test_only_the_nearest_components_are_pooled_and_empty_ones_never() -> None:
    K, n, D = NEIGHBOURS + 8, 10, 5
    line = torch.zeros(K, D, dtype=DOUBLE)
    line[:, 0] = 100.0 * torch.arange(K)
    x = (line[:, None] + draw(4, K, n, D)).flatten(0, 1)
    mu = torch.cat([line, torch.full((1, D), -1e6, dtype=DOUBLE)])  # no sample chooses the last one
    components = Components(mu, orthonormalise(draw(5, K + 1, D, 2)))
    statistics, coordinates = measured(x, components)
    assert statistics.count.tolist() == [n] * K + [0]
    scatter = covariances(x, torch.arange(K).repeat_interleave(n), K)
    for k, nearest in ((0, range(NEIGHBOURS + 1)), (K - 1, range(K - NEIGHBOURS - 1, K))):
        pooled = scatter[list(nearest)].sum(0) / (n * (NEIGHBOURS + 1))
        product = multiply_pooled_covariance(components, statistics, coordinates)[k]
        torch.testing.assert_close(product, pooled @ components.U[k])


def subspace_samples(K: int, n: int, D: int) -> tuple[Tensor, Components]:
    """Clusters that share one dominant direction, and noise; components at their centres with random bases."""
    centres, direction = 30 * draw(6, K, D), draw(7, D)
    x = centres[:, None] + 5 * draw(8, K, n, 1) * direction / direction.norm() + draw(9, K, n, D)
    return x.flatten(0, 1), Components(centres, orthonormalise(draw(10, K, D, 1)))


def test_few_samples_of_similar_components_choose_shrinkage() -> None:
    strength = choose_strength(*subspace_samples(60, 6, 20), torch.Generator().manual_seed(0))
    assert strength in STRENGTHS[1:]


def test_a_component_unlike_its_neighbour_chooses_no_shrinkage() -> None:
    """Two clusters along different axes: pooled with the larger one, the smaller would lose its direction."""
    large, small = 0.1 * draw(13, 2000, 4), 0.1 * draw(14, 200, 4)
    large[:, 0] += 10 * draw(15, 2000)
    small[:, 1] += 3 * draw(16, 200)
    centres = torch.zeros(2, 4, dtype=DOUBLE)
    centres[1, 3] = 50
    components = Components(centres, orthonormalise(draw(17, 2, 4, 1)))
    x = torch.cat([large, small + centres[1]])
    assert choose_strength(x, components, torch.Generator().manual_seed(0)) == 0


def test_the_chosen_strength_lowers_the_objective_of_new_samples() -> None:
    K, n, D = 60, 6, 20
    x, components = subspace_samples(K, n, D)
    strength = choose_strength(x, components, torch.Generator().manual_seed(0))
    new = components.mu.repeat_interleave(50, 0)
    direction = draw(7, D)
    new = new + 5 * draw(11, len(new), 1) * direction / direction.norm() + draw(12, len(new), D)
    objectives = []
    for one in (0.0, strength):
        trained = components
        for _ in range(12):
            statistics, coordinates = measured(x, trained)
            trained = update_with_shrinkage(trained, statistics, coordinates, one)
        objectives.append(collect_statistics([new], trained).objective)
    assert objectives[1] < 0.99 * objectives[0]
