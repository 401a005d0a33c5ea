"""K affine subspaces (mu_k, U_k) with orthonormal bases, and operations on them that need few samples or none."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Components:
    """Offsets mu with shape (K, D) and orthonormal bases U with shape (K, D, E)."""

    mu: Tensor
    U: Tensor

    def clone(self) -> "Components":
        """Return a copy that shares no storage."""
        return Components(self.mu.clone(), self.U.clone())


def join(components: Sequence[Components]) -> Components:
    """Return all components in one."""
    return Components(torch.cat([each.mu for each in components]), torch.cat([each.U for each in components]))


@dataclass
class Coordinates:
    """Principal coordinates y (d,) of x (D,): x ~ centre + V y, with `centre` (D,) and orthonormal V (D, d)."""

    centre: Tensor
    V: Tensor

    @classmethod
    def identity(cls, x: Tensor) -> "Coordinates":
        """Return coordinates with y = x, for x (n, d)."""
        return cls(x.new_zeros(x.shape[1]), torch.eye(x.shape[1], dtype=x.dtype, device=x.device))

    def project(self, x: Tensor, d: int | None = None) -> Tensor:
        """Return y = V^T (x - centre), shape (n, d), for x (n, D): all coordinates, or the first d of them."""
        return (x - self.centre) @ self.V[:, :d]

    def squared_residual(self, x: Tensor, y: Tensor) -> float:
        """Return the sum over the rows of |x - centre - V y|^2, for x (n, D) with coordinates y (n, d)."""
        total = float((x - self.centre).square().sum(dtype=torch.float64))
        residual = total - float(y.square().sum(dtype=torch.float64))
        if residual > 1e-4 * total:
            return residual
        # The difference of two nearly equal sums has lost its digits: sum the residuals themselves.
        return float((x - self.centre - y @ self.V.T).square().sum(dtype=torch.float64))


def orthonormalise(M: Tensor) -> Tensor:
    """Return orthonormal bases (K, D, E) of the columns of M (K, D, E), completed where columns are dependent.

    Columns are scaled first, so that the squares of values such as 1e30 or 1e-30 neither overflow nor underflow.
    """
    scale = M.abs().amax(dim=1, keepdim=True)
    Q = torch.linalg.qr(torch.where(scale > 0, M / scale, M))[0]
    # `qr` returns columns contiguous in memory, a resumed run has rows contiguous: sums would round differently.
    return Q.contiguous()


def align(components: Components, covariance: Tensor) -> Components:
    """Return the same subspaces with basis vectors in a fixed order and sign, so that runs and files can be compared.

    Vectors are ordered by falling variance; the entry of largest magnitude of each is positive. `covariance` (K, E, E)
    is that of the latents z = U^T (x - mu).
    """
    if components.U.shape[2] == 0:
        return components
    V = torch.linalg.eigh(covariance)[1].flip(-1)
    U = orthonormalise(components.U @ V)
    U = U * torch.where((components.U @ V * U).sum(1, keepdim=True) < 0, -1.0, 1.0)  # `qr` may flip a sign
    peak = U.gather(1, U.abs().argmax(1, keepdim=True))
    return Components(components.mu, U * torch.where(peak < 0, -1.0, 1.0).to(U.dtype))


def choose_seeds(x: Tensor, K: int, generator: torch.Generator) -> Tensor:
    """Return K rows of x (n, D) by k-means++ seeding, shape (K, D).

    The first row is uniform; each further one has a probability proportional to its squared distance from the nearest
    row chosen before. Rows are distinct while x has distinct rows left.

    Source: Arthur and Vassilvitskii, k-means++: the advantages of careful seeding, Proc. SODA (2007).
    """
    row = int(torch.randint(len(x), (), generator=generator))
    rows, squared = [row], (x - x[row]).square().sum(1)
    while len(rows) < K:
        cumulative = squared.double().cumsum(0).cpu()
        draw = cumulative[-1] * torch.rand((), generator=generator, dtype=torch.float64)
        row = min(int(torch.searchsorted(cumulative, draw, right=True)), len(x) - 1)
        rows.append(row)
        squared = torch.minimum(squared, (x - x[row]).square().sum(1))
    return x[rows]


def halve(x: Tensor, U: Tensor, generator: torch.Generator) -> Components:
    """Return two components that divide the samples x (n, D), n > 0, of one component between them.

    Two rows are drawn by k-means++, and each half has the samples nearer to one of them: two clusters in one component
    come apart. Both bases are updated from U (D, E), the basis of the component.
    """
    first, second = choose_seeds(x, 2, generator)
    is_first = ((x - (first + second) / 2) @ (second - first)) < 0
    halves = [_fit_half(half, U, generator) for half in (x[is_first], x[~is_first])]
    return Components(torch.stack([mu for mu, _ in halves]), torch.stack([U for _, U in halves]))


def _fit_half(x: Tensor, U: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the mean of x, and U after one orthogonal-iteration step; a little noise adds directions to the old U."""
    mean = x.mean(0) if len(x) else U.new_zeros(U.shape[0])
    centred = x - mean
    initial = U + 0.01 * torch.randn(U.shape, generator=generator).to(U)
    return mean, orthonormalise((centred.T @ (centred @ initial))[None])[0]
