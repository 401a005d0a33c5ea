"""Split-merge moves: one component is removed and another one split in two, where that lowers the objective.

Of the K (K - 1) moves the most promising are tried first.

Source: Ueda, Nakano, Ghahramani and Hinton, SMEM algorithm for mixture models, Neural Computation 12 (2000).
"""

import math

import torch
from torch import Tensor

from llgae_cli.training.components import Components, halve
from llgae_cli.training.restart_work import (
    HALF_PASSES,
    MOVE_PASSES,
    PATIENCE,
    PROMISING_MOVES,
    count_proposal,
    expect_moves,
)
from llgae_cli.training.scoring import Scorer
from llgae_cli.training.subset import Subset, run_passes


def search_moves(
    subset: Subset, components: Components, moves: int, generator: torch.Generator, following: float = 0.0
) -> Components:
    """Return the components after some passes and at most `moves` split-merge moves, each kept where it succeeds.

    A move succeeds where the objective after its passes is lower. Ends after PATIENCE moves without success in a row.
    `following`: operations that the restart takes after the search, about.
    """
    (K, d, E), n = components.U.shape, len(subset.x)
    subset.step = "first passes"
    best, lowest = run_passes(subset, components, MOVE_PASSES)
    queue: list[Components] = []
    failed = successes = 0
    for i in range(moves):
        subset.step = f"move {i + 1}"
        subset.work.expect("restarts", expect_moves(n, d, K, E, moves - i, successes, failed) + following)
        queue = queue or propose_moves(subset, best, generator)
        if failed == PATIENCE or not queue:  # there is no move where no component has two samples
            break
        moved, objective = run_passes(subset, queue.pop(0), MOVE_PASSES, best=lowest)
        if objective < lowest:
            best, lowest, queue, failed, successes = moved, objective, [], 0, successes + 1
        else:
            failed += 1
    subset.work.expect("restarts", following)
    return best


def propose_moves(subset: Subset, components: Components, generator: torch.Generator) -> list[Components]:
    """Return the components after each of the PROMISING_MOVES best split-merge moves, the best one first.

    A move removes component a, whose samples go to their second nearest component, and splits component b in two. Its
    estimated gain is what the split wins on the samples of b after some passes, minus what the removal costs. The
    estimate is pessimistic, because no other component adapts; but most moves that succeed have a high one.
    """
    removal_cost, distortion, k = score_removals(subset, components)
    K = len(removal_cost)
    halves: dict[int, Components] = {}
    split_gain = torch.full((K,), -math.inf)
    for b in range(K):
        own = subset.x[k == b]
        if len(own) > 1:
            pair = halve(own, components.U[b], generator)
            halves[b], objective = run_passes(Subset(own), pair, HALF_PASSES)
            split_gain[b] = float(distortion[b]) - objective * len(own)
    subset.count(count_proposal(len(subset.x), subset.x.shape[1], K, components.U.shape[2]))
    gain = (split_gain[None, :] - removal_cost.cpu()[:, None]).fill_diagonal_(-math.inf)  # (a, b)
    best = gain.flatten().topk(min(PROMISING_MOVES, K * (K - 1))).indices.tolist()
    moved = []
    for a, b in (divmod(move, K) for move in best):
        if b in halves:
            new = components.clone()
            new.mu[[a, b]], new.U[[a, b]] = halves[b].mu, halves[b].U
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
