"""Initialisation of the components: it decides which local optimum the full passes converge to.

It works on a subset of the rows in the leading principal coordinates, where a pass costs about a hundredth of a full
one. Every restart, with its own random seed, goes through three steps:

1. deterministic annealing: assignments are soft at first, softmax(-distance / T), and harden as T falls;
2. split-merge moves, each kept where the objective after some passes is lower (see `moves`);
3. passes over more rows.

The restart with the lowest objective is mapped back into all D coordinates.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from llgae_cli.formatting import five_digits
from llgae_cli.progress import NOBODY, Work
from llgae_cli.threads import run_parallel, run_single_threaded
from llgae_cli.training.components import Components, Coordinates, choose_seeds, orthonormalise
from llgae_cli.training.moves import search_moves
from llgae_cli.training.narrow import are_quicker
from llgae_cli.training.restart_work import (
    ANNEALED_K,
    ANNEALING_PASSES,
    FINAL_EXPECTED,
    PRINCIPAL_ROWS,
    count_preparation,
    count_shrinkage_trials,
    n_coordinates,
    part_of,
)
from llgae_cli.training.shrinkage import choose_strength
from llgae_cli.training.statistics import update_components
from llgae_cli.training.subset import Subset, run_passes

logger = logging.getLogger(__name__)

HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE = 0.35, 0.02  # over the mean squared residual before annealing
SEEDED_K = 64
FINAL_PASSES, FINAL_TOL = 10, 1e-3
SOLVED_K = 64  # with more components an eigenproblem for each costs more than the passes it saves


@dataclass
class Initialisation:
    """State before the first full pass: components in D coordinates, principal coordinates, strength of shrinkage.

    `strength` () is in samples.
    """

    components: Components
    coordinates: Coordinates
    strength: Tensor

    @classmethod
    def empty(cls, components: Components) -> "Initialisation":
        """Return one of the same shapes, to receive that of another process."""
        _, D, E = components.U.shape
        new = components.mu.new_zeros
        coordinates = Coordinates(new(D), new(D, n_coordinates(E, D)))
        return cls(components.clone(), coordinates, new(()))

    def tensors(self) -> list[Tensor]:
        """Return all tensors, for a broadcast."""
        return [self.components.mu, self.components.U, self.coordinates.centre, self.coordinates.V, self.strength]


@dataclass
class Restart:
    """Result of one restart: components in the principal coordinates, and their mean squared residual there."""

    components: Components
    objective: float


class Restarts:
    """Several restarts on a subset of the rows, in parallel, each with its own seed; the best one is used.

    A restart runs on one thread, so that its result does not depend on the number of cores.
    """

    def __init__(
        self,
        x: Tensor,
        more: Sequence[Callable[[], Tensor]],
        K: int,
        E: int,
        *,
        parallel: bool,
        restarts: int,
        moves: int,
        generator: torch.Generator,
        shrinkage: float | Literal["auto"] = 0.0,
        neighbours: int = 0,
        work: Work = NOBODY,
    ):
        """Prepare restarts on the rows x (n, D), with their last passes over the rows of `more`.

        more        functions that return chunks (m, D)
        parallel    whether these may be called in several threads at once
        neighbours  length of the shortlists, 0 for full passes
        work        receives the work that is done
        """
        self.K, self.E, self.moves = K, E, moves if K > 1 else 0
        self.work, self.spent = work, [0.0][:0]  # operations of each restart that is done
        on_cpu = x.device.type == "cpu"
        d = n_coordinates(E, x.shape[1])
        self.coordinates = coordinates = run_single_threaded(lambda: principal_coordinates(x, d, generator), on_cpu)
        projected_x = run_single_threaded(lambda: coordinates.project(x), on_cpu)
        by_products = are_quicker(projected_x, E)
        self.subset = Subset(projected_x, neighbours, by_products)
        projected: list[tuple[Tensor, float]] = []

        def project(chunk: Callable[[], Tensor]) -> tuple[Tensor, float]:
            rows = chunk()
            y = coordinates.project(rows)
            return y, coordinates.squared_residual(rows, y)

        run_parallel(project, more, projected.append, parallel and on_cpu)
        work.advance(
            "preparation",
            count_preparation(len(x), sum(len(y) for y, _ in projected), x.shape[1], d),
            "principal coordinates",
        )
        self.larger_subset = Subset(torch.cat([y for y, _ in projected]), neighbours, by_products)
        self.outside = sum(squared for _, squared in projected)  # sum of |x|^2 outside the principal coordinates
        if shrinkage == "auto":
            y = self.larger_subset.x
            shrinkage = choose_strength(y, seed_components(y, K, E, generator), generator)
            work.advance("shrinkage", count_shrinkage_trials(len(y), d, K, E), "choice of shrinkage")
            logger.info("shrinkage: %g samples, chosen on held-out rows", shrinkage)
        self.shrinkage = shrinkage
        self.started = 0  # restarts of this process
        self.seeds = torch.randint(2**62, (restarts if K > 1 else 1,), generator=generator).tolist()

    def run(self, done: list[Restart]) -> None:
        """Run the restarts that `done`, from an interrupted initialisation, lacks; append each result to it."""
        first = len(done)  # of those that are run now

        def add(restart: Restart) -> None:
            done.append(restart)
            expected = sum(self.spent) / len(self.spent)
            for i in range(first + self.started, len(self.seeds)):
                self.part(i).expect("restarts", expected)
            n, mean_l2 = len(self.larger_subset.x), five_digits(self.mean_l2(restart))
            best = ", the best so far" if restart is best_restart(done) and len(done) > 1 else ""
            logger.info("restart %d of %d: mean L2 %s on %d rows%s", len(done), len(self.seeds), mean_l2, n, best)

        several = len(self.seeds) > 1 and self.subset.on_cpu
        run_parallel(self.run_one, self.seeds[first:], add, parallel=several)

    def mean_l2(self, restart: Restart) -> float:
        """Return a restart's mean L2 on its rows, in all D coordinates."""
        outside = self.outside / len(self.larger_subset.x)
        return float(restart.objective + outside) / len(self.coordinates.centre)

    def part(self, i: int) -> Work:
        """Return the part of the work that restart i reports to."""
        return part_of(self.work, i, len(self.seeds))

    def run_one(self, seed: int) -> Restart:
        """Return the result of one restart: annealing, split-merge moves, passes over more rows."""
        self.started += 1
        generator = torch.Generator().manual_seed(seed)
        work = self.part(self.seeds.index(seed))
        subset, larger = self.subset.reporting(work), self.larger_subset.reporting(work)
        larger.step = "more rows"
        components = anneal(subset, self.K, self.E, generator)
        components = search_moves(
            subset, components, self.moves, generator, FINAL_EXPECTED * larger.pass_operations(components)
        )
        final = run_passes(larger, components, FINAL_PASSES, tol=FINAL_TOL, shrinkage=self.shrinkage)
        self.spent.append(subset.spent + larger.spent)
        work.expect("restarts", 0.0)
        return Restart(*final)

    def best(self, done: list[Restart]) -> Initialisation:
        """Return the best restart in all D coordinates."""
        best, V = best_restart(done).components, self.coordinates.V
        if self.K <= SOLVED_K:
            best = solve_components(self.larger_subset, best)

        def map_back() -> Components:
            return Components(self.coordinates.centre + best.mu @ V.T, orthonormalise(V @ best.U))

        components = run_single_threaded(map_back, V.device.type == "cpu")
        return Initialisation(components, self.coordinates, V.new_tensor(self.shrinkage))


def best_restart(done: list[Restart]) -> Restart:
    """Return the restart with the lowest objective, the first of equal ones."""
    return min(done, key=lambda restart: restart.objective)


def principal_coordinates(x: Tensor, d: int, generator: torch.Generator) -> Coordinates:
    """Return the mean and the d leading principal directions of x (n, D), by a few orthogonal iterations.

    Only every n-th row is used where x has more than PRINCIPAL_ROWS rows.
    """
    x = x[:: max(1, len(x) // PRINCIPAL_ROWS)]
    centre = x.mean(0)
    centred = x - centre
    V = torch.randn(x.shape[1], d, generator=generator).to(x)
    for _ in range(3):
        V = orthonormalise((centred.T @ (centred @ V))[None])[0]
    scatter = (centred @ V).T @ (centred @ V)
    return Coordinates(centre, V @ torch.linalg.eigh(scatter)[1].flip(1))


def anneal(subset: Subset, K: int, E: int, generator: torch.Generator) -> Components:
    """Return components of the subset by deterministic annealing: soft passes at falling temperature."""
    subset.step = "annealing"
    components = seed_components(subset.x, K, E, generator)
    if K == 1 or K > ANNEALED_K:
        return components
    scale = subset.collect_statistics(components).objective
    cooling = LOWEST_TEMPERATURE / HIGHEST_TEMPERATURE
    for i in range(ANNEALING_PASSES):
        temperature = scale * HIGHEST_TEMPERATURE * cooling ** (i / (ANNEALING_PASSES - 1))
        statistics = subset.collect_soft_statistics(components, max(temperature, 1e-30))
        components = run_single_threaded(partial(update_components, components, statistics), subset.on_cpu)
    return components


def seed_components(x: Tensor, K: int, E: int, generator: torch.Generator) -> Components:
    """Return K components of the cells around K rows of x (n, d): their means, and random bases after one iteration.

    Up to SEEDED_K the rows come from k-means++ seeding; beyond it they are uniform, which takes less time and misses no
    region of the data either.
    """
    n, d = x.shape
    if K <= SEEDED_K:
        mu = choose_seeds(x, K, generator)
    else:
        mu = x[torch.randperm(n, generator=generator)[torch.arange(K) % n].to(x.device)]
    k = torch.cat([torch.cdist(part, mu).argmin(1) for part in x.split(4096)])
    U = torch.randn(K, d, E, generator=generator).to(x)
    for j in range(K):
        own = x[k == j]
        if len(own):
            mu[j] = own.mean(0)
            U[j] = (own - mu[j]).T @ ((own - mu[j]) @ U[j])
    return Components(mu, orthonormalise(U))


def solve_components(subset: Subset, components: Components) -> Components:
    """Return the optimum for the subset's assignments: mu_k the mean, U_k the E leading eigenvectors of the scatter.

    Many orthogonal iterations would converge to it. In d coordinates the eigenproblems are small.
    """
    statistics = subset.collect_statistics(components, scatter=True)
    statistics.full = statistics.scatter  # the subset's coordinates are those of its rows
    return run_single_threaded(partial(update_components, components, statistics), subset.on_cpu)
