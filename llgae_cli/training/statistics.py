"""One pass over the data: the sufficient statistics of all components, and the update they give.

For fixed assignments and exact inference the best mu_k is the mean of component k's samples, and the best span of U_k
the leading eigenvectors of their scatter S_k. One orthogonal-iteration step U_k <- orth(S_k U_k) never raises the
objective, because S_k is positive semi-definite, and S_k U_k = sum_i (x_i - mean_k) z_i^T needs only the latents z_i
that the choice of the component has computed already. So a pass costs one matrix product for all components
(2 n D K E operations) and one for the winners (2 n D E). Its statistics add up over chunks, processes and machines.

Source of the step: orthogonal iteration, Golub and Van Loan, Matrix Computations, section 8.2.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from llgae_cli.inference import choose_exactly, has_lost_digits
from llgae_cli.threads import check_cancelled, run_parallel
from llgae_cli.training.components import Components, Coordinates, orthonormalise
from llgae_cli.training.scoring import Scorer, Workspace, project_each

CHUNK_VALUES = 1 << 22  # values in a chunk, at most: 16 MB
NARROW_VALUES = 2048 * 200  # and at least, where it has at most 8192 rows: D = 50 takes half the time of 2048 rows
SHARDS, SHARD_ROWS = 16, 3000  # a pass is divided into at most so many shards, of at least so many rows


class Additive(Protocol):
    """Sums over samples."""

    def add_(self, other: Self, /) -> None:
        """Add the sums over other samples."""


Sums = TypeVar("Sums", bound=Additive)


@dataclass
class Statistics:
    """Sufficient statistics of a pass, additive over samples. Distances are squared grey levels summed over pixels.

    Samples enter as x - mu_k, relative to the offset in the pass, and as z = U^T (x - mu): sums of x itself would lose
    their digits far from the origin. With z' = (z, 1, 0 ... 0), of length w, one product holds (S U)^T and the sum of
    x - mu. w is a multiple of 8, because products over 21 rows take a third longer than over 24; where
    `product` is computed from `full`, it is E + 1.
    """

    product: Tensor  # (K, w, D) sum of z' (x - mu)^T
    latent: Tensor  # (K, E) sum of z
    count: Tensor  # (K,) number of samples
    scatter: Tensor  # (K, d, d) sum of y y^T with y = V^T (x - mu) in given coordinates; d = 0 without them
    distortion: Tensor  # (K,) sum of the squared residual, float64
    raw: Tensor  # (K, w) sum of z' over the samples that entered as x; `centre` corrects `product` and `latent` by it
    full: Tensor | None = None  # (K, D, D) sum of (x - mu)(x - mu)^T, where the pass collected it (see `narrow`)

    @classmethod
    def zeros(cls, components: Components, d: int = 0) -> "Statistics":
        """Return the statistics of no samples, with scatters in d coordinates."""
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
    def mean_shift(self) -> Tensor:
        """Mean of x - mu, shape (K, D): the mean of each component minus its offset; zero without samples."""
        return self.product[:, self.latent.shape[1]] / self.count.clamp(min=1e-12)[:, None]

    @property
    def centred_product(self) -> Tensor:
        """S U with shape (K, D, E): sum of (x - mean x)(z - mean z)^T."""
        return self.product[:, : self.latent.shape[1]].mT - self.mean_shift[:, :, None] * self.latent[:, None, :]

    def centre(self, mu: Tensor) -> None:
        """Correct the sums of samples that entered as x, so that they are sums of x - mu, for the pass's mu (K, D)."""
        self.product.sub_(self.raw[:, :, None] * mu[:, None, :])
        self.latent.add_(self.raw[:, : self.latent.shape[1]])
        self.raw.zero_()

    def add_(self, other: "Statistics") -> None:
        """Add the statistics of other samples."""
        for mine, others in zip(self.tensors(), other.tensors(), strict=True):
            mine.add_(others)

    def extended_rows(self, workspace: Workspace, *shape: int) -> tuple[Tensor, Tensor]:
        """Return a buffer for rows z' (..., w), which end in (1, 0 ... 0), and its part (..., E) for z."""
        E = self.latent.shape[1]
        rows = workspace.buffer("extended", self.latent, *shape, self.product.shape[1])
        rows[..., E] = 1.0
        rows[..., E + 1 :] = 0.0
        return rows, rows[..., :E]

    def tensors(self) -> list[Tensor]:
        """Return the additive tensors, for a reduction over processes."""
        return [self.product, self.latent, self.count, self.scatter, self.distortion]

    @property
    def objective(self) -> float:
        """Mean over the samples of the squared residual summed over pixels; divide by D for the mean L2."""
        return float(self.distortion.sum()) / float(self.count.double().sum())


def collect_statistics(
    chunks: Iterable[Tensor],
    components: Components,
    coordinates: Coordinates | None = None,
    score: Scorer | None = None,
    assignments: Tensor | None = None,
) -> Statistics:
    """Return the statistics of all chunks x (n, D), each sample assigned to its nearest component.

    coordinates  collect scatters too, in these coordinates
    score        scorer of the components for the samples as the chunks hold them (see `int8`)
    assignments  (N,) int64, receives the component of every sample
    """
    score = score or Scorer(components)
    statistics = Statistics.zeros(components, 0 if coordinates is None else coordinates.V.shape[1])
    z0 = project_each(components.U, components.mu)
    done = 0
    for x in chunks:
        check_cancelled()
        distance, k, z = score.nearest(x)
        order = torch.argsort(k)
        k = k[order]
        rows = score.gather(x, order)
        squared = torch.linalg.vector_norm(rows, dim=1).square_()  # reads x once and writes n numbers
        distance = distance[order].add_(squared)
        lost = has_lost_digits(distance, squared)
        if bool(lost.any()):
            some = lost.nonzero()[:, 0]
            allowed = score.find_allowed(x, order[some], squared[some])
            k[some], exact = choose_exactly(rows[some], components.mu, components.U, allowed)
            distance = distance.to(exact.dtype).index_copy_(0, some, exact)
            again = torch.argsort(k)
            order, k, distance, rows, latent = order[again], k[again], distance[again], rows[again], None
        else:
            latent = z[order].sub_(z0[k])
        accumulate(statistics, components, rows, distance, k, latent, score.workspace, coordinates)
        if assignments is not None:
            assignments[done : done + len(x)].index_copy_(0, order, k)
        done += len(x)
    statistics.centre(components.mu)
    return statistics


def collect_in_shards(
    chunks: Callable[[int, int], Iterable[Tensor]],
    low: int,
    high: int,
    components: Components,
    coordinates: Coordinates | None,
    score: Scorer,
    *,
    assign: bool,
    parallel: bool,
    shard_rows: int = SHARD_ROWS,
) -> tuple[Statistics, Tensor | None]:
    """Return the statistics of samples low ... high - 1, from `sum_over_shards`, and their assignments if asked.

    `chunks(a, b)` returns samples a ... b - 1 in chunks.
    """
    k = torch.empty(high - low, dtype=torch.int64, device=components.mu.device) if assign else None

    def collect(first: int, last: int) -> Statistics:
        own = None if k is None else k[first - low : last - low]
        return collect_statistics(chunks(first, last), components, coordinates, score, own)

    return sum_over_shards(collect, low, high, score.K, parallel, shard_rows), k


def sum_over_shards(
    collect: Callable[[int, int], Sums],
    low: int,
    high: int,
    K: int,
    parallel: bool = True,
    shard_rows: int = SHARD_ROWS,
) -> Sums:
    """Return the sums over samples low ... high - 1: those of `collect(a, b)`, added over shards a ... b - 1.

    Shards are processed in parallel. They and the order of the sum do not depend on the number of threads, so neither
    does the result. `parallel` is false where shards share buffers or work on a GPU.
    """
    total: list[Sums] = []

    def add(sums: Sums) -> None:
        if total:
            total[0].add_(sums)
        else:
            total.append(sums)

    shards = split_into_shards(low, high, K, shard_rows)
    run_parallel(lambda shard: collect(*shard), shards, add, parallel)
    return total[0]


def split_into_shards(low: int, high: int, K: int, rows: int = SHARD_ROWS) -> list[tuple[int, int]]:
    """Return 1, 2, 4, 8 or 16 ranges [a, b) of equal size that divide low ... high - 1, each of at least `rows` rows.

    With many components a range has at least 8 K rows, because its statistics are large.
    """
    n, count = high - low, 1
    while count < SHARDS and n >= 2 * count * max(rows, 8 * K):
        count *= 2
    return [(low + n * i // count, low + n * (i + 1) // count) for i in range(count)]


def even_chunk_size(n: int, most: int) -> int:
    """Return the size, at most `most`, that divides n samples into as few chunks as possible without a small rest."""
    return max(1, -(-n // max(1, -(-n // most))))


def chunk_rows(K: int, D: int) -> int:
    """Return the number of rows of a chunk: 2048, and more for large K, where a component would have too few of them.

    More also for small D, where starting the operations takes longer than they do. At least 256, and at most what
    CHUNK_VALUES allows.
    """
    return max(256, min(max(2048, 4 * K, NARROW_VALUES // D), 8192, CHUNK_VALUES // D))


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
    """Add samples x (n, D), sorted by their component k (n,), to the statistics.

    Sorted, the samples of one component are contiguous, and products dense. `distance` (n,) is the squared residual and
    z (n, E) the projection U^T (x - mu). Where z is None, as for samples far from the origin, x is replaced by x - mu
    in place and z computed from that. With z given, `statistics.centre` must be called after the last chunk.
    """
    statistics.distortion.index_add_(0, k, distance.to(statistics.distortion.dtype))
    tally = torch.bincount(k, minlength=len(statistics.count))
    counts = tally.tolist()
    extended, latent = statistics.extended_rows(workspace, len(x))
    if z is None:
        for j, (x_j, latent_j) in enumerate(zip(x.split(counts), latent.split(counts), strict=True)):
            if len(x_j):
                latent_j.copy_(x_j.sub_(components.mu[j]) @ components.U[j])
        statistics.latent.index_add_(0, k, latent)
    else:
        latent.copy_(z)
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


def collect_soft_statistics(
    chunks: Iterable[Tensor], components: Components, temperature: float, score: Scorer
) -> Statistics:
    """Return the statistics of all chunks x (n, D) with soft assignments r = softmax_k(-distance / temperature).

    This is the E-step of deterministic annealing. It costs twice as much as `collect_statistics`, because every sample
    counts for every component. `distortion` is that of the nearest component. `score` has a single tile.

    Source: Rose, Deterministic annealing for clustering, Proc. IEEE 86 (1998).
    """
    statistics = Statistics.zeros(components)
    K, _, E = components.U.shape
    z0 = project_each(components.U, components.mu)
    for x in chunks:
        check_cancelled()
        distance, z = score.score_tile(0, x)
        squared = torch.linalg.vector_norm(x, dim=1).square_()
        best, k = distance.min(1)
        statistics.distortion.index_add_(0, k, (best + squared).clamp_(min=0).to(statistics.distortion.dtype))
        r = torch.softmax(distance / -temperature, 1)[:, :, None]  # (n, K, 1)
        extended, latent = statistics.extended_rows(score.workspace, len(x), K)
        torch.sub(z, z0, out=latent)
        extended.mul_(r)  # r z', (n, K, w)
        flat = extended.flatten(1)
        sums = flat.sum(0).unflatten(0, (K, -1))
        statistics.count += sums[:, E]
        statistics.raw += sums
        statistics.product.flatten(0, 1).addmm_(flat.T, x)
    statistics.centre(components.mu)
    return statistics


def update_components(components: Components, statistics: Statistics, prior: Tensor | None = None) -> Components:
    """Return the next components: mu_k the mean, U_k <- orth(S_k U_k + prior_k). One without samples is unchanged.

    Where the pass collected full scatters and there is no prior, the U_k of components with more than E samples are
    the leading eigenvectors of S_k: the optimum, to which orthogonal iterations converge.

    `components` are those of the pass. `prior` (K, D, E) is the product of a further scatter and U_k (see `shrinkage`).
    """
    n, shift, E = statistics.count[:, None, None], statistics.mean_shift, components.U.shape[2]
    mu = components.mu + shift

    def iterate() -> Tensor:
        SU = statistics.centred_product if prior is None else statistics.centred_product + prior
        return orthonormalise(torch.where(n > 0, SU, components.U))

    if statistics.full is None or prior is not None:
        return Components(mu, iterate())
    covariance = statistics.full / n.clamp(min=1e-12) - shift[:, :, None] * shift[:, None, :]
    U = torch.linalg.eigh(covariance)[1].flip(2)[:, :, :E]
    # With at most E samples, some of these eigenvectors belong to eigenvalues of zero: they would be arbitrary.
    return Components(mu, U if bool((n > E).all()) else torch.where(n > E, U, iterate()))


def latent_covariance(components: Components, statistics: Statistics, following: Components | None = None) -> Tensor:
    """Return the covariance of z = U^T x in each component, U^T S U / n with shape (K, E, E); zero without samples.

    `components` are those of the pass. For the `following` components, which were computed from its statistics and have
    no pass of their own yet, the result is U'^T (S U) (U^T U') / n: exact once the passes have converged.
    """
    n = statistics.count[:, None, None].clamp(min=1)
    SU = statistics.centred_product
    covariance = components.U.mT @ SU / n
    if following is not None:
        covariance = following.U.mT @ SU @ (components.U.mT @ following.U) / n
    return (covariance + covariance.mT) / 2
