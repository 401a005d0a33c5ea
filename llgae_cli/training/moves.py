"""Split-merge moves: one component is removed and another one split in two, where that lowers the objective.

Of the K (K - 1) moves the most promising are tried first.

Source: Ueda, Nakano, Ghahramani and Hinton, SMEM algorithm for mixture models, Neural Computation 12 (2000).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from llgae_cli.threads import run_parallel, run_single_threaded
from llgae_cli.training.components import Components, choose_seeds, halve, join
from llgae_cli.training.narrow import MomentScorer, multiply_values
from llgae_cli.training.restart_work import (
    HALF_PASSES,
    MOVE_PASSES,
    NARROW_HALF_PASSES,
    PATIENCE,
    PROMISING_MOVES,
    RACE_PASSES,
    count_proposal,
    expect_moves,
)
from llgae_cli.training.scoring import PairScorer, Scorer
from llgae_cli.training.statistics import Statistics, collect_statistics, update_components
from llgae_cli.training.subset import Subset, run_passes

WIDE = 64  # values of a row; the splits of narrower rows are fitted together. At 200, with K = 11, that saves no time


def search_moves(
    subset: Subset, components: Components, moves: int, generator: torch.Generator, following: float = 0.0
) -> Components:
    """Return the components after some passes and at most `moves` split-merge moves, each kept where it succeeds.

    A move succeeds where the objective after its passes is lower. Ends after PATIENCE moves without success in a row.
    Where passes use products, the proposed moves are tried together: all but the best one fail (see `choose_by_race`).
    `following`: operations that the restart takes after the search, about.
    """
    (K, d, E), n = components.U.shape, len(subset.x)
    products = subset.products is not None
    subset.step = "first passes"
    best, lowest = run_passes(subset, components, MOVE_PASSES)
    queue: list[Components] = []
    tried = failed = successes = 0
    while tried < moves and failed < PATIENCE:
        subset.step = f"move {tried + 1}"
        subset.work.expect("restarts", expect_moves(n, d, K, E, products, moves - tried, successes, failed) + following)
        queue = queue or propose_moves(subset, best, generator)
        if not queue:  # there is no move where no component has two samples
            break
        together = min(len(queue), moves - tried) if products else 1
        moved, queue = choose_by_race(subset, queue[:together]), queue[together:]
        tried += together
        moved, objective = run_passes(subset, moved, MOVE_PASSES, best=lowest)
        if objective < lowest:
            best, lowest, queue, failed, successes = moved, objective, [], 0, successes + 1
        else:
            failed += together
    subset.work.expect("restarts", following)
    return best


def choose_by_race(subset: Subset, moved: list[Components]) -> Components:
    """Return the components with the lowest objective after RACE_PASSES passes of each, as the last pass updates them.

    All go through a pass together: where passes use products, starting their operations takes most of the time. Where
    there is nothing to choose from, no pass is made.
    """
    if len(moved) == 1:
        return moved[0]
    components = join(moved)
    for _ in range(RACE_PASSES):
        statistics = subset.collect_group_statistics(components, len(moved))
        components = run_single_threaded(partial(update_components, components, statistics), subset.on_cpu)
    best = int(statistics.distortion.view(len(moved), -1).sum(1).argmin())
    return Components(*(each.chunk(len(moved))[best] for each in (components.mu, components.U)))


def propose_moves(subset: Subset, components: Components, generator: torch.Generator) -> list[Components]:
    """Return the components after each of the PROMISING_MOVES best split-merge moves, the best one first.

    A move removes component a, whose samples go to their second nearest component, and splits component b in two. Its
    estimated gain is what the split wins on the samples of b after some passes, minus what the removal costs. The
    estimate is pessimistic, because no other component adapts; but most moves that succeed have a high one.
    """
    (K, d, E), n = components.U.shape, len(subset.x)
    removal_cost, distortion, k = score_removals(subset, components)
    splits = split_each(subset, components, k, generator)
    split_gain = torch.full((K,), -math.inf)
    for b, split in splits.items():
        split_gain[b] = float(distortion[b]) - split.distortion
    subset.count(count_proposal(n, d, K, E, subset.products is not None))
    gain = (split_gain[None, :] - removal_cost.cpu()[:, None]).fill_diagonal_(-math.inf)  # (a, b)
    best = gain.flatten().topk(min(PROMISING_MOVES, K * (K - 1))).indices.tolist()
    moved = []
    for a, b in (divmod(move, K) for move in best):
        if gain[a, b] > -math.inf:
            new = components.clone()
            new.mu[[a, b]], new.U[[a, b]] = splits[b].components.mu, splits[b].components.U
            moved.append(new)
    return moved


def score_removals(subset: Subset, components: Components) -> tuple[Tensor, Tensor, Tensor]:
    """Return the increase of the distortion if component k were removed (K,), the distortions (K,), and all k (n,).

    Distortions are sums of squared residuals over the samples of a component. K is at least 2.
    """
    score, x = Scorer(components, subset.workspace), subset.x
    cost, distortion, nearest = x.new_zeros(score.K), x.new_zeros(score.K), []
    for part in subset.chunks():
        two, k = score.distances(part).topk(2, dim=1, largest=False)
        cost.index_add_(0, k[:, 0], two[:, 1] - two[:, 0])
        distortion.index_add_(0, k[:, 0], two[:, 0] + part.square().sum(1))
        nearest.append(k[:, 0])
    return cost, distortion, torch.cat(nearest)


@dataclass
class Split:
    """Two components in place of one, and their distortion over its samples."""

    components: Components
    distortion: float


def split_each(subset: Subset, components: Components, k: Tensor, generator: torch.Generator) -> dict[int, Split]:
    """Return the split of each component with two samples or more, given the components k (n,) of all samples."""
    counts = torch.bincount(k, minlength=len(components.mu)).tolist()
    order = torch.argsort(k, stable=True)
    x = subset.x[order]
    rows = {b: own for b, own in enumerate(x.split(counts)) if len(own) > 1}
    products = None if subset.products is None else multiply_values(x).split(counts, 1)
    if products is None:
        halves = {b: halve(own, components.U[b], generator) for b, own in rows.items()}
    else:  # without axes, each row goes to the nearer one of two rows, as in `halve`
        points = torch.zeros_like(components.U[:2])
        halves = {b: Components(choose_seeds(own, 2, generator), points) for b, own in rows.items()}
    groups = [list(rows)] if rows and subset.x.shape[1] < WIDE else [[b] for b in rows]

    def fit(group: list[int]) -> list[Split]:
        def collect(pairs: Components, going: list[int]) -> Statistics:
            own = [rows[group[p]] for p in going]
            if products is None:
                score = PairScorer(pairs, [len(part) for part in own], subset.workspace)
                return collect_statistics([own[0] if len(own) == 1 else torch.cat(own)], pairs, score=score)
            parts = zip(own, (products[group[p]] for p in going), strict=True)
            return MomentScorer(pairs).collect_pairs(list(parts)).to_statistics(pairs)

        pairs = join([halves[b] for b in group])
        if products is None:
            return fit_pairs(pairs, HALF_PASSES, collect)
        return fit_pairs(update_components(pairs, collect(pairs, list(range(len(group))))), NARROW_HALF_PASSES, collect)

    splits: list[Split] = []
    run_parallel(fit, groups, splits.extend, subset.on_cpu)
    return dict(zip(rows, splits, strict=True))


def fit_pairs(
    components: Components, passes: int, collect: Callable[[Components, list[int]], Statistics]
) -> list[Split]:
    """Return each pair 2 p, 2 p + 1 after up to so many passes over its own rows, while its distortion falls.

    It is the pair of the pass with the lowest distortion. `collect(components, going)` returns the statistics of the
    pairs with the indices `going`, which have these components.
    """
    splits = [Split(components, math.inf)] * (len(components.mu) // 2)
    going = list(range(len(splits)))  # pairs whose distortion still falls
    for i in range(passes):
        statistics = collect(components, going)
        distortions = statistics.distortion.view(-1, 2).sum(1).tolist()
        fallen = [j for j, p in enumerate(going) if distortions[j] < splits[p].distortion]
        for j in fallen:
            pair = slice(2 * j, 2 * j + 2)
            splits[going[j]] = Split(Components(components.mu[pair], components.U[pair]), distortions[j])
        if not fallen or i == passes - 1:
            break
        components = update_components(components, statistics)
        if len(fallen) < len(going):
            kept = [index for j in fallen for index in (2 * j, 2 * j + 1)]
            components = Components(components.mu[kept], components.U[kept])
            going = [going[j] for j in fallen]
    return splits
