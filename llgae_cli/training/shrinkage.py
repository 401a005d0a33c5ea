"""Shrinkage of scatters toward those of neighbours, for components with few samples each: large K, less over-fitting.

The scatter S_k of component k becomes S_k + strength * C_k, where C_k is the pooled covariance of its nearest
components: as if the component had `strength` more samples, distributed as its neighbours' are. C_k is kept in the d
leading principal coordinates, C_k ~ V (V^T C_k V) V^T. The pass that assigns samples collects it, at 2 N d (D + d)
further operations.

Source of the idea: shrinkage of covariances toward a pooled one, Friedman, Regularized discriminant analysis,
J. Amer. Stat. Assoc. 84 (1989).
"""

import torch
from torch import Tensor

from llgae_cli.training.components import Components, Coordinates
from llgae_cli.training.statistics import Statistics, collect_statistics, update_components

NEIGHBOURS = 12
STRENGTHS = (0.0, 25.0, 50.0, 100.0, 200.0, 400.0)
TRIAL_PASSES = 12


def update_with_shrinkage(
    components: Components, statistics: Statistics, coordinates: Coordinates, strength: float
) -> Components:
    """Return the next components as `update_components` does, with scatters S_k + strength * C_k."""
    if strength == 0 or len(components.mu) == 1 or components.U.shape[2] == 0:
        return update_components(components, statistics)
    prior = strength * multiply_pooled_covariance(components, statistics, coordinates)
    return update_components(components, statistics, prior)


def multiply_pooled_covariance(components: Components, statistics: Statistics, coordinates: Coordinates) -> Tensor:
    """Return C_k U_k, shape (K, D, E); C_k pools k and its nearest NEIGHBOURS, weighted by their numbers of samples."""
    count = statistics.count
    K = len(count)
    mean_shift = statistics.mean_shift @ coordinates.V  # (K, d)
    scatter = statistics.scatter - count[:, None, None] * mean_shift[:, :, None] * mean_shift[:, None, :]  # (K, d, d)
    mean = coordinates.project(components.mu) + mean_shift
    distance = torch.cdist(mean, mean).masked_fill(count[None, :] == 0, torch.inf)
    nearest = distance.topk(min(NEIGHBOURS + 1, K), largest=False).indices  # (K, M), k itself first
    product = torch.empty_like(components.U)
    for k, j in enumerate(nearest):
        pooled = scatter[j].sum(0) / count[j].sum().clamp(min=1)
        product[k] = coordinates.V @ (pooled @ (coordinates.V.T @ components.U[k]))
    return product


def choose_strength(x: Tensor, components: Components, generator: torch.Generator) -> float:
    """Return the strength of STRENGTHS with the lowest objective on held-out rows, a tenth of x (n, d).

    The other rows are used to fit from `components`, which must not have been fitted to x: they would have been fitted
    to the held-out rows too.
    """
    order = torch.randperm(len(x), generator=generator).to(x.device)
    held_out, kept = x[order[: len(x) // 10]], x[order[len(x) // 10 :]]
    coordinates = Coordinates.identity(x)
    best, lowest = STRENGTHS[0], float("inf")
    for strength in STRENGTHS:
        trial = components.clone()
        for _ in range(TRIAL_PASSES):
            statistics = collect_statistics(iter(kept.split(2048)), trial, coordinates if strength else None)
            trial = update_with_shrinkage(trial, statistics, coordinates, strength)
        objective = collect_statistics(iter(held_out.split(2048)), trial).objective
        if objective > lowest:
            break  # the objective has one minimum in the strength
        best, lowest = strength, objective
    return best
