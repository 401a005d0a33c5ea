"""The one pass over the data that improves all components.

For fixed assignments and exact inference the best mu_k is the mean of component k's samples and the best span of U_k
the leading eigenvectors of their scatter S_k. One orthogonal-iteration step U_k <- orth(S_k U_k) never raises the
objective, because S_k is positive semi-definite, and S_k U_k = sum_i (x_i - mean_k) z_i^T needs only the codes z_i
that choosing the component computed anyway. So a pass is one matrix product for all components (2 n D K E operations)
and one for the winners (2 n D E), and its result adds up over chunks, processes and machines.

Source of the step: orthogonal iteration, Golub and Van Loan, Matrix Computations, section 8.2.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from llgae_cli.training.components import Components, Coordinates, orthonormal
from llgae_cli.training.scoring import Scorer, Workspace, projections


@dataclass
class Statistics:
    """All that a pass learns about the data; additive. Distances are squared grey levels summed over pixels.

    The product with z' = (z - z0, 1, 0 ... 0), z0 = U^T mu at the start of the pass, holds the sum of x too. The zeros
    make z' a multiple of 8 long, w: products over 21 rows take a third longer than over 24.
    """

    product: Tensor  # (K, w, D) sum of z' x^T: (S U)^T before centring, and the sum of x
    latent: Tensor  # (K, E) sum of z - z0
    count: Tensor  # (K,) samples
    scatter: Tensor  # (K, d, d) sum of y y^T in coordinates y, where a pass is given any; else d = 0
    distortion: Tensor  # (K,) sum of the squared residual at the winner, float64

    @classmethod
    def zeros(cls, components: Components, d: int = 0) -> "Statistics":
        """The statistics of no data, with scatters in d coordinates."""
        mu, U = components.mu, components.U
        K, D, E = U.shape
        wide = torch.float32 if mu.device.type == "mps" else torch.float64  # Apple's GPU has no float64
        return cls(
            product=mu.new_zeros(K, -(-(E + 1) // 8) * 8, D),
            latent=mu.new_zeros(K, E),
            count=mu.new_zeros(K),
            scatter=mu.new_zeros(K, d, d),
            distortion=mu.new_zeros(K, dtype=wide),
        )

    @property
    def total(self) -> Tensor:
        """Sum of x, (K, D)."""
        return self.product[:, self.latent.shape[1]]

    def centred_product(self, mean: Tensor) -> Tensor:
        """S U with shape (K, D, E): sum of (x - mean)(z - mean z)^T, for the component's own `mean` (K, D)."""
        return self.product[:, : self.latent.shape[1]].mT - mean[:, :, None] * self.latent[:, None, :]

    def extended(self, workspace: Workspace, *shape: int) -> tuple[Tensor, Tensor]:
        """Z' with shape (..., w), its last columns (1, 0 ... 0), and the part (..., E) of it that z - z0 goes to."""
        E = self.latent.shape[1]
        whole = workspace.take("extended", self.latent, *shape, self.product.shape[1])
        whole[..., E] = 1.0
        whole[..., E + 1 :] = 0.0
        return whole, whole[..., :E]

    def tensors(self) -> list[Tensor]:
        """The additive tensors, for a reduction over processes."""
        return [self.product, self.latent, self.count, self.scatter, self.distortion]

    @property
    def n(self) -> float:
        """Samples seen."""
        return float(self.count.double().sum())

    @property
    def objective(self) -> float:
        """Mean over the samples of the squared residual summed over pixels (divide by D for the mean L2)."""
        return float(self.distortion.sum()) / self.n


def survey(
    chunks: Iterable[Tensor],
    components: Components,
    coordinates: Coordinates | None = None,
    workspace: Workspace | None = None,
    scorer: type[Scorer] = Scorer,
    found: list[Tensor] | None = None,
) -> Statistics:
    """One pass with hard assignments: the statistics of all chunks x (n, D) at the given components.

    With `coordinates`, the scatters in them too. A `workspace` saves the next pass new buffers. `scorer`: of what the
    chunks hold; see `integers`. The samples' components k (n,) are appended to `found`, chunk by chunk.
    """
    score = scorer(components, workspace)
    statistics = Statistics.zeros(components, 0 if coordinates is None else coordinates.V.shape[1])
    z0 = projections(components.U, components.mu)
    for x in chunks:
        best, k, z = score.nearest(x)
        if found is not None:
            found.append(k)
        order = torch.argsort(k)
        k = k[order]
        z = z[order].sub_(z0[k])
        accumulate(statistics, score.taken(x, order), best[order], k, z, score.workspace, coordinates)
    return statistics


def accumulate(
    statistics: Statistics,
    x: Tensor,
    best: Tensor,
    k: Tensor,
    z: Tensor,
    workspace: Workspace,
    coordinates: Coordinates | None = None,
) -> None:
    """Add samples x (n, D) to the statistics, those of one component side by side: products are dense and contiguous.

    A sample has the component k (n,), from which it is at the squared distance `best` (n,), less |x|^2, and where its
    projection z - z0 is `z` (n, E).
    """
    squared = torch.linalg.vector_norm(x, dim=1).square_()  # reads x once and writes n numbers, unlike x.square()
    statistics.distortion.index_add_(0, k, (best + squared).to(statistics.distortion.dtype))
    extended, own = statistics.extended(workspace, len(x))
    own.copy_(z)
    statistics.latent.index_add_(0, k, own)
    tally = torch.bincount(k, minlength=len(statistics.count))
    statistics.count += tally
    counts = tally.tolist()
    for j, (x_j, z_j) in enumerate(zip(x.split(counts), extended.split(counts), strict=True)):
        if len(x_j):
            statistics.product[j].addmm_(z_j.T, x_j)
    if coordinates is not None:
        for j, y_j in enumerate(coordinates.of(x).split(counts)):
            if len(y_j):
                statistics.scatter[j].addmm_(y_j.T, y_j)


def soft_survey(
    chunks: Iterable[Tensor], components: Components, temperature: float, workspace: Workspace | None = None
) -> Statistics:
    """One pass with soft assignments, softmax_k(-distance / temperature): deterministic annealing's E-step.

    Costs twice a hard pass: every sample counts for every component. `distortion` is still the
    winner's.
    Source: Rose, Deterministic annealing for clustering, Proc. IEEE 86 (1998).
    """
    score = Scorer(components, workspace, columns=components.U.shape[0] * (components.U.shape[2] + 1))  # one tile
    statistics = Statistics.zeros(components)
    K, _, E = components.U.shape
    z0 = projections(components.U, components.mu)
    for x in chunks:
        distance, z = score.scores(0, x)
        squared = torch.linalg.vector_norm(x, dim=1).square_()
        best, k = distance.min(1)
        statistics.distortion.index_add_(0, k, (best + squared).to(statistics.distortion.dtype))
        r = torch.softmax(distance / -temperature, 1)[:, :, None]  # (n, K, 1)
        extended, own = statistics.extended(score.workspace, len(x), K)
        torch.sub(z, z0, out=own)
        extended.mul_(r)  # r z', (n, K, w)
        flat = extended.flatten(1)
        sums = flat.sum(0).unflatten(0, (K, -1))
        statistics.latent += sums[:, :E]
        statistics.count += sums[:, E]
        statistics.product.flatten(0, 1).addmm_(flat.T, x)
    return statistics


def improved(components: Components, statistics: Statistics, prior: Tensor | float = 0.0) -> Components:
    """The next components: mu_k the mean, U_k <- orth(S_k U_k + prior_k). A component without samples stays.

    `prior` (K, D, E) is a further scatter's product with U_k; see `shrinkage`.
    """
    n = statistics.count[:, None]
    filled = n > 0
    mean = torch.where(filled, statistics.total / n.clamp(min=1e-12), components.mu)
    SU = statistics.centred_product(mean) + prior
    SU = torch.where(filled[:, :, None], SU, components.U)
    return Components(mean, orthonormal(SU))


def latent_covariance(components: Components, statistics: Statistics, following: Components | None = None) -> Tensor:
    """Covariance of z = U^T x in each component, U^T S U / n with shape (K, E, E); zero where there is no sample.

    `components` are those of the pass, whose product S U holds it already. Of the `following` ones, made from it and
    not surveyed yet, U'^T (S U) (U^T U') / n: what U tells of S, and all of it once the pass has converged.
    """
    n = statistics.count[:, None].clamp(min=1)
    SU = statistics.centred_product(statistics.total / n)
    covariance = components.U.mT @ SU / n[:, :, None]
    if following is not None:
        covariance = following.U.mT @ SU @ (components.U.mT @ following.U) / n[:, :, None]
    return (covariance + covariance.mT) / 2
