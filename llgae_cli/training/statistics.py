"""The one pass over the data that improves all components.

For fixed assignments and exact inference the best mu_k is the mean of component k's samples and the best span of U_k
the leading eigenvectors of their scatter S_k. One orthogonal-iteration step U_k <- orth(S_k U_k) never raises the
objective, because S_k is positive semi-definite, and S_k U_k = sum_i (x_i - mean_k) z_i^T needs only the codes z_i
that choosing the component computed anyway. So a pass is one matrix product for all components (2 n D K E operations)
and one for the winners (2 n D E), and its result adds up over chunks, processes and machines.

Source of the step: orthogonal iteration, Golub and Van Loan, Matrix Computations, section 8.2.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from llgae_cli.inference import choose_exactly, has_lost_digits, within_rounding
from llgae_cli.threads import check_cancelled, run_side_by_side
from llgae_cli.training.components import Components, Coordinates, orthonormal
from llgae_cli.training.scoring import (
    Scorer,
    Workspace,
    projections,
)

SHARDS, SHARD_ROWS = 16, 3000  # parts that a pass is cut into: at most so many, of at least so many rows


@dataclass
class Statistics:
    """All that a pass learns about the data; additive. Distances are squared grey levels summed over pixels.

    Samples are taken relative to mu_k, the component's offset in the pass: far from the origin, sums of x itself would
    lose their digits. z = U^T (x - mu) too. The product with z' = (z, 1, 0 ... 0) holds the sum of x - mu as well. The
    zeros make z' a multiple of 8 long, w: products over 21 rows take a third longer than over 24.
    """

    product: Tensor  # (K, w, D) sum of z' (x - mu)^T: (S U)^T before centring, and the sum of x - mu
    latent: Tensor  # (K, E) sum of z
    count: Tensor  # (K,) samples
    scatter: Tensor  # (K, d, d) sum of y y^T for y = V^T (x - mu), where a pass is given coordinates; else d = 0
    distortion: Tensor  # (K,) sum of the squared residual at the winner, float64
    raw: Tensor  # (K, w) sum of z' over the samples that `centre` has not brought to x - mu and `latent` yet

    @classmethod
    def zeros(cls, components: Components, d: int = 0) -> "Statistics":
        """The statistics of no data, with scatters in d coordinates."""
        mu, U = components.mu, components.U
        K, D, E = U.shape
        wide = torch.float32 if mu.device.type == "mps" else torch.float64  # Apple's GPU has no float64
        w = -(-(E + 1) // 8) * 8
        return cls(
            product=mu.new_zeros(K, w, D),
            latent=mu.new_zeros(K, E),
            count=mu.new_zeros(K),
            scatter=mu.new_zeros(K, d, d),
            distortion=mu.new_zeros(K, dtype=wide),
            raw=mu.new_zeros(K, w),
        )

    @property
    def moved(self) -> Tensor:
        """Mean of x - mu, how far each component's mean is from its offset, (K, D); zero where there is no sample."""
        return self.product[:, self.latent.shape[1]] / self.count.clamp(min=1e-12)[:, None]

    @property
    def centred_product(self) -> Tensor:
        """S U with shape (K, D, E): sum of (x - mean x)(z - mean z)^T."""
        return self.product[:, : self.latent.shape[1]].mT - self.moved[:, :, None] * self.latent[:, None, :]

    def centre(self, mu: Tensor) -> None:
        """Bring what was added as x itself to x - mu, for the offsets mu (K, D) of the pass."""
        self.product.sub_(self.raw[:, :, None] * mu[:, None, :])
        self.latent.add_(self.raw[:, : self.latent.shape[1]])
        self.raw.zero_()

    def add_(self, other: "Statistics") -> None:
        """Add what a pass over other samples has learnt."""
        for mine, others in zip(self.tensors(), other.tensors(), strict=True):
            mine.add_(others)

    def extended(self, workspace: Workspace, *shape: int) -> tuple[Tensor, Tensor]:
        """The rows z' with shape (..., w), ending in (1, 0 ... 0), and the part (..., E) of it that z goes to."""
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
    score: Scorer | None = None,
    found: list[Tensor] | None = None,
) -> Statistics:
    """One pass with hard assignments: the statistics of all chunks x (n, D) at the given components.

    With `coordinates`, the scatters in them too. `score`: a scorer of the components for what the chunks hold (see
    `integers`); its workspace saves the next pass new buffers. The samples' components k (n,) are appended to `found`,
    chunk by chunk.
    """
    score = score or Scorer(components)
    statistics = Statistics.zeros(components, 0 if coordinates is None else coordinates.V.shape[1])
    z0 = projections(components.U, components.mu)
    for x in chunks:
        check_cancelled()
        distance, k, z = score.nearest(x)
        order = torch.argsort(k)
        k = k[order]
        rows = score.taken(x, order)
        squared = torch.linalg.vector_norm(rows, dim=1).square_()  # reads x once and writes n numbers
        distance = distance[order].add_(squared)
        lost = has_lost_digits(distance, squared)
        if bool(lost.any()):
            some = lost.nonzero()[:, 0]
            allowed = within_rounding(score.distances(x[order[some]]), squared[some])
            k[some], exact = choose_exactly(rows[some], components.mu, components.U, allowed)
            distance = distance.to(exact.dtype).index_copy_(0, some, exact)
            again = torch.argsort(k)
            order, k, distance = order[again], k[again], distance[again]
            accumulate(statistics, components, rows[again], distance, k, None, score.workspace, coordinates)
        else:
            z = z[order].sub_(z0[k])
            accumulate(statistics, components, rows, distance, k, z, score.workspace, coordinates)
        if found is not None:
            found.append(torch.empty_like(k).index_copy_(0, order, k))
    statistics.centre(components.mu)
    return statistics


def sum_over_shards(
    survey_part: Callable[[int, int], Statistics],
    low: int,
    high: int,
    K: int,
    parallel: bool = True,
    shard_rows: int = SHARD_ROWS,
) -> Statistics:
    """The statistics of samples low ... high - 1, added up from parts: `survey_part(a, b)` has those of a ... b - 1.

    Parts are surveyed side by side. The samples are cut into the same shards, and their sums added in the same order,
    whatever the number of threads: so is the result. `parallel` false: where parts share buffers, or work on a GPU.
    `shard_rows`: of a shard, at least.
    """
    whole: list[Statistics] = []

    def take(statistics: Statistics) -> None:
        if whole:
            whole[0].add_(statistics)
        else:
            whole.append(statistics)

    run_side_by_side(lambda shard: survey_part(*shard), shards(low, high, K, shard_rows), take, parallel)
    return whole[0]


def shards(low: int, high: int, K: int, rows: int = SHARD_ROWS) -> list[tuple[int, int]]:
    """Parts [a, b) of the samples low ... high - 1: 1, 2, 4, 8 or 16, of equal size, which share out among cores.

    Larger ones where many components make a shard's own sums expensive.
    """
    n, count = high - low, 1
    while count < SHARDS and n >= 2 * count * max(rows, 8 * K):
        count *= 2
    return [(low + n * i // count, low + n * (i + 1) // count) for i in range(count)]


def even(n: int, most: int) -> int:
    """The size of chunks, `most` at most, that n samples are cut into without a small rest."""
    return max(1, -(-n // max(1, -(-n // most))))


def accumulate(
    statistics: Statistics,
    components: Components,
    x: Tensor,
    distance: Tensor,
    k: Tensor,
    z: Tensor | None,
    workspace: Workspace,
    coordinates: Coordinates | None = None,
) -> None:
    """Add samples x (n, D) to the statistics, those of one component side by side: products are dense and contiguous.

    A sample has the component k (n,), from which it is at the squared distance `distance` (n,), and where its
    projection U^T (x - mu) is `z` (n, E). Where z is None, as for samples that are far from the origin, x is replaced
    by x - mu, and z made from that. Otherwise a call of `statistics.centre` has to follow the last chunk.
    """
    statistics.distortion.index_add_(0, k, distance.to(statistics.distortion.dtype))
    tally = torch.bincount(k, minlength=len(statistics.count))
    counts = tally.tolist()
    extended, own = statistics.extended(workspace, len(x))
    if z is None:
        for j, (x_j, own_j) in enumerate(zip(x.split(counts), own.split(counts), strict=True)):
            if len(x_j):
                own_j.copy_(x_j.sub_(components.mu[j]) @ components.U[j])
        statistics.latent.index_add_(0, k, own)
    else:
        own.copy_(z)
        statistics.raw.index_add_(0, k, extended)  # `centre` adds it to `latent` too
    statistics.count += tally
    for j, (x_j, z_j) in enumerate(zip(x.split(counts), extended.split(counts), strict=True)):
        if len(x_j):
            statistics.product[j].addmm_(z_j.T, x_j)
    if coordinates is not None:
        y = x @ coordinates.V
        if z is not None:
            y.sub_((components.mu @ coordinates.V)[k])
        for j, y_j in enumerate(y.split(counts)):
            if len(y_j):
                statistics.scatter[j].addmm_(y_j.T, y_j)


def whole_scorer(components: Components, workspace: Workspace | None = None) -> Scorer:
    """A scorer with all components in one tile, as `soft_survey` needs it."""
    K, _, E = components.U.shape
    return Scorer(components, workspace, columns=K * (E + 1))


def soft_survey(
    chunks: Iterable[Tensor], components: Components, temperature: float, score: Scorer | None = None
) -> Statistics:
    """One pass with soft assignments, softmax_k(-distance / temperature): deterministic annealing's E-step.

    Costs twice a hard pass: every sample counts for every component. `distortion` is still the winner's.
    Source: Rose, Deterministic annealing for clustering, Proc. IEEE 86 (1998).
    """
    score = score or whole_scorer(components)
    statistics = Statistics.zeros(components)
    K, _, E = components.U.shape
    z0 = projections(components.U, components.mu)
    for x in chunks:
        check_cancelled()
        distance, z = score.scores(0, x)
        squared = torch.linalg.vector_norm(x, dim=1).square_()
        best, k = distance.min(1)
        statistics.distortion.index_add_(0, k, (best + squared).clamp_(min=0).to(statistics.distortion.dtype))
        r = torch.softmax(distance / -temperature, 1)[:, :, None]  # (n, K, 1)
        extended, own = statistics.extended(score.workspace, len(x), K)
        torch.sub(z, z0, out=own)
        extended.mul_(r)  # r z', (n, K, w)
        flat = extended.flatten(1)
        sums = flat.sum(0).unflatten(0, (K, -1))
        statistics.count += sums[:, E]
        statistics.raw += sums
        statistics.product.flatten(0, 1).addmm_(flat.T, x)
    statistics.centre(components.mu)
    return statistics


def improved(components: Components, statistics: Statistics, prior: Tensor | float = 0.0) -> Components:
    """The next components: mu_k the mean, U_k <- orth(S_k U_k + prior_k). A component without samples stays.

    `components` are those of the pass. `prior` (K, D, E) is a further scatter's product with U_k; see `shrinkage`.
    """
    SU = statistics.centred_product + prior
    SU = torch.where((statistics.count > 0)[:, None, None], SU, components.U)
    return Components(components.mu + statistics.moved, orthonormal(SU))


def latent_covariance(components: Components, statistics: Statistics, following: Components | None = None) -> Tensor:
    """Covariance of z = U^T x in each component, U^T S U / n with shape (K, E, E); zero where there is no sample.

    `components` are those of the pass, whose product S U holds it already. Of the `following` ones, made from it and
    not surveyed yet, U'^T (S U) (U^T U') / n: what U tells of S, and all of it once the pass has converged.
    """
    n = statistics.count[:, None, None].clamp(min=1)
    SU = statistics.centred_product
    covariance = components.U.mT @ SU / n
    if following is not None:
        covariance = following.U.mT @ SU @ (components.U.mT @ following.U) / n
    return (covariance + covariance.mT) / 2
