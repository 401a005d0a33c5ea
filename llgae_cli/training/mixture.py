"""Mixtures of subspaces for a bit rate: the cost J of a sample, its scorer, its sufficient statistics, the update.

A latent z_e of variance v is rounded with the step Delta and entropy-coded. With lambda = c Delta^2, the price of a
bit, and theta = lambda / (2 ln 2), its expected cost |error|^2 + lambda bits is

    theta z_e^2 / v + theta ln(v / theta)     where v > theta,       z_e^2     elsewhere,

up to theta for each latent that is coded: a latent of variance below theta gets no bits (reverse water-filling). So a
row y costs, in component k,

    J_k(y) = |y - mu_k|^2 - sum_e (1 - theta / v_ke)^+ z_ke^2 + theta sum_e ln^+(v_ke / theta) - lambda log2 p_k

with z_ke = u_ke^T (y - mu_k). That is -2 theta times the log-likelihood of a mixture of probabilistic PCA whose noise
variance is fixed at theta. For fixed assignments p_k is the share of the rows, mu_k their mean, U_k and v_k leading
eigenvectors and eigenvalues of their covariance. One step of orthogonal iteration, with v_k the Ritz values, never
raises J: no Ritz value falls, and J is a decreasing concave function of them.

Sources: Chou, Lookabaugh and Gray, Entropy-constrained vector quantization, IEEE Trans. ASSP 37 (1989); Tipping and
Bishop, Mixtures of probabilistic principal component analysers, Neural Comp. 11 (1999); reverse water-filling: Cover
and Thomas, Elements of Information Theory, section 10.3.3; Ritz values: Golub and Van Loan, Matrix Computations,
section 8.2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from llgae_cli.threads import check_cancelled, run_parallel
from llgae_cli.training.components import orthonormalise
from llgae_cli.training.scoring import Workspace, project_each
from llgae_cli.training.shrinkage import NEIGHBOURS, STRENGTHS

COLUMNS, ROWS = 416, 512  # of a tile at most, unless one component has more columns; and of the rows it multiplies
FIRST_ITERATIONS, ITERATIONS = 6, 2  # orthogonal iterations from random bases, and in an update
GROUP = 4  # components that one task updates


@dataclass
class Mixture:
    """K components in d coordinates.

    mu  offsets, shape (K, d)
    U   orthonormal bases, shape (K, d, E): principal axes in falling order of variance
    v   variances of the latents, shape (K, E)
    p   shares of the rows, shape (K,); a component of share 0 is never chosen
    """

    mu: Tensor
    U: Tensor
    v: Tensor
    p: Tensor

    def weights(self, theta: float) -> Tensor:
        """Return (1 - theta / v)^+, the share of a latent's energy that its code saves; shape (K, E)."""
        return torch.where(self.v > theta, 1 - theta / self.v.clamp(min=max(theta, 1e-30)), 0.0)

    def code_costs(self, theta: float) -> Tensor:
        """Return theta sum_e ln^+(v_ke / theta) - lambda log2 p_k, the part of J_k that all rows share; (K,) float64.

        With theta = 0, the limit of free bits, it is 0.
        """
        v, p = widen(self.v), widen(self.p)
        if theta == 0:
            return torch.where(p > 0, 0.0, math.inf)
        latents = theta * (v / theta).clamp(min=1).log().sum(1)
        return latents - 2 * theta * p.log()


@dataclass
class MixtureTile:
    """A group of T components, scored by one matrix product.

    matrix    (d, w): e columns of A_k for each of them, then -2 (mu_k - A_k c_k) for each, then zeros. w is a multiple
              of 16, because products of other widths lose up to a third of their speed
    constant  the part of J_k that all rows share, shape (T,)
    """

    matrix: Tensor
    constant: Tensor
    e: int


class MixtureScorer:
    """Computes J_k(y) - |y|^2 of rows y (n, d) for all k, by matrix products.

    With A_k the columns sqrt(weight_e) u_ke and c_k = A_k^T mu_k,

        J_k(y) - |y|^2 = |mu_k|^2 - |c_k|^2 + code costs - 2 (mu_k - A_k c_k)^T y - |A_k^T y|^2.

    Components are processed in tiles of about COLUMNS columns, so that a product stays in the cache while it is used.
    It is a difference of squares: in float32, clusters whose distances from the data's mean exceed their own size a
    thousandfold are told apart well, but subspaces within one cluster are not. The statistics have no such limit.
    Latents of variance up to theta have weight 0. Components with equally many others share a tile, and such latents
    get no columns.
    """

    def __init__(self, mixture: Mixture, theta: float, workspace: Workspace):
        self.workspace = workspace
        mu, weights = mixture.mu, mixture.weights(theta)
        K, d, _ = mixture.U.shape
        A = mixture.U * weights.sqrt()[:, None, :]
        c = project_each(A, mu)
        offset = -2 * (mu - (A * c[:, None, :]).sum(2))
        constant = mu.square().sum(1) - c.square().sum(1) + mixture.code_costs(theta).to(mu)
        n_coded = (weights > 0).sum(1)
        self.order = n_coded.argsort(descending=True, stable=True)
        self.place = self.order.argsort()
        self.tiles = []
        done = 0
        while done < K:
            e = int(n_coded[self.order[done]])
            some = self.order[done : done + max(1, COLUMNS // (e + 1))]
            T = len(some)
            matrix = mu.new_zeros(d, -(-T * (e + 1) // 16) * 16)
            matrix[:, : T * e] = A[some, :, :e].permute(1, 0, 2).reshape(d, T * e)
            matrix[:, T * e : T * (e + 1)] = offset[some].T
            self.tiles.append(MixtureTile(matrix, constant[some], e))
            done += T

    @property
    def operations(self) -> int:
        """Operations of the products for one row."""
        return sum(2 * tile.matrix.numel() for tile in self.tiles)

    def assign(self, y: Tensor, own: Tensor | None = None, correction: Tensor | None = None) -> Tensor:
        """Return the component of least J for each row of y (n, d), shape (n,) int64.

        `correction` (n,) is added to the cost of each row's component in `own` (n,).
        """
        parts = [
            self._assign(y[at], None if own is None or correction is None else (own[at], correction[at]))
            for at in (slice(low, low + ROWS) for low in range(0, len(y), ROWS))
        ]
        return torch.cat(parts) if parts else y.new_zeros(0, dtype=torch.int64)

    def _assign(self, y: Tensor, corrected: tuple[Tensor, Tensor] | None) -> Tensor:
        scores, done = self.workspace.buffer("scores", y, len(y), len(self.order)), 0
        for tile in self.tiles:
            check_cancelled()
            T, e = len(tile.constant), tile.e
            product = self.workspace.buffer("product", y, len(y), tile.matrix.shape[1])
            torch.mm(y, tile.matrix, out=product)
            own = torch.add(product[:, T * e : T * (e + 1)], tile.constant, out=scores[:, done : done + T])
            if e:
                own -= product[:, : T * e].square_().unflatten(1, (T, e)).sum(2)
            done += T
        if corrected is not None:
            component, correction = corrected
            scores[torch.arange(len(y), device=y.device), self.place[component]] += correction
        return self.order[scores.argmin(1)]


@dataclass
class MixtureStatistics:
    """Sufficient statistics of a pass, additive over rows y, which enter as r = y - mu_k with the mu_k of the pass.

    Squared distances are summed over coordinates.
    """

    count: Tensor  # (K,) number of rows, float64
    shift: Tensor  # (K, d) sum of r, float64
    scatter: Tensor  # (K, d, d) sum of r r^T; (K, 0, 0) where no latents are updated
    squared: Tensor  # (K,) sum of |r|^2, float64
    latent: Tensor  # (K, E) sum of z^2 with z = U_k^T r, float64
    outside: Tensor  # () sum of the squares outside the coordinates, float64

    @classmethod
    def zeros(cls, mixture: Mixture, scatter: bool) -> "MixtureStatistics":
        """Return the statistics of no rows."""
        K, d = mixture.mu.shape
        wide = widen(mixture.mu[:0]).dtype
        size = d if scatter else 0
        return cls(
            count=mixture.mu.new_zeros(K, dtype=wide),
            shift=mixture.mu.new_zeros(K, d, dtype=wide),
            scatter=mixture.mu.new_zeros(K, size, size),
            squared=mixture.mu.new_zeros(K, dtype=wide),
            latent=torch.zeros_like(mixture.v, dtype=wide),
            outside=mixture.mu.new_zeros((), dtype=wide),
        )

    def tensors(self) -> list[Tensor]:
        """Return all tensors, for a reduction over processes."""
        return [getattr(self, one.name) for one in fields(self)]

    def add_rows(self, mixture: Mixture, y: Tensor, k: Tensor) -> None:
        """Add rows y (n, d) with components k (n,). Components are updated in parallel, each by one thread."""
        order = torch.argsort(k, stable=True)
        counts = torch.bincount(k, minlength=len(self.count))
        last = counts.cumsum(0).tolist()
        first = [0, *last[:-1]]

        def add(j: int) -> None:
            if last[j] == first[j]:
                return
            check_cancelled()
            r = y[order[first[j] : last[j]]].sub_(mixture.mu[j])
            self.shift[j] += r.sum(0, dtype=self.shift.dtype)
            self.squared[j] += r.square().sum(dtype=self.squared.dtype)
            self.latent[j] += (r @ mixture.U[j]).square_().sum(0, dtype=self.latent.dtype)
            if self.scatter.shape[1]:
                self.scatter[j].addmm_(r.T, r)

        self.count += counts

        def add_group(group: Tensor) -> None:
            for j in group.tolist():
                add(j)

        run_parallel(add_group, torch.arange(len(counts)).split(GROUP), lambda _: None, y.device.type == "cpu")

    def distortions(self) -> Tensor:
        """Return the sum over each component's rows of the squared residual, latents unquantised; (K,) float64."""
        return (self.squared - self.latent.sum(1)).clamp(min=0)  # by rounding, a perfect fit may come out negative

    def costs(self, mixture: Mixture, theta: float) -> Tensor:
        """Return the sum over each component's rows of J_k, for the mixture of the pass; (K,) float64."""
        saved = (widen(mixture.weights(theta)) * self.latent).sum(1)
        code = torch.where(self.count > 0, self.count * mixture.code_costs(theta), 0.0)
        return self.squared - saved + code

    def mean_shift(self) -> Tensor:
        """Return the mean of r, (K, d): the mean of each component minus its offset; zero without rows."""
        return self.shift / self.count.clamp(min=1)[:, None]

    def recentre(self, delta: Tensor) -> None:
        """Make count, shift, scatter and squared those of r - delta, in place, for delta (K, d); not `latent`."""
        rest = self.shift - self.count[:, None] * delta
        self.squared -= ((self.shift + rest) * delta).sum(1)
        if self.scatter.shape[1]:
            vectors = (one.to(self.scatter) for one in (self.shift, rest, delta))
            for scatter, shift, left, d in zip(self.scatter, *vectors, strict=True):
                scatter.addr_(shift, d, alpha=-1).addr_(d, left, alpha=-1)
        self.shift.copy_(rest)


def update_mixture(
    mixture: Mixture, statistics: MixtureStatistics, strength: float = 0.0, iterations: int = ITERATIONS
) -> Mixture:
    """Return the next components: shares p_k, means mu_k, axes U_k and variances v_k (see `fit_axes`).

    The statistics are centred in place, so they serve only once. A component without rows gets the share 0.
    """
    delta = statistics.mean_shift()
    statistics.recentre(delta)
    mu = mixture.mu + delta.to(mixture.mu)
    p = (statistics.count / statistics.count.sum().clamp(min=1)).to(mu)
    moved = Mixture(mu, mixture.U, mixture.v, p)
    return fit_axes(moved, statistics, strength, iterations) if statistics.scatter.shape[1] else moved


def fit_axes(mixture: Mixture, statistics: MixtureStatistics, strength: float, iterations: int) -> Mixture:
    """Return the mixture with U_k and v_k of the covariances, by orthogonal iterations from the present U_k.

    The covariance of component k is (S_k + strength C_k) / (n_k + strength), with C_k the pooled covariance of the
    component and its NEIGHBOURS nearest ones: as if it had `strength` more rows, distributed as theirs. S_k is its
    scatter in the statistics, which are centred. A component without rows keeps its U and v.
    """
    count, scatter = statistics.count.tolist(), statistics.scatter
    U, v = mixture.U.clone(), mixture.v.clone()
    nearest = _find_nearest(mixture.mu, statistics.count) if strength > 0 and len(count) > 1 else None

    def fit(group: Tensor) -> None:
        for j in group.tolist():
            check_cancelled()
            n, covariance = count[j], scatter[j]
            if n == 0:
                continue
            if nearest is not None:
                pooled = sum((scatter[i] for i in nearest[j].tolist()), torch.zeros_like(covariance))
                prior = strength / sum(count[i] for i in nearest[j].tolist())
                covariance, n = covariance + prior * pooled, n + strength
            U[j], v[j] = iterate_subspace(covariance / n, mixture.U[j], iterations)

    run_parallel(fit, torch.arange(len(count)).split(GROUP), lambda _: None, U.device.type == "cpu")
    return Mixture(mixture.mu, U, v, mixture.p)


def iterate_subspace(covariance: Tensor, U: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Return E Ritz vectors (d, E) and Ritz values (E,) of a covariance (d, d), in falling order.

    They come from orthogonal iterations that start at U (d, E); none of the values is below that of U.
    """
    for _ in range(iterations):
        U = orthonormalise((covariance @ U)[None])[0]
    projected = U.T @ (covariance @ U)
    v, R = torch.linalg.eigh((projected + projected.T) / 2)
    return U @ R.flip(1), v.flip(0).clamp(min=0)


def choose_strength(
    mixture: Mixture,
    statistics: MixtureStatistics,
    held_out: MixtureStatistics,
    find_theta: Callable[[Mixture], float],
) -> float:
    """Return the strength of STRENGTHS with the least cost J of held-out rows, which are a part of all rows.

    Components are fitted to the other rows, for the assignments of one pass with `mixture`, whose statistics of all
    rows and of the held-out ones are given; the latter are re-centred in place. theta is found once, for a strength in
    the middle, so that costs can be compared.
    """
    pairs = zip(statistics.tensors(), held_out.tensors(), strict=True)
    kept = MixtureStatistics(*(whole - part for whole, part in pairs))
    delta = kept.mean_shift()
    kept.recentre(delta)
    held_out.recentre(delta)
    p = (statistics.count / statistics.count.sum()).to(mixture.p)
    moved = Mixture(mixture.mu + delta.to(mixture.mu), mixture.U, mixture.v, p)
    fitted = fit_axes(moved, kept, STRENGTHS[len(STRENGTHS) // 2], FIRST_ITERATIONS)
    theta = find_theta(fitted)
    best, lowest = STRENGTHS[0], math.inf
    for strength in STRENGTHS:
        fitted = fit_axes(fitted, kept, strength, ITERATIONS)
        for k, U in enumerate(fitted.U):
            held_out.latent[k] = (U * (held_out.scatter[k] @ U)).sum(0)
        cost = float(held_out.costs(fitted, theta).sum())
        if cost < lowest:
            best, lowest = strength, cost
    return best


def _find_nearest(mu: Tensor, count: Tensor) -> Tensor:
    """Return each component and its NEIGHBOURS nearest that have rows, (K, M); itself first unless it is empty."""
    distance = torch.cdist(mu, mu).masked_fill(count[None, :] == 0, math.inf)
    M = min(NEIGHBOURS + 1, int((count > 0).sum()))
    return distance.topk(M, largest=False).indices


def split_components(mixture: Mixture, costs: Tensor, count: Tensor, generator: torch.Generator) -> tuple[Mixture, int]:
    """Return the mixture with components of fewer than 2 rows replaced by halves of others, and their number.

    costs  sum of J over the rows of each component, shape (K,): those of the largest are halved
    count  number of rows of each component, shape (K,)

    A normal distribution cut at its mean across its first principal axis has halves with means at +- sqrt(2 v / pi)
    and variance (1 - 2 / pi) v. Where v is not known yet, the halves are moved apart by a small random vector.
    """
    empty = count < 2
    full = int((~empty).sum())
    if full in (0, len(count)):
        return mixture, 0
    mu, U, v, p = mixture.mu.clone(), mixture.U.clone(), mixture.v.clone(), mixture.p.clone()
    worst = costs.masked_fill(empty, -math.inf).argsort(descending=True, stable=True).tolist()
    for i, a in enumerate(empty.nonzero()[:, 0].tolist()):
        b = worst[i % full]
        if v[b].any():
            apart = U[b, :, 0] * (2 * v[b, 0] / math.pi).sqrt()
            v[b, 0] *= 1 - 2 / math.pi
            order = v[b].argsort(descending=True, stable=True)
            v[b], U[b] = v[b, order], U[b][:, order]
        else:
            spread = math.sqrt(max(0.0, float(costs[b] / count[b])) / mu.shape[1])
            apart = 0.1 * spread * torch.randn(mu.shape[1], generator=generator).to(mu)
        p[b] /= 2
        mu[a], U[a], v[a], p[a] = mu[b] - apart, U[b], v[b], p[b]
        mu[b] = mu[b] + apart
    return Mixture(mu, U, v, p), len(count) - full


def widen(tensor: Tensor) -> Tensor:
    """Return the tensor as float64; as float32 on Apple's GPU, which has no float64."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)
