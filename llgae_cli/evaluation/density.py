"""Density of an affine model: a mixture of probabilistic PCAs, fitted to the rows that each component codes.

An affine model is read as a mixture of K probabilistic PCAs. For component k with the orthonormal basis A_k (D, E) of
its subspace, in the principal axes of the training rows that it codes, and their mean m_k (D,),

    p(x)  = sum_k pi_k N(x; m_k, S_k),    S_k = A_k diag(lambda_k) A_k^T + sigma_k^2 (I - A_k A_k^T)
    z_k   = A_k^T (x - m_k)
    Q_k   = |x - m_k|^2 - |z_k|^2                                  squared distance from the subspace through m_k
    -2 log N(x; m_k, S_k) = D log 2 pi + sum_e log lambda_ke + (D - E) log sigma_k^2
                            + sum_e z_ke^2 / lambda_ke + Q_k / sigma_k^2

pi_k is the share of the training rows in component k, lambda_k (E,) and sigma_k^2 are their mean squares along the axes
and, a dimension, outside them: the maximum of the likelihood for given subspaces and given components of the rows.

A component with few rows has variances that are too small along directions fitted to these rows. So each variance is
averaged with the mean over all components, as if `PRIOR` further rows had that mean:

    lambda_ke <- (n_k lambda_ke + PRIOR mean_k lambda_ke) / (n_k + PRIOR),    sigma_k^2 likewise

Source: Tipping and Bishop, Mixtures of probabilistic principal component analysers, Neural Computation 11 (1999).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from llgae_cli import distributed
from llgae_cli.evaluation.encoding import CHUNK
from llgae_cli.evaluation.latents import Latents
from llgae_cli.models import LLGAE
from llgae_cli.tasks import Samples, take_part

PRIOR = 1.0  # rows
FLOOR = 1e-10  # least variance, as a share of the mean variance of the data in a dimension
CANCELLED = 1e-2  # a squared distance below this share of the squares it is a difference of is computed again
BLOCK_ROWS, BLOCK_VALUES = 128, 1 << 17  # rows at a time, at least; values of x: 512 KB, which a core's cache holds
CHUNK_ROWS, CHUNK_VALUES = 256, 1 << 22  # rows scored together, at least; values of z at a time
PAIRS = 1 << 20  # of a row and a component; of so many, distances that cancelled are recomputed together
SMALLEST = -700.0  # log of a term of a sum, relative to the largest


@dataclass(frozen=True, eq=False)
class Density:
    """A mixture of probabilistic PCAs (see the module).

    count     training rows of each component, (K,) float64; pi = count / sum(count)
    mean      m, (K, D)
    axes      A, (K, D, E): orthonormal columns, most variance first
    variance  lambda, (K, E) float64, above zero
    noise     sigma^2, (K,) float64, above zero; not used where E = D
    """

    count: Tensor
    mean: Tensor
    axes: Tensor
    variance: Tensor
    noise: Tensor

    @torch.no_grad()
    def negative_log_likelihood(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Return -log p(x) of each row of x (n, D), in nat, shape (n,) float64; of x / scale, if given (D,).

        Products are in the type of x; a squared distance that is a small difference of large squares is computed again
        from x - m_k, and what is summed over components is float64.
        """
        share = self.count / self.count.sum()
        origin = (share.to(self.mean) @ self.mean).to(x)
        K, D, E = self.axes.shape
        groups = torch.arange(K).split(max(1, CHUNK_VALUES // (CHUNK_ROWS * (E + 1))))
        parts = [_Projection.prepare(self, share, origin, slice(int(own[0]), int(own[-1]) + 1)) for own in groups]
        factor = None if scale is None else 1 / scale.to(x)
        block = max(BLOCK_ROWS, BLOCK_VALUES // max(1, D, K * (E + 1)))
        chunk = max(CHUNK_ROWS, min(PAIRS // K, CHUNK_VALUES // (K * (E + 1))) // block * block)
        return torch.cat(
            [
                x.new_empty(0, dtype=torch.float64),
                *(-_log_density(rows, origin, factor, parts, block) for rows in x.split(chunk)),
            ]
        )

    @torch.no_grad()
    def t2(self, x: Tensor, k: Tensor) -> Tensor:
        """Return Hotelling's T^2 = sum_e z_ke^2 / lambda_ke of each row of x (n, D) in component k (n,), (n,) float64.

        It is the squared Mahalanobis distance of the latents b from their mean in the component: an invertible linear
        map leads from z to b, and does not change it.
        """
        t2 = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for j, rows in by_component(k, len(self.count)):
            z = ((x[rows] - self.mean[j].to(x)) @ self.axes[j].to(x)).double()
            t2[rows] = (z.square() / self.variance[j]).sum(1)
        return t2

    def latents(self, mu: Tensor, U: Tensor) -> Latents:
        """Return the statistics of codes b = U_k^T (x - mu_k), for mu (K, D) and orthonormal U (K, D, E).

        The columns of U_k span the axes of component k. Covariances have the density's shrinkage.
        """
        U, axes = U.double(), self.axes.double()
        mean = torch.einsum("kde,kd->ke", U, self.mean.double() - mu.double())
        B = U.mT @ axes  # (K, E, E)
        return Latents(self.count.float(), mean.float(), (B * self.variance[:, None, :] @ B.mT).float())

    def to(self, device: torch.device) -> "Density":
        """Return the density with its tensors on a device."""
        return Density(*(tensor.to(device) for tensor in vars(self).values()))


@torch.no_grad()
def fit_density(model: LLGAE, samples: Samples, k: Tensor, prior: float = PRIOR) -> Density:
    """Return the density of the samples under the model's subspaces, in one pass over them.

    `k` (N,) are the components of the samples' codes, `prior` is the strength of the shrinkage of variances in rows
    (see the module). Sums are float64, about mu_k. Under torchrun all processes call it.
    """
    K, D, E = model.W.shape
    device, double = model.mu.device, torch.float64
    Q = torch.linalg.qr(model.W.detach().double())[0].to(model.mu)  # (K, D, E)
    count, outside = torch.zeros(K, dtype=double, device=device), torch.zeros(K, dtype=double, device=device)
    first, first_outside = count.new_zeros(K, E), count.new_zeros(K, D)
    second = count.new_zeros(K, E, E)
    chunks = (samples.chunks(CHUNK, model.mu.dtype, here.start, here.stop) for here in take_part(samples).ranges)
    for here, x in chain.from_iterable(chunks):
        for j, rows in by_component(k[here].to(device).long(), K):
            r = x[rows] - model.mu[j]
            z = r @ Q[j]
            r.addmm_(z, Q[j].T, alpha=-1)
            count[j] += len(rows)
            first[j] += z.sum(0, dtype=double)
            second[j] += z.T @ z
            first_outside[j] += r.sum(0, dtype=double)
            outside[j] += r.square().sum(1).sum(dtype=double)
    distributed.sum_([count, outside, first, first_outside, second])
    n = count.clamp(min=1)
    centre, centre_outside = first / n[:, None], first_outside / n[:, None]
    covariance = second / n[:, None, None] - centre[:, :, None] * centre[:, None, :]
    variance, V = torch.linalg.eigh(covariance)
    variance, V = variance.flip(-1).clamp(min=0), V.flip(-1)
    noise = (outside / n - centre_outside.square().sum(1)).clamp(min=0) / max(1, D - E)
    floor = _floor(count, variance, noise, D)
    axes = Q.double() @ V
    mean = model.mu.double() + (Q.double() @ centre[:, :, None])[:, :, 0] + centre_outside
    return Density(
        count,
        mean.to(model.mu),
        axes.to(model.mu),
        _shrink(variance, count, prior).clamp(min=floor),
        _shrink(noise[:, None], count, prior)[:, 0].clamp(min=floor),
    )


def by_component(k: Tensor, K: int) -> Iterator[tuple[int, Tensor]]:
    """Yield each component j in use, with the indices of its rows in k (n,)."""
    parts = torch.argsort(k, stable=True).split(torch.bincount(k, minlength=K).tolist())
    yield from ((j, rows) for j, rows in enumerate(parts) if len(rows))


@dataclass(frozen=True, eq=False)
class _Projection:
    """What log pi_k N(x; m_k, S_k) needs of some components, so that one product does all projections of a block.

    columns    A and -2 m, (D, w): column e K + k is axis e of component k, then come the means, then zeros up to a
               multiple of 16, because products of other widths take longer
    offsets    -A^T m, |m|^2 and zeros, (w,), to add to x columns
    constant   log pi - (D log 2 pi + sum_e log lambda_e + (D - E) log sigma^2) / 2, (K,) float64
    precision  1 / lambda, (E, K) float64
    noise      sigma^2, (K,) float64
    """

    mean: Tensor
    axes: Tensor
    columns: Tensor
    offsets: Tensor
    constant: Tensor
    precision: Tensor
    noise: Tensor

    @classmethod
    def prepare(cls, density: Density, share: Tensor, origin: Tensor, here: slice) -> "_Projection":
        """Return the projection onto the components `here` of rows x - origin (n, D), in the type of the origin."""
        mean, axes = density.mean[here].to(origin) - origin, density.axes[here].to(origin)
        variance, noise = density.variance[here], density.noise[here]
        K, D, E = axes.shape
        zeros = -(E + 1) * K % 16
        columns = torch.cat([axes.permute(1, 2, 0).reshape(D, E * K), -2 * mean.T, mean.new_zeros(D, zeros)], 1)
        spread = D * math.log(2 * math.pi) + variance.log().sum(1) + (D - E) * noise.log()
        latents, squares = -(mean[:, None, :] @ axes)[:, 0].T.reshape(E * K), mean.square().sum(1)
        offsets = torch.cat([latents, squares, mean.new_zeros(zeros)])
        return cls(mean, axes, columns, offsets, share[here].log() - spread / 2, (1 / variance.T).contiguous(), noise)

    def log_each(self, product: Tensor, squares: Tensor, rows: Callable[[Tensor], Tensor]) -> Tensor:
        """Return log pi_k N(x; m_k, S_k) of n rows x - origin, (n, K) float64.

        product  (x - origin) columns + offsets, (n, w)
        squares  |x - origin|^2, (n, 1)
        rows     returns the rows at some indices: those whose distances cancelled, which are computed again
        """
        K, D, E = self.axes.shape
        z2 = product[:, : E * K].double().square_().view(len(product), E, K)
        means = slice(E * K, (E + 1) * K)
        distance = (product[:, means] + squares).double().sub_(z2.sum(1))
        form = z2.mul_(self.precision).sum(1)
        cancelled = distance < CANCELLED * (squares + self.offsets[means])
        counts = cancelled.sum(0).tolist()
        for j, some in enumerate(cancelled.T.nonzero()[:, 1].split(counts)) if any(counts) else ():
            if len(some) == 0:
                continue
            r = rows(some) - self.mean[j]
            z = r @ self.axes[j]
            distance[some, j] = r.addmm_(z, self.axes[j].T, alpha=-1).square().sum(1, dtype=torch.float64)
            form[some, j] = z.square().double().mul_(self.precision[:, j]).sum(1)
        if D > E:
            form += distance.div_(self.noise)
        return torch.sub(self.constant, form, alpha=0.5)


def _log_density(x: Tensor, origin: Tensor, factor: Tensor | None, parts: list[_Projection], block: int) -> Tensor:
    """Return log p of rows x (n, D), as the module defines it, (n,) float64; of factor x, if given.

    A block of rows at a time is centred, squared and projected, in the cache.
    """

    def centre(rows: Tensor, out: Tensor | None = None) -> Tensor:
        if factor is None:
            return torch.sub(rows, origin, out=out)
        return torch.addcmul(-origin, rows, factor, out=out)

    squares, buffer, each = x.new_empty(len(x), 1), x.new_empty(min(block, len(x)), x.shape[1]), []
    for part in parts:  # several only where K (E + 1) is so large that centring again takes no time beside the product
        product = x.new_empty(len(x), part.columns.shape[1])
        for low in range(0, len(x), block):
            here = slice(low, low + block)
            rows = centre(x[here], buffer[: len(x[here])])
            torch.linalg.vector_norm(rows, dim=1, keepdim=True, out=squares[here]).square_()
            torch.addmm(part.offsets, rows, part.columns, out=product[here])
        each.append(part.log_each(product, squares, lambda i: centre(x[i])))
    log_p = each[0] if len(each) == 1 else torch.cat(each, 1)
    largest = log_p.amax(1, keepdim=True)
    # Not by `logsumexp`: terms below 1e-308 take `exp` several times as long, and are lost beside the largest, 1.
    total = (log_p - largest).clamp_(min=SMALLEST).exp_().sum(1).log_().add_(largest[:, 0])
    return torch.where(largest[:, 0].isfinite(), total, largest[:, 0])


def _shrink(variance: Tensor, count: Tensor, prior: float) -> Tensor:
    """Return variances (K, m) averaged with their mean over all rows, as if `prior` further rows had that mean."""
    mean = (count[:, None] * variance).sum(0) / count.sum()
    weight = (prior / (count + prior))[:, None] if prior > 0 else count.new_zeros(len(count), 1)
    return variance + weight * (mean - variance)


def _floor(count: Tensor, variance: Tensor, noise: Tensor, D: int) -> float:
    """Return the least variance: a share of the mean in a dimension, so that data on a subspace has a density."""
    E = variance.shape[1]
    mean = float((count * (variance.sum(1) + (D - E) * noise)).sum() / count.sum()) / D
    return max(FLOOR * mean, torch.finfo(torch.float32).tiny)
