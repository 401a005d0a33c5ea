"""K affine subspaces (mu_k, U_k) with orthonormal bases, and the one pass over the data that improves them all.

For fixed assignments and exact inference the best mu_k is the mean of component k's samples and the best span of U_k
the leading eigenvectors of their scatter S_k. One orthogonal-iteration step U_k <- orth(S_k U_k) never raises the
objective, because S_k is positive semi-definite, and S_k U_k = sum_i (x_i - mean_k) z_i^T needs only the codes z_i
that choosing the component computed anyway. So a pass is one matrix product for all components (2 n D K E operations)
and one for the winners (2 n D E), and its result adds up over chunks, processes and machines.

Source of the step: orthogonal iteration, Golub and Van Loan, Matrix Computations, section 8.2.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Components:
    """mu with shape (K, D) and orthonormal U with shape (K, D, E)."""

    mu: Tensor
    U: Tensor

    def clone(self) -> "Components":
        """A copy that shares no storage."""
        return Components(self.mu.clone(), self.U.clone())

    def scorer(self) -> "Scorer":
        """The constants of one pass, folded once."""
        return Scorer(self)


@dataclass
class Coordinates:
    """Principal coordinates: x ~ centre + V y with `centre` (D,) and orthonormal V (D, d)."""

    centre: Tensor
    V: Tensor

    @classmethod
    def identity(cls, x: Tensor) -> "Coordinates":
        """Where x (n, d) is in coordinates already."""
        return cls(x.new_zeros(x.shape[1]), torch.eye(x.shape[1], dtype=x.dtype, device=x.device))

    def of(self, x: Tensor) -> Tensor:
        """V^T (x - centre), the coordinates y with shape (n, d)."""
        return (x - self.centre) @ self.V


class Workspace:
    """Buffers kept from chunk to chunk: fresh pages for each chunk would cost as much as a sixth of a pass."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """An uninitialised tensor of that shape, and of the type and device of `like`; the next call reuses it."""
        numbers = math.prod(shape)
        if name not in self._kept or self._kept[name].numel() < numbers:
            self._kept[name] = like.new_empty(numbers)
        return self._kept[name][:numbers].view(shape)


class Scorer:
    """|x - mu_k - U_k U_k^T (x - mu_k)|^2 - |x|^2 for all k, and the projections z_k = U_k^T x, in one product.

    With m_k = mu_k - U_k U_k^T mu_k the distance is |m_k|^2 - 2 x.m_k - |z_k|^2, so no projection need be centred.
    """

    def __init__(self, components: Components):
        mu, U = components.mu, components.U
        K, D, E = U.shape
        perpendicular = mu - _project(U, mu)
        self.K, self.E = K, E
        self.workspace = Workspace()
        self.constant = perpendicular.square().sum(1)  # (K,)
        # Columns are padded to a multiple of 16: matrix products over ragged widths lose up to a third of their speed.
        self.matrix = mu.new_zeros(D, -(-K * (E + 1) // 16) * 16)
        self.matrix[:, : K * E] = U.permute(1, 0, 2).reshape(D, K * E)
        self.matrix[:, K * E : K * E + K] = -2 * perpendicular.T

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Distances less |x|^2 with shape (n, K), and z with shape (n, K, E), which the next call overwrites."""
        n, width = len(x), self.K * self.E
        product = torch.mm(x, self.matrix, out=self.workspace.take("product", x, n, self.matrix.shape[1]))
        z = product[:, :width].unflatten(1, (self.K, self.E))
        squares = torch.mul(z, z, out=self.workspace.take("squares", x, n, self.K, self.E))
        return product[:, width : width + self.K] + self.constant - squares.sum(2), z


def _project(U: Tensor, v: Tensor) -> Tensor:
    """U_k U_k^T v_k with shape (K, D)."""
    return (U @ (U.mT @ v[:, :, None]))[:, :, 0]


@dataclass
class Statistics:
    """All that a pass learns about the data; additive. Distances are squared grey levels summed over pixels.

    The product with z' = (z - z0, 1, 0 ... 0), z0 = U^T mu at the start of the pass, holds the sum of x too. The zeros
    make z' a multiple of 8 long, w: products over 21 columns take a third longer than over 24.
    """

    product: Tensor  # (K, D, w) sum of x z'^T: S U before centring, and the sum of x
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
            product=mu.new_zeros(K, D, -(-(E + 1) // 8) * 8),
            latent=mu.new_zeros(K, E),
            count=mu.new_zeros(K),
            scatter=mu.new_zeros(K, d, d),
            distortion=mu.new_zeros(K, dtype=wide),
        )

    @property
    def total(self) -> Tensor:
        """Sum of x, (K, D)."""
        return self.product[:, :, self.latent.shape[1]]

    def centred_product(self, mean: Tensor) -> Tensor:
        """S U with shape (K, D, E): sum of (x - mean)(z - mean z)^T, for the component's own `mean` (K, D)."""
        return self.product[:, :, : self.latent.shape[1]] - mean[:, :, None] * self.latent[:, None, :]

    def extended(self, z: Tensor) -> Tensor:
        """Z' = (z, 1, 0 ... 0) of z (..., E)."""
        zeros = self.product.shape[2] - self.latent.shape[1] - 1
        return torch.nn.functional.pad(torch.nn.functional.pad(z, (0, 1), value=1.0), (0, zeros))

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


def survey(chunks: Iterable[Tensor], components: Components, coordinates: Coordinates | None = None) -> Statistics:
    """One pass with hard assignments: the statistics of all chunks x (n, D) at the given components.

    With `coordinates`, the scatters in them too.
    """
    score = components.scorer()
    statistics = Statistics.zeros(components, 0 if coordinates is None else coordinates.V.shape[1])
    z0 = latent_offsets(components)
    for x in chunks:
        distance, z = score(x)
        accumulate(statistics, x, distance, z, z0=z0, coordinates=coordinates, workspace=score.workspace)
    return statistics


def latent_offsets(components: Components) -> Tensor:
    """z0_k = U_k^T mu_k with shape (K, E)."""
    return (components.U.mT @ components.mu[:, :, None])[:, :, 0]


def accumulate(
    statistics: Statistics,
    x: Tensor,
    distance: Tensor,
    z: Tensor,
    listed: Tensor | None = None,
    z0: Tensor | None = None,
    coordinates: Coordinates | None = None,
    workspace: Workspace | None = None,
) -> None:
    """Add a chunk x (n, D) to the statistics, each sample at its nearest component.

    `distance` (n, C) lacks |x|^2 and z is (n, C, E), for the components `listed` (n, C) or, without it, all K in
    order; z0 (K, E) is subtracted from z where z is not relative to it already.
    """
    K = len(statistics.count)
    squared = torch.linalg.vector_norm(x, dim=1).square_()  # reads x once and writes n numbers, unlike x.square()
    best, column = distance.min(1)
    k = column if listed is None else listed.gather(1, column[:, None])[:, 0]
    statistics.distortion.index_add_(0, k, (best + squared).to(statistics.distortion.dtype))

    order = torch.argsort(k)  # samples of one component side by side: their products are then dense and contiguous
    k, z = k[order], z[order, column[order]]
    if z0 is not None:
        z = z - z0[k]
    statistics.latent.index_add_(0, k, z)
    z = statistics.extended(z)
    x = torch.index_select(x, 0, order, out=(workspace or Workspace()).take("sorted", x, *x.shape))
    tally = torch.bincount(k, minlength=K)
    statistics.count += tally
    counts = tally.tolist()
    for j, (x_j, z_j) in enumerate(zip(x.split(counts), z.split(counts), strict=True)):
        if len(x_j):
            statistics.product[j].addmm_(x_j.T, z_j)
    if coordinates is not None:
        for j, y_j in enumerate(coordinates.of(x).split(counts)):
            if len(y_j):
                statistics.scatter[j].addmm_(y_j.T, y_j)


def soft_survey(chunks: Iterable[Tensor], components: Components, temperature: float) -> Statistics:
    """One pass with soft assignments, softmax_k(-distance / temperature): deterministic annealing's E-step.

    Costs twice a hard pass: every sample counts for every component. `distortion` is still the
    winner's.
    Source: Rose, Deterministic annealing for clustering, Proc. IEEE 86 (1998).
    """
    score = components.scorer()
    statistics = Statistics.zeros(components)
    K, D, E = components.U.shape
    z0 = latent_offsets(components)
    for x in chunks:
        distance, z = score(x)
        squared = x.square().sum(1)
        best, k = distance.min(1)
        statistics.distortion.index_add_(0, k, (best + squared).to(statistics.distortion.dtype))
        r = torch.softmax(distance / -temperature, 1)  # (n, K)
        weighted = statistics.extended(z - z0) * r[:, :, None]  # r z', (n, K, w)
        sums = weighted.sum(0)
        statistics.latent += sums[:, :E]
        statistics.count += sums[:, E]
        statistics.product += (x.T @ weighted.reshape(len(x), -1)).reshape(D, K, -1).permute(1, 0, 2)
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


def orthonormal(M: Tensor) -> Tensor:
    """An orthonormal basis (K, D, E) of the columns of M (K, D, E), completed where they are dependent.

    Columns are scaled first, so that values of 1e30 or 1e-30 neither overflow nor vanish in their squares.
    """
    scale = M.abs().amax(dim=1, keepdim=True)
    return torch.linalg.qr(torch.where(scale > 0, M / scale, M))[0]


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


def aligned(components: Components, second: Tensor) -> Components:
    """The same subspaces with the basis vectors in a fixed order and sign: most variance first, largest entry positive.

    `second` (K, E, E) is the latents' second moment about their mean. Makes runs, pictures and files comparable.
    """
    if components.U.shape[2] == 0:
        return components
    V = torch.linalg.eigh(second)[1].flip(-1)
    U = orthonormal(components.U @ V)
    U = U * torch.where((components.U @ V * U).sum(1, keepdim=True) < 0, -1.0, 1.0)  # qr may have turned a vector
    peak = U.gather(1, U.abs().argmax(1, keepdim=True))
    return Components(components.mu, U * torch.where(peak < 0, -1.0, 1.0).to(U.dtype))


def winners(x: Tensor, components: Components) -> Tensor:
    """The nearest component of each of x (n, D), scored a block of rows at a time: k (n,)."""
    score = components.scorer()
    return torch.cat([score(part)[0].argmin(1) for part in x.split(1024)])


def split(
    x: Tensor, k: Tensor, components: Components, b: int, generator: torch.Generator
) -> tuple[Components, Components]:
    """Two components (K = 1 each) that share the samples of component b among x (n, D), halved by two random seeds.

    `k` (n,) says which component each sample is in.

    Where fewer than two of x belong to b, the seeds are drawn from all of x.
    """
    own = x[k == b]
    if len(own) < 2:
        own = x
    first, second = own[torch.randperm(len(own), generator=generator)[:2].to(own.device)]
    nearer_first = (own @ (second - first)) < (second.square().sum() - first.square().sum()) / 2
    halves = (own[nearer_first], own[~nearer_first])
    return tuple(_fitted(half, components.U[b], generator) for half in halves)  # type: ignore[return-value]


def _fitted(x: Tensor, U: Tensor, generator: torch.Generator) -> Components:
    """One component for x, one orthogonal-iteration step from U plus a little noise that opens new directions."""
    mean = x.mean(0) if len(x) else U.new_zeros(U.shape[0])
    centred = x - mean
    noise = torch.randn(U.shape, generator=generator).to(U)
    start = U + 0.01 * noise
    return Components(mean[None], orthonormal((centred.T @ (centred @ start))[None]))
