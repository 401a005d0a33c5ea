"""A good first set of components: the basin that a run ends in is decided here, before the first full pass.

All of it works on a sample of the rows in the leading principal coordinates, where a pass costs a hundredth:

1. annealed starts: assignments begin soft, softmax(-distance / T), and harden as T falls;
2. split-merge moves: one component is removed and another split in two, kept where the settled objective is lower;
   the most promising of the K (K - 1) first;
3. the best of them on more rows goes back into all D coordinates.

Source of the moves: Ueda, Nakano, Ghahramani and Hinton, SMEM algorithm for mixture models, Neural Comp. 12 (2000).
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from llgae_cli.formatting import five_digits
from llgae_cli.threads import run_alone, run_side_by_side
from llgae_cli.training.components import Components, Coordinates, halved, orthonormal, seeds
from llgae_cli.training.scoring import Scorer, Workspace
from llgae_cli.training.shortlists import ShortLists
from llgae_cli.training.shrinkage import chosen_strength, shrunk
from llgae_cli.training.statistics import (
    Statistics,
    even,
    improved,
    soft_survey,
    sum_over_shards,
    survey,
    whole_scorer,
)

logger = logging.getLogger(__name__)

ANNEAL_PASSES = 12  # more make a better start, which the moves that follow come to in less time
ANNEAL_FROM, ANNEAL_TO = 0.35, 0.02  # temperature over the mean squared residual of the starting state
ANNEALED_K = 64  # beyond it, cells are small and many: annealing costs minutes there and gains little
SEEDED_K = 64
SETTLE_PASSES = 12  # hard passes after a move before it is judged
HALVE_PASSES = 8  # of the two halves of a component, on its own samples, to tell what a move promises
PROMISING = 4  # moves tried before all components are halved anew, from other seeds
PATIENCE = 12  # moves in a row that win nothing, after which a search ends
JUDGE_FROM, JUDGE_MARGIN = 2, 0.02  # a move is given up after pass i while above the best by the share 0.02 / i
SHARD_ROWS = 6000  # large ones: starts run side by side, and wait for each other at each call
REFINE_PASSES, REFINE_TOL = 10, 1e-3
PRINCIPAL_ROWS = 12_000  # more tell little more
SOLVED_K = 64  # beyond this K, a full eigenproblem for every component costs more than the passes it saves


@dataclass
class Start:
    """What the full passes go on from: components in D coordinates, and what was learnt on the way to them.

    `strength` (): of the shrinkage, in samples.
    """

    components: Components
    coordinates: Coordinates
    strength: Tensor

    @classmethod
    def blank(cls, like: Components) -> "Start":
        """Of the same shapes, to be filled by another process."""
        _, D, E = like.U.shape
        new = like.mu.new_zeros
        return cls(like.clone(), Coordinates(new(D), new(D, width(E, D))), new(()))

    def tensors(self) -> list[Tensor]:
        """All of it, for a broadcast."""
        return [self.components.mu, self.components.U, self.coordinates.centre, self.coordinates.V, self.strength]


class Sample:
    """The rows x (n, d) that starts are tried on, and the buffers that last from pass to pass over them."""

    def __init__(self, x: Tensor, neighbours: int = 0):
        """`neighbours`: of the short lists that components are scored by, 0 for none."""
        self.x, self.workspace, self.here, self.neighbours = x, Workspace(), Coordinates.identity(x), neighbours
        self.on_cpu = x.device.type == "cpu"

    def chunks(self, low: int = 0, high: int | None = None) -> Iterator[Tensor]:
        """The rows low ... high - 1, some thousands at a time: fewer would be slowed down by calls."""
        x = self.x[low:high]
        return iter(x.split(even(len(x), 8192)))

    def short_lists(self) -> ShortLists | None:
        """New ones, for some passes in a row."""
        n = len(self.x)
        return ShortLists(lambda index: self.x[index], 0, n, n, self.neighbours) if self.neighbours else None

    def survey(self, components: Components, scatter: bool = False, lists: ShortLists | None = None) -> Statistics:
        """One pass with hard assignments, with the components' scatters on request, and by short lists if begun."""
        if lists is not None and lists.k is not None:
            return lists.survey(components, self.here, self.workspace, scatter)
        score, here = Scorer(components, self.workspace), self.here if scatter else None
        k = torch.empty(len(self.x) if lists else 0, dtype=torch.int64, device=self.x.device)

        def part(low: int, high: int) -> Statistics:
            found: list[Tensor] | None = [] if lists else None
            statistics = survey(self.chunks(low, high), components, here, score, found)
            if found:
                torch.cat(found, out=k[low:high])
            return statistics

        statistics = self._sum(part, score.K)
        if lists is not None:
            lists.k = k
        return statistics

    def soft_survey(self, components: Components, temperature: float) -> Statistics:
        """One pass with soft assignments."""
        score = whole_scorer(components, self.workspace)
        return self._sum(lambda low, high: soft_survey(self.chunks(low, high), components, temperature, score), score.K)

    def _sum(self, part: Callable[[int, int], Statistics], K: int) -> Statistics:
        return sum_over_shards(part, 0, len(self.x), K, self.on_cpu, SHARD_ROWS)


@dataclass
class Attempt:
    """One start, refined: components in the principal coordinates, and the mean squared residual there."""

    components: Components
    objective: float


class StartSearch:
    """Several starts from a sample of the rows, side by side, each with its own seed; the best of them is kept.

    A start runs on one thread, so that what it comes to does not depend on how many cores there are.
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
    ):
        """Starts are tried on the rows x (n, D), then refined on those that `more` gives, chunks (m, D).

        `parallel`: whether chunks may be asked for in several threads at once. `neighbours`: see `candidates`, 0 for
        full passes.
        """
        self.K, self.E, self.moves = K, E, moves if K > 1 else 0
        on_cpu = x.device.type == "cpu"
        here = run_alone(lambda: principal_coordinates(x, width(E, x.shape[1]), generator), on_cpu)
        self.coordinates = here
        self.small = Sample(run_alone(lambda: here.of(x), on_cpu), neighbours)
        projected: list[Tensor] = []
        self.left_out = 0.0

        def project(chunk: Callable[[], Tensor]) -> tuple[Tensor, float]:
            rows = chunk()
            y = here.of(rows)
            return y, here.left_out(rows, y)

        def take(found: tuple[Tensor, float]) -> None:
            projected.append(found[0])
            self.left_out += found[1]

        run_side_by_side(project, more, take, parallel and on_cpu)
        self.larger = Sample(torch.cat(projected), neighbours)
        if shrinkage == "auto":
            shrinkage = chosen_strength(self.larger.x, seeded(self.larger.x, K, E, generator), generator)
            logger.info("shrinkage: %g samples, chosen on held-out rows", shrinkage)
        self.shrinkage = shrinkage
        self.seeds = torch.randint(2**62, (restarts if K > 1 else 1,), generator=generator).tolist()

    def run(self, attempts: list[Attempt]) -> None:
        """Make the starts that `attempts`, of an interrupted search, does not hold yet; append each once it is done."""

        def take(attempt: Attempt) -> None:
            attempts.append(attempt)
            n, D = len(self.larger.x), len(self.coordinates.centre)
            mean_l2 = five_digits((attempt.objective + self.left_out / n) / D)
            best = ", the best so far" if attempt is lowest(attempts) and len(attempts) > 1 else ""
            logger.info("start %d of %d: mean L2 %s on %d rows%s", len(attempts), len(self.seeds), mean_l2, n, best)

        several = len(self.seeds) > 1 and self.small.on_cpu
        run_side_by_side(self.attempt, self.seeds[len(attempts) :], take, parallel=several)

    def attempt(self, seed: int) -> Attempt:
        """One start: annealed, improved by split-merge moves, refined on more rows."""
        generator = torch.Generator().manual_seed(seed)
        found = annealed(self.small, self.K, self.E, generator)
        found = searched(self.small, found, self.moves, generator)
        return Attempt(*settled(self.larger, found, REFINE_PASSES, tol=REFINE_TOL, shrinkage=self.shrinkage))

    def best(self, attempts: list[Attempt]) -> Start:
        """The best of the attempts in all D coordinates."""
        best, V = lowest(attempts).components, self.coordinates.V
        if self.K <= SOLVED_K:
            best = solved(self.larger, best)

        def unfold() -> Components:
            return Components(self.coordinates.centre + best.mu @ V.T, orthonormal(V @ best.U))

        components = run_alone(unfold, V.device.type == "cpu")
        return Start(components, self.coordinates, V.new_tensor(self.shrinkage))


def lowest(attempts: list[Attempt]) -> Attempt:
    """The attempt with the lowest objective, the first of equal ones."""
    return min(attempts, key=lambda attempt: attempt.objective)


def width(E: int, D: int) -> int:
    """How many principal coordinates the starts work in: ten a latent dimension, at least 64."""
    return min(D, max(64, 10 * E))


def principal_coordinates(x: Tensor, d: int, generator: torch.Generator) -> Coordinates:
    """The mean and the d leading principal directions of x (n, D), by a few orthogonal iterations.

    Of some PRINCIPAL_ROWS of the rows.
    """
    x = x[:: max(1, len(x) // PRINCIPAL_ROWS)]
    centre = x.mean(0)
    centred = x - centre
    V = torch.randn(x.shape[1], d, generator=generator).to(x)
    for _ in range(3):
        V = orthonormal((centred.T @ (centred @ V))[None])[0]
    spread = (centred @ V).T @ (centred @ V)
    return Coordinates(centre, V @ torch.linalg.eigh(spread)[1].flip(1))


def annealed(sample: Sample, K: int, E: int, generator: torch.Generator) -> Components:
    """Components for the sample from K random rows, by soft passes of falling temperature."""
    components = seeded(sample.x, K, E, generator)
    if K == 1 or K > ANNEALED_K:
        return components
    heat = sample.survey(components).objective
    for i in range(ANNEAL_PASSES):
        temperature = heat * ANNEAL_FROM * (ANNEAL_TO / ANNEAL_FROM) ** (i / (ANNEAL_PASSES - 1))
        statistics = sample.soft_survey(components, max(temperature, 1e-30))
        components = run_alone(partial(improved, components, statistics), sample.on_cpu)
    return components


def seeded(x: Tensor, K: int, E: int, generator: torch.Generator) -> Components:
    """K cells around rows of x (n, d), each with its mean and a random start for its basis.

    Up to SEEDED_K the rows are drawn apart, one after the other; beyond, all at once, which leaves out no region.
    """
    n, d = x.shape
    if K <= SEEDED_K:
        mu = seeds(x, K, generator)
    else:
        mu = x[torch.randperm(n, generator=generator)[torch.arange(K) % n].to(x.device)]
    k = torch.cat([torch.cdist(part, mu).argmin(1) for part in x.split(4096)])
    U = torch.randn(K, d, E, generator=generator).to(x)
    for j in range(K):
        own = x[k == j]
        if len(own):
            mu[j] = own.mean(0)
            U[j] = (own - mu[j]).T @ ((own - mu[j]) @ U[j])
    return Components(mu, orthonormal(U))


def settled(
    sample: Sample,
    components: Components,
    passes: int,
    *,
    tol: float = 0.0,
    beat: float = math.inf,
    shrinkage: float = 0.0,
) -> tuple[Components, float]:
    """Up to `passes` hard passes over the sample: the components, and the objective of the last ones surveyed.

    Stops once a pass lowers the objective by less than the share `tol`, or where it is not going to beat the objective
    `beat`: of moves that did in the end, of ten, none was further above it than two thirds of the margin.
    """
    objective, lists = math.inf, sample.short_lists()
    for i in range(passes):
        statistics = sample.survey(components, shrinkage > 0, lists)
        before, objective = objective, statistics.objective
        if (before - objective <= tol * objective and i > 0) or (
            i >= JUDGE_FROM and objective > beat * (1 + JUDGE_MARGIN / i)
        ):
            break
        kept = components
        components = run_alone(partial(shrunk, kept, statistics, sample.here, shrinkage), sample.on_cpu)
    return (components if math.isinf(objective) else kept), objective


def solved(sample: Sample, components: Components) -> Components:
    """The optimum for the sample's assignments: mu_k the mean, U_k the E leading eigenvectors of the scatter.

    What many orthogonal iterations would come to; affordable in d coordinates, where eigenproblems are small.
    """
    statistics = sample.survey(components, scatter=True)

    def solve() -> Components:
        E = components.U.shape[2]
        n, moved = statistics.count[:, None, None], statistics.moved
        covariance = statistics.scatter / n.clamp(min=1) - moved[:, :, None] * moved[:, None, :]
        U = torch.linalg.eigh(covariance)[1].flip(2)[:, :, :E]
        return Components(components.mu + moved, torch.where(n > E, U, components.U))

    return run_alone(solve, sample.on_cpu)


def searched(sample: Sample, components: Components, moves: int, generator: torch.Generator) -> Components:
    """Settled components, then at most `moves` tries of the most promising split-merge moves; each that wins is kept.

    Ends once PATIENCE tries in a row have won nothing.
    """
    best, lowest = settled(sample, components, SETTLE_PASSES)
    queue: list[Components] = []
    failed = 0
    for _ in range(moves):
        queue = queue or moved(sample, best, generator)
        if failed == PATIENCE or not queue:  # none: no component has two samples
            break
        found, objective = settled(sample, queue.pop(0), SETTLE_PASSES, beat=lowest)
        if objective < lowest:
            best, lowest, queue, failed = found, objective, [], 0
        else:
            failed += 1
    return best


def moved(sample: Sample, components: Components, generator: torch.Generator) -> list[Components]:
    """The PROMISING best split-merge moves: component a goes, its samples to their second choice, and b is halved.

    The promise is what halving b wins, once the halves have settled on b's samples, less what a's samples lose. It is
    a pessimist, for it lets nothing else adapt; but most of the moves that win are among the first few in its order.
    """
    removal, distortion, k = looked_at(sample, components)
    K = len(removal)
    halves: dict[int, Components] = {}
    won = torch.full((K,), -math.inf)
    for b in range(K):
        own = sample.x[k == b]
        if len(own) > 1:
            pair = halved(own, components.U[b], generator)
            halves[b], objective = settled(Sample(own), pair, HALVE_PASSES)
            won[b] = float(distortion[b]) - objective * len(own)
    promise = (won[None, :] - removal.cpu()[:, None]).fill_diagonal_(-math.inf)  # (a, b)
    order = promise.flatten().topk(min(PROMISING, K * (K - 1))).indices.tolist()
    return [_with_move(components, move // K, move % K, halves[move % K]) for move in order if move % K in halves]


def _with_move(components: Components, a: int, b: int, pair: Components) -> Components:
    new = components.clone()
    new.mu[[a, b]], new.U[[a, b]] = pair.mu, pair.U
    return new


def looked_at(sample: Sample, components: Components) -> tuple[Tensor, Tensor, Tensor]:
    """What removing each of K > 1 components would cost (K,), what each costs (K,), and each row's nearest one k (n,).

    Costs are summed squared residuals.
    """
    score, x = Scorer(components, sample.workspace), sample.x
    removal, distortion, nearest = x.new_zeros(score.K), x.new_zeros(score.K), []
    for part in sample.chunks():
        two, k = score.distances(part).topk(2, dim=1, largest=False)
        removal.index_add_(0, k[:, 0], two[:, 1] - two[:, 0])
        distortion.index_add_(0, k[:, 0], two[:, 0] + part.square().sum(1))
        nearest.append(k[:, 0])
    return removal, distortion, torch.cat(nearest)
