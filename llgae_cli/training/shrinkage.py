"""A prior on the scatters, for components with few samples each: large K without over-fitting.

Component k's scatter S_k becomes S_k + strength * C_k, where C_k is the pooled covariance of its nearest components:
as if `strength` more samples had been seen, spread like the neighbours' own. C_k is kept in the d leading principal
coordinates, C_k ~ V (V^T C_k V) V^T, which hold all that a few neighbours can tell; the pass that chooses components
collects it at 2 N d (D + d) more operations.

Source of the idea: shrinkage of covariances toward a pooled one, Friedman, Regularized discriminant analysis,
J. Amer. Stat. Assoc. 84 (1989).
"""

import torch
from torch import Tensor

from llgae_cli.training.components import Components, Coordinates
from llgae_cli.training.statistics import Statistics, improved, survey

NEIGHBOURS = 12
STRENGTHS = (0.0, 25.0, 50.0, 100.0, 200.0, 400.0)
TRIAL_PASSES = 12


def shrunk(components: Components, statistics: Statistics, coordinates: Coordinates, strength: float) -> Components:
    """The next components as `improved` makes them, with `strength` samples' worth of the neighbours' covariance."""
    if strength == 0 or len(components.mu) == 1 or components.U.shape[2] == 0:
        return improved(components, statistics)
    return improved(components, statistics, strength * pooled_times_basis(components, statistics, coordinates))


def pooled_times_basis(components: Components, statistics: Statistics, coordinates: Coordinates) -> Tensor:
    """C_k U_k with shape (K, D, E); C_k pools the nearest NEIGHBOURS and k itself by their number of samples."""
    count = statistics.count
    K = len(count)
    moved = statistics.moved @ coordinates.V  # (K, d)
    scatter = statistics.scatter - count[:, None, None] * moved[:, :, None] * moved[:, None, :]  # (K, d, d)
    mean = coordinates.of(components.mu) + moved
    apart = torch.cdist(mean, mean).masked_fill(count[None, :] == 0, torch.inf)
    nearest = apart.topk(min(NEIGHBOURS + 1, K), largest=False).indices  # (K, M), itself first
    product = torch.empty_like(components.U)
    for k, j in enumerate(nearest):
        pooled = scatter[j].sum(0) / count[j].sum().clamp(min=1)
        product[k] = coordinates.V @ (pooled @ (coordinates.V.T @ components.U[k]))
    return product


def chosen_strength(x: Tensor, components: Components, generator: torch.Generator) -> float:
    """The strength that codes held-out rows best: a tenth of x (n, d), the others fitted from `components`.

    `components` must not have been fitted to x, or the held-out rows would not be held out.
    """
    order = torch.randperm(len(x), generator=generator).to(x.device)
    held, kept = x[order[: len(x) // 10]], x[order[len(x) // 10 :]]
    here = Coordinates.identity(x)
    best, lowest = STRENGTHS[0], float("inf")
    for strength in STRENGTHS:
        fitted = components.clone()
        for _ in range(TRIAL_PASSES):
            fitted = shrunk(fitted, survey(iter(kept.split(2048)), fitted, here if strength else None), here, strength)
        objective = survey(iter(held.split(2048)), fitted).objective
        if objective > lowest:
            break  # the curve has one minimum in the strength
        best, lowest = strength, objective
    return best
