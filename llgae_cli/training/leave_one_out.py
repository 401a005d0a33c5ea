"""The cost of a row in its own component, had the component been fitted without it.

A component is fitted to few rows in many dimensions, so its axes turn toward each of them: a row fits its own component
better than it fits others that would code it as well, and stays where it is. A row that is new to the model has no such
advantage. Assigned by leave-one-out cost, training rows go to the components that would suit them as new rows.

Let a component have the mean mu of n rows and the covariance C = (S + s P) / (n + s), with the rows' scatter S and the
strength s of shrinkage toward P. Without the row r = y - mu

    the mean is mu - r / (n - 1), so the row lies r n / (n - 1) from it,
    the covariance is proportional to C - rho r r^T,     rho = n / ((n - 1) (n + s)).

In the span of the axes u_e and of what they leave of r, C is about diag(d) with d = (v_1, ..., v_E, w). So the E + 1
numbers a, which are u_e^T r and the length of the rest, have under the new axes the squared residual

    (a^T x)^2 / |x|^2,     x_i = a_i / (d_i - kappa),     sum_i a_i^2 / (d_i - kappa) = 1 / rho

where kappa is the least eigenvalue of diag(d) - rho a a^T, and x its eigenvector. So a^T x = 1 / rho.

Sources: Golub, Some modified matrix eigenvalue problems, SIAM Review 15 (1973), for the eigenvalues; Telgarsky and
Vattani, Hartigan's method: k-means clustering without Voronoi, AISTATS (2010), where the factors of n alone correct
k-means so.
"""

import torch
from torch import Tensor

from llgae_cli.training.mixture import Mixture, widen

ITERATIONS = 10  # of Newton's method, which converges from above
APART = 0.999  # the variance along a row's residual stays below that of coded latents
SMALLEST = 1e-9  # what counts as zero, over what it is compared with
ROUNDING = 1e3  # the same in units of the precision: what decides in float32


def exclude_row(squared: Tensor, residual: Tensor, v: Tensor, w: Tensor, rho: Tensor) -> Tensor:
    """Return the squared residuals (m,) of rows under the axes of diag(v, w) - rho a a^T, which are without them.

    squared   a_e^2 for the present axes, (m, E); 0 where latents are not coded
    residual  the last a^2, (m,); at least 0
    v         variances of the latents, (m, E); inf where not coded
    w         variance along the residual, the row included, (m,); positive, and below v
    rho       (m,); positive
    """
    # Below it w - kappa has lost its digits, and there is nothing to correct.
    least = max(SMALLEST, ROUNDING * torch.finfo(w.dtype).eps) * w / rho
    a2 = torch.cat([squared, torch.maximum(residual, least)[:, None]], 1)
    d = torch.cat([v, w[:, None]], 1)
    kappa = w - rho * a2[:, -1]  # where the last term alone is 1 / rho: not below the solution
    for _ in range(ITERATIONS):
        f = (a2 / (d - kappa[:, None])).sum(1)
        slope = (a2 / (d - kappa[:, None]).square()).sum(1)
        kappa = kappa + f * (1 - rho * f) / slope  # Newton's step for 1 / f, which is nearly linear and concave
    slope = (a2 / (d - kappa[:, None]).square()).sum(1)
    return torch.where(residual > least, torch.maximum(residual, 1 / (rho.square() * slope)), residual)


def compute_correction(
    y: Tensor, own: Tensor, mixture: Mixture, theta: float, count: Tensor, strength: float
) -> Tensor:
    """Return what leaving a row out adds to its cost J in its own component, (m,), for rows y (m, d) in `own` (m,).

    Only the residual is corrected: the price of the coded latents is left as it is. A row without residual gets no
    correction, so neither do the rows of a component with no more rows than coded latents. A component of fewer than 2
    rows counts as one of 2.

    count     rows of each component that the mixture was fitted to, (K,)
    strength  of shrinkage, in rows
    """
    squared, length = y.new_empty(len(y), mixture.v.shape[1]), y.new_empty(len(y))
    order = own.argsort(stable=True)
    for some in order.split(torch.unique_consecutive(own[order], return_counts=True)[1].tolist()):
        j = int(own[some[0]])
        r = y[some] - mixture.mu[j]
        squared[some], length[some] = (r @ mixture.U[j]).square_(), r.square().sum(1)
    v = widen(mixture.v[own])
    coded = v > theta
    squared = torch.where(coded, widen(squared), 0.0)
    residual = (widen(length) - squared.sum(1)).clamp(min=0)
    n = widen(count)[own].clamp(min=2)
    rho = n / ((n - 1) * (n + strength))
    outside = v[:, -1].clamp(min=SMALLEST * theta, max=theta) if v.shape[1] else torch.full_like(residual, theta)
    v = torch.where(coded, v, torch.inf)
    # The row itself is a part of the variance along its residual. That of the others is about the last latent's, or the
    # largest that is not worth bits.
    w = outside + rho * residual
    if v.shape[1]:
        w = torch.minimum(w, APART * v.min(1).values)
    return ((n / (n - 1)).square() * exclude_row(squared, residual, v, w, rho) - residual).to(y)
