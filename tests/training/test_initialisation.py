"""Initialisation: k-means++ seeds, annealing, split-merge moves, passes, and the map back into all coordinates."""

import itertools
import math

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from llgae_cli.training.components import Components, Coordinates, align, choose_seeds, halve, orthonormalise
from llgae_cli.training.initialisation import (
    SEEDED_K,
    Restart,
    Restarts,
    anneal,
    best_restart,
    n_coordinates,
    principal_coordinates,
    seed_components,
    solve_components,
)
from llgae_cli.training.moves import choose_by_race, propose_moves, score_removals, search_moves, split_each
from llgae_cli.training.restart_work import HALF_PASSES, NARROW_HALF_PASSES, RACE_PASSES
from llgae_cli.training.scoring import PairScorer, Workspace
from llgae_cli.training.statistics import collect_statistics
from llgae_cli.training.subset import Subset, run_passes

pytestmark = pytest.mark.numeric
DOUBLE = torch.float64
K, E, D = 6, 2, 8


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planes(n: int = 900, seed: int = 0) -> Tensor:
    """Samples of six planes in eight dimensions, with a little noise."""
    k = torch.randint(K, (n,), generator=generator(seed))
    bases, centres = draw(1, K, E, D), 4 * draw(2, K, D)
    return centres[k] + torch.einsum("ne,ned->nd", 3 * draw(seed + 3, n, E), bases[k]) + 0.2 * draw(seed + 4, n, D)


def random_components(x: Tensor, K: int = K, E: int = E, seed: int = 5) -> Components:
    return Components(x[:K].clone(), orthonormalise(draw(seed, K, x.shape[1], E)))


def is_orthonormal(U: Tensor) -> bool:
    eye = torch.eye(U.shape[2], dtype=U.dtype).expand(len(U), -1, -1)
    return torch.allclose(U.mT @ U, eye, atol=1e-8)


# ---- k-means++ seeds and halves


def test_seeds_are_distinct_rows() -> None:
    x = draw(0, 30, 4)
    for seed in range(20):
        seeds = choose_seeds(x, 10, generator(seed))
        rows = [int((x == one).all(1).nonzero()) for one in seeds]
        assert len(set(rows)) == 10


def test_rows_that_equal_a_seed_are_not_drawn_again() -> None:
    x = torch.repeat_interleave(draw(0, 5, 3), 40, 0)
    for seed in range(20):
        assert len(choose_seeds(x, 5, generator(seed)).unique(dim=0)) == 5


def test_far_clusters_each_get_a_seed() -> None:
    centres = 1e4 * draw(0, 6, 3)
    x = torch.repeat_interleave(centres, 30, 0) + draw(1, 180, 3)
    for seed in range(20):
        nearest = torch.cdist(choose_seeds(x, 6, generator(seed)), centres).argmin(1)
        assert sorted(nearest.tolist()) == list(range(6))


def test_the_second_seed_is_drawn_in_proportion_to_the_squared_distance() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0]], dtype=DOUBLE)
    pairs = [tuple(choose_seeds(x, 2, generator(seed))[:, 0].tolist()) for seed in range(3000)]
    from_zero = [second for first, second in pairs if first == 0.0]
    assert len(from_zero) == pytest.approx(1000, abs=120)
    assert from_zero.count(3.0) / len(from_zero) == pytest.approx(0.9, abs=0.04)  # 9 : 1


def test_halves_separate_two_clusters() -> None:
    x = torch.cat([draw(0, 50, 4), draw(1, 70, 4) + 100])
    pair = halve(x, orthonormalise(draw(2, 1, 4, 2))[0], generator())
    means = torch.stack([x[:50].mean(0), x[50:].mean(0)])
    order = pair.mu[:, 0].argsort()
    torch.testing.assert_close(pair.mu[order], means)
    assert is_orthonormal(pair.U)


# ---- Coordinates and order


def test_principal_coordinates_are_those_of_pca() -> None:
    x = planes() * 2.0 ** -torch.arange(D, dtype=DOUBLE)
    coordinates = principal_coordinates(x, D, generator())
    pca = PCA(3).fit(x.numpy())
    torch.testing.assert_close(coordinates.centre, torch.tensor(pca.mean_))
    torch.testing.assert_close(coordinates.V[:, :3].abs(), torch.tensor(pca.components_.T).abs(), atol=1e-8, rtol=0)
    y = coordinates.project(x, 3)
    torch.testing.assert_close(y, coordinates.project(x)[:, :3])
    some = Coordinates(coordinates.centre, coordinates.V[:, :3])
    rest = (x - torch.tensor(pca.inverse_transform(pca.transform(x.numpy())))).square().sum()
    assert some.squared_residual(x, y) == pytest.approx(float(rest), rel=1e-9)


def test_the_squared_residual_keeps_its_digits_where_it_is_almost_zero() -> None:
    V = orthonormalise(draw(0, 1, D, 3))[0]
    x = 1e4 * draw(1, 200, 3) @ V.T + 1e-4 * draw(2, 200, D)
    coordinates = Coordinates(torch.zeros(D, dtype=DOUBLE), V)
    y = coordinates.project(x)
    expected = float((x - y @ V.T).square().sum())
    assert coordinates.squared_residual(x, y) == pytest.approx(expected, rel=1e-9) and expected < 1e-4


def test_align_orders_by_variance_and_fixes_signs_but_keeps_the_subspace() -> None:
    components = random_components(planes(), E=3)
    root = draw(6, K, 3, 3)
    covariance = root @ root.mT
    aligned = align(components, covariance)
    torch.testing.assert_close(aligned.U @ aligned.U.mT, components.U @ components.U.mT)
    R = components.U.mT @ aligned.U
    rotated = R.mT @ covariance @ R
    variance = torch.diagonal(rotated, dim1=1, dim2=2)
    torch.testing.assert_close(rotated, torch.diag_embed(variance), atol=1e-9, rtol=0)
    assert (variance[:, :-1] >= variance[:, 1:]).all()
    peak = aligned.U.gather(1, aligned.U.abs().argmax(1, keepdim=True))
    assert (peak > 0).all()


# ---- Components


@pytest.mark.parametrize("K", [1, 5, SEEDED_K + 1, 400])
@pytest.mark.parametrize("E", [0, 2])
def test_seeded_components_are_finite_cells_with_orthonormal_bases(K: int, E: int) -> None:
    x = planes(300)
    components = seed_components(x, K, E, generator())
    assert components.mu.shape == (K, D) and components.U.shape == (K, D, E)
    assert components.mu.isfinite().all() and is_orthonormal(components.U)
    if K == 1:
        torch.testing.assert_close(components.mu[0], x.mean(0))


def test_annealing_ends_below_its_seeds() -> None:
    x = planes()
    for seed in range(3):
        seeded = seed_components(x, K, E, generator(seed))
        annealed = anneal(Subset(x), K, E, generator(seed))
        assert collect_statistics([x], annealed).objective < collect_statistics([x], seeded).objective


@pytest.mark.parametrize("neighbours", [0, 2])
def test_passes_never_raise_the_objective(neighbours: int) -> None:
    x = planes()
    subset, components = Subset(x, neighbours), random_components(x)
    before = collect_statistics([x], components).objective
    for passes in (2, 3, 5, 8):
        _, objective = run_passes(subset, components, passes)
        assert objective <= before * (1 + 1e-12)
        before = objective


def test_the_objective_of_passes_is_that_of_the_components_returned() -> None:
    x = planes()
    components, objective = run_passes(Subset(x), random_components(x), 5)
    assert objective == pytest.approx(collect_statistics([x], components).objective, rel=1e-12)


def test_passes_stop_where_they_cannot_fall_below_the_best() -> None:
    x = planes()
    _, objective = run_passes(Subset(x), random_components(x), 10)
    _, stopped = run_passes(Subset(x), random_components(x), 10, best=objective / 2)
    assert stopped > objective


def test_no_pass_returns_the_components_unmeasured() -> None:
    x = planes()
    components = random_components(x)
    same, objective = run_passes(Subset(x), components, 0)
    assert same is components and objective == math.inf


def test_solved_components_are_the_pca_of_each_cell() -> None:
    x = planes()
    components, _ = run_passes(Subset(x), random_components(x), 5)
    k = score_removals(Subset(x), components)[2]
    solved = solve_components(Subset(x), components)
    for j in range(K):
        own = x[k == j].numpy()
        pca = PCA(E).fit(own)
        torch.testing.assert_close(solved.mu[j], torch.tensor(pca.mean_))
        projector = torch.tensor(pca.components_.T @ pca.components_)
        torch.testing.assert_close(solved.U[j] @ solved.U[j].T, projector, atol=1e-8, rtol=0)
    assert collect_statistics([x], solved).objective <= collect_statistics([x], components).objective


# ---- Split-merge moves


def test_the_cost_of_a_removal_is_the_rise_of_the_objective_without_the_component() -> None:
    x = planes()
    components, objective = run_passes(Subset(x), random_components(x), 4)
    cost, distortion, k = score_removals(Subset(x), components)
    assert float(distortion.sum()) == pytest.approx(objective * len(x), rel=1e-9)
    assert torch.bincount(k, minlength=K).sum() == len(x)
    for j in range(K):
        others = [i for i in range(K) if i != j]
        without = Components(components.mu[others], components.U[others])
        rise = (collect_statistics([x], without).objective - objective) * len(x)
        assert float(cost[j]) == pytest.approx(rise, rel=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_pairs_scored_together_are_assigned_as_each_alone(offset: float) -> None:
    x, pairs = planes() + offset, random_components(planes(), 4)
    pairs = Components(pairs.mu + offset, pairs.U)
    together = collect_statistics([x], pairs, score=PairScorer(pairs, [300, 600], Workspace()))
    for p, rows in enumerate((x[:300], x[300:])):
        pair = slice(2 * p, 2 * p + 2)
        alone = collect_statistics([rows], Components(pairs.mu[pair], pairs.U[pair]))
        assert torch.equal(together.count[pair], alone.count) and alone.count.min() > 0
        torch.testing.assert_close(together.distortion[pair], alone.distortion)
        torch.testing.assert_close(together.centred_product[pair], alone.centred_product)


@pytest.mark.parametrize(
    ("d", "E", "products"), [(8, 2, False), (8, 2, True), (8, 0, False), (20, 10, False), (80, 10, False)]
)
def test_components_split_together_are_split_as_each_alone(d: int, E: int, products: bool) -> None:
    x = torch.cat([planes(3000), 0.2 * draw(9, 3000, d - D)], 1)
    components, _ = run_passes(Subset(x), random_components(x, K + 1, E), 4)
    k = score_removals(Subset(x), components)[2].clamp(max=K - 1)
    k[5] = K  # a component of one sample cannot be split
    splits, draws = split_each(Subset(x, products=products), components, k, generator()), generator()
    assert list(splits) == list(range(K))
    for j in range(K):
        own = x[k == j]
        if products:
            pair, passes = Components(choose_seeds(own, 2, draws), own.new_zeros(2, d, E)), 1 + NARROW_HALF_PASSES
        else:
            pair, passes = halve(own, components.U[j], draws), HALF_PASSES
        alone, objective = run_passes(Subset(own, products=products), pair, passes)
        U = splits[j].components.U
        assert splits[j].distortion == pytest.approx(objective * len(own))
        torch.testing.assert_close(splits[j].components.mu, alone.mu)
        torch.testing.assert_close(U @ U.mT, alone.U @ alone.U.mT, atol=1e-6, rtol=0)


@pytest.mark.parametrize("products", [False, True])
def test_a_move_replaces_two_components_and_keeps_the_others(products: bool) -> None:
    x = planes()
    x[:100] = 50 + (torch.arange(100) % 2)[:, None]  # a component of two distinct rows
    components, _ = run_passes(Subset(x), random_components(x), 4)
    moves = propose_moves(Subset(x, products=products), components, generator())
    assert 0 < len(moves) <= 4
    for moved in moves:
        same = [torch.equal(moved.mu[j], components.mu[j]) for j in range(K)]
        assert same.count(False) == 2 and is_orthonormal(moved.U)


@pytest.mark.parametrize("winner", [0, 1, 2])
def test_a_race_is_won_by_the_components_that_are_lowest_after_its_passes(winner: int) -> None:
    subset = Subset(planes(), products=True)
    moved = [random_components(planes(seed=seed)) for seed in range(3)]
    moved.sort(key=lambda one: run_passes(subset, one, RACE_PASSES)[1])
    lowest = moved[0]
    moved.insert(winner, moved.pop(0))
    won, alone = choose_by_race(subset, moved), run_passes(subset, lowest, RACE_PASSES + 1)[0]
    torch.testing.assert_close(won.mu, alone.mu)
    torch.testing.assert_close(won.U @ won.U.mT, alone.U @ alone.U.mT)


@pytest.mark.parametrize("products", [False, True])
def test_more_moves_never_raise_the_objective_and_repair_a_bad_initialisation(products: bool) -> None:
    x = planes()
    subset = Subset(x, products=products)
    bad = Components(x[:2].repeat(K // 2, 1) + 0.01 * draw(7, K, D), orthonormalise(draw(8, K, D, E)))  # in two places
    objectives = [
        collect_statistics([x], search_moves(subset, bad, moves, generator())).objective for moves in (0, 5, 30)
    ]
    for before, after in itertools.pairwise(objectives):
        assert after <= before * (1 + 1e-9)
    assert objectives[2] < 0.5 * objectives[0]


def test_a_component_of_one_sample_is_removed_but_not_split() -> None:
    x = torch.cat([planes(), torch.full((1, D), 1e3, dtype=DOUBLE)])
    far = Components(torch.stack([x.mean(0), x[-1]]), random_components(x, 2).U)
    (moved,) = propose_moves(Subset(x), far, generator())
    assert not torch.equal(moved.mu[0], far.mu[0]) and not torch.equal(moved.mu[1], far.mu[1])


def test_without_two_samples_in_a_component_there_is_no_move() -> None:
    x = planes(K)
    components = random_components(x)
    assert propose_moves(Subset(x), components, generator()) == []
    assert search_moves(Subset(x), components, 5, generator()).mu.shape == (K, D)


# ---- Restarts


def restarts(x: Tensor, n: int, **options: object) -> Restarts:
    settings = {"parallel": False, "restarts": n, "moves": 4, "generator": generator(), **options}
    return Restarts(x, [lambda: x], K, E, **settings)  # type: ignore[arg-type]


def test_the_best_restart_is_returned_in_all_coordinates(messages: list[str]) -> None:
    x, several, done = planes(), restarts(planes(), 3), []
    several.run(done)
    assert len(done) == 3 and [line.partition(":")[0] for line in messages] == [f"restart {i} of 3" for i in (1, 2, 3)]
    best = best_restart(done)
    assert best.objective == min(one.objective for one in done)
    initial = several.best(done)
    assert is_orthonormal(initial.components.U)
    reached = collect_statistics([x], initial.components).objective
    assert reached <= best.objective * (1 + 1e-9)  # D coordinates here are all that there are


def test_restarts_that_are_done_are_not_run_again() -> None:
    whole, rest = [], []
    restarts(planes(), 3).run(whole)
    rest += whole[:2]
    restarts(planes(), 3).run(rest)
    assert rest[:2] == whole[:2] and rest[2].objective == whole[2].objective
    assert torch.equal(rest[2].components.mu, whole[2].components.mu)


def test_of_equally_good_restarts_the_first_is_used() -> None:
    done = [
        Restart(random_components(planes(), seed=seed), objective) for seed, objective in ((1, 2.0), (2, 1.0), (3, 1.0))
    ]
    assert best_restart(done) is done[1]


def test_one_component_needs_one_restart() -> None:
    x = planes()
    one, done = Restarts(x, [lambda: x], 1, E, parallel=False, restarts=5, moves=9, generator=generator()), []
    one.run(done)
    assert len(done) == 1
    pca = PCA(E).fit(x.numpy())
    U = one.best(done).components.U[0]
    torch.testing.assert_close(U @ U.T, torch.tensor(pca.components_.T @ pca.components_), atol=1e-8, rtol=0)


@pytest.mark.parametrize(("E", "D", "d"), [(2, 784, 64), (20, 784, 200), (20, 100, 100), (0, 10, 10)])
def test_restarts_work_in_ten_coordinates_a_latent_and_at_least_64(E: int, D: int, d: int) -> None:
    assert n_coordinates(E, D) == d
