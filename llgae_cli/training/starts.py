"""A good first set of components: the basin that a run ends in is decided here, before the first full pass.

All of it works on a sample of the rows in the leading principal coordinates, where a pass costs a hundredth:

1. annealed starts: assignments begin soft, softmax(-distance / T), and harden as T falls; the best goes on;
2. split-merge moves: one component is removed and another split in two, kept where the settled objective is lower;
3. more rows, then back into all D coordinates.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llgae_cli.training.components import Components, Coordinates, orthonormal, split
from llgae_cli.training.passes import improved, soft_survey, survey
from llgae_cli.training.progress import Notify
from llgae_cli.training.scoring import Scorer, winners
from llgae_cli.training.shrinkage import chosen_strength, shrunk

ANNEAL_PASSES = 30  # twice as many win 0.1 % for twice the time (measured on Fashion-MNIST)
ANNEAL_FROM, ANNEAL_TO = 0.35, 0.02  # temperature over the mean squared residual of the starting state
ANNEALED_K = 64  # beyond it, cells are small and many: annealing costs minutes there and gains little
SETTLE_PASSES = 12  # hard passes after a move before it is judged
JUDGE_AT, JUDGE_MARGIN = 5, 1.004  # a move this far above the best by then has never won: given up early
REFINE_PASSES, REFINE_TOL = 10, 1e-3
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


def start(
    x: Tensor,
    more: Iterable[Tensor],
    K: int,
    E: int,
    *,
    restarts: int,
    moves: int,
    generator: torch.Generator,
    notify: Notify = lambda message: None,
    shrinkage: float | Literal["auto"] = 0.0,
) -> Start:
    """Components in all D coordinates, fitted to rows x (n, D) and refined on the chunks of `more` (m, D).

    Raises nothing; with K > n some components are empty. `notify` is told of each lower objective, in mean L2.
    """
    coordinates = principal_coordinates(x, width(E, x.shape[1]), generator)
    small = coordinates.of(x)
    missing = float((x - coordinates.centre).square().sum() - small.square().sum()) / len(
        x
    )  # what the coordinates leave out
    D = x.shape[1]

    best, lowest = annealed(small, K, E, generator), math.inf
    best, lowest = settled(small, best, SETTLE_PASSES)
    for attempt in range(1, restarts if K > 1 else 1):
        found, objective = settled(small, annealed(small, K, E, generator), SETTLE_PASSES)
        if objective < lowest:
            best, lowest = found, objective
        notify(f"start {attempt + 1} of {restarts}: mean L2 {(lowest + missing) / D:.1f} on {len(x)} rows")
    for move in range(moves if K > 1 else 0):
        found, objective = settled(small, moved(small, best, generator), SETTLE_PASSES, give_up=lowest * JUDGE_MARGIN)
        if objective < lowest:
            best, lowest = found, objective
            notify(f"move {move + 1} of {moves}: mean L2 {(lowest + missing) / D:.1f} on {len(x)} rows")

    small = torch.cat([coordinates.of(rows) for rows in more])
    if shrinkage == "auto":
        shrinkage = chosen_strength(small, seeded(small, K, E, generator), generator)
        notify(f"shrinkage: {shrinkage:g} samples, chosen on held-out rows")
    best, _ = settled(small, best, REFINE_PASSES, tol=REFINE_TOL, shrinkage=shrinkage)
    if K <= SOLVED_K:
        best = solved(small, best)
    V = coordinates.V
    components = Components(coordinates.centre + best.mu @ V.T, orthonormal(V @ best.U))
    return Start(components, coordinates, V.new_tensor(shrinkage))


def width(E: int, D: int) -> int:
    """How many principal coordinates the starts work in: ten a latent dimension, at least 64."""
    return min(D, max(64, 10 * E))


def principal_coordinates(x: Tensor, d: int, generator: torch.Generator) -> Coordinates:
    """The mean and the d leading principal directions of x (n, D), by a few orthogonal iterations."""
    centre = x.mean(0)
    centred = x - centre
    V = torch.randn(x.shape[1], d, generator=generator).to(x)
    for _ in range(3):
        V = orthonormal((centred.T @ (centred @ V))[None])[0]
    spread = (centred @ V).T @ (centred @ V)
    return Coordinates(centre, V @ torch.linalg.eigh(spread)[1].flip(1))


def annealed(x: Tensor, K: int, E: int, generator: torch.Generator) -> Components:
    """Components for x (n, d) from K random rows, by soft passes of falling temperature."""
    components = seeded(x, K, E, generator)
    if K == 1 or K > ANNEALED_K:
        return components
    heat = survey(_chunks(x), components).objective
    for i in range(ANNEAL_PASSES):
        temperature = heat * ANNEAL_FROM * (ANNEAL_TO / ANNEAL_FROM) ** (i / (ANNEAL_PASSES - 1))
        components = improved(components, soft_survey(_chunks(x), components, max(temperature, 1e-30)))
    return components


def seeded(x: Tensor, K: int, E: int, generator: torch.Generator) -> Components:
    """K cells around random rows of x (n, d), each with its mean and a random start for its basis."""
    n, d = x.shape
    rows = torch.randperm(n, generator=generator)[torch.arange(K) % n].to(x.device)
    k = torch.cat([torch.cdist(part, x[rows]).argmin(1) for part in x.split(4096)])
    mu = x[rows].clone()
    U = torch.randn(K, d, E, generator=generator).to(x)
    for j in range(K):
        own = x[k == j]
        if len(own):
            mu[j] = own.mean(0)
            U[j] = (own - mu[j]).T @ ((own - mu[j]) @ U[j])
    return Components(mu, orthonormal(U))


def settled(
    x: Tensor,
    components: Components,
    passes: int,
    *,
    tol: float = 0.0,
    give_up: float = math.inf,
    shrinkage: float = 0.0,
) -> tuple[Components, float]:
    """Up to `passes` hard passes over x (n, d): the components, and the objective of the last ones surveyed.

    Stops once a pass lowers the objective by less than the share `tol`, or is above `give_up` after JUDGE_AT passes.
    """
    objective, here = math.inf, Coordinates.identity(x)
    for i in range(passes):
        statistics = survey(_chunks(x), components, here if shrinkage else None)
        before, objective = objective, statistics.objective
        if (before - objective <= tol * objective and i > 0) or (i >= JUDGE_AT and objective > give_up):
            break
        kept, components = components, shrunk(components, statistics, here, shrinkage)
    return (components if math.isinf(objective) else kept), objective


def solved(x: Tensor, components: Components) -> Components:
    """The optimum for the assignments of x (n, d): mu_k the mean, U_k the E leading eigenvectors of the scatter.

    What many orthogonal iterations would come to; affordable in d coordinates, where eigenproblems are small.
    """
    statistics = survey(_chunks(x), components, Coordinates.identity(x))
    E = components.U.shape[2]
    count = statistics.count[:, None]
    mean = torch.where(count > 0, statistics.total / count.clamp(min=1), components.mu)
    covariance = statistics.scatter / count[:, :, None].clamp(min=1) - mean[:, :, None] * mean[:, None, :]
    U = torch.linalg.eigh(covariance)[1].flip(2)[:, :, :E]
    return Components(mean, torch.where(count[:, :, None] > E, U, components.U))


def moved(x: Tensor, components: Components, generator: torch.Generator) -> Components:
    """A split-merge move: component a goes, its samples to their second choice; component b is halved.

    a is drawn among those that cost least to remove, b among those with the largest distortion.
    """
    statistics = survey(_chunks(x), components)
    removal = removal_cost(x, components)
    loss = removal / removal.mean().clamp(min=1e-30)
    a = _drawn(torch.softmax(-2 * loss, 0), generator)
    worth = statistics.distortion / statistics.distortion.mean().clamp(min=1e-30)
    worth[a] = -math.inf
    b = _drawn(torch.softmax(2 * worth, 0), generator)
    new = components.clone()
    for j, half in zip((a, b), split(x, winners(x, components), components, b, generator), strict=True):
        new.mu[j], new.U[j] = half.mu[0], half.U[0]
    return new


def removal_cost(x: Tensor, components: Components) -> Tensor:
    """What the summed squared residual of x (n, d) would rise by without each component, (K,); K > 1."""
    score = Scorer(components)
    cost = x.new_zeros(len(components.mu))
    for part in _chunks(x):
        two, k = score(part)[0].topk(2, dim=1, largest=False)
        cost.index_add_(0, k[:, 0], two[:, 1] - two[:, 0])
    return cost


def _drawn(probability: Tensor, generator: torch.Generator) -> int:
    return int(torch.multinomial(probability.cpu().float(), 1, generator=generator))


def _chunks(x: Tensor) -> Iterator[Tensor]:
    return iter(x.split(2048))
