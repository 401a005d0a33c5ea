"""K affine subspaces (mu_k, U_k) with orthonormal bases, and what is done to them without a look at all the data."""

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

    def left_out(self, x: Tensor, y: Tensor) -> float:
        """Sum over the rows x (n, D) of |x - centre - V y|^2, for their coordinates y (n, d)."""
        whole = float((x - self.centre).square().sum(dtype=torch.float64))
        rest = whole - float(y.square().sum(dtype=torch.float64))
        if rest > 1e-4 * whole:
            return rest
        # A difference that has lost its digits.
        return float((x - self.centre - y @ self.V.T).square().sum(dtype=torch.float64))

    def leading(self, x: Tensor, d: int) -> Tensor:
        """The first d of them, at most, (n, d)."""
        return (x - self.centre) @ self.V[:, :d]


def orthonormal(M: Tensor) -> Tensor:
    """An orthonormal basis (K, D, E) of the columns of M (K, D, E), completed where they are dependent.

    Columns are scaled first, so that values of 1e30 or 1e-30 neither overflow nor vanish in their squares.
    """
    scale = M.abs().amax(dim=1, keepdim=True)
    Q = torch.linalg.qr(torch.where(scale > 0, M / scale, M))[0]
    return Q.contiguous()  # qr's lies column by column, a resumed run's row by row: sums would round differently


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


def seeds(x: Tensor, K: int, generator: torch.Generator) -> Tensor:
    """K of the rows x (n, D), drawn apart: each with a chance in proportion to its squared distance from those before.

    Source: k-means++, Arthur and Vassilvitskii, Proc. SODA (2007).
    """
    row = int(torch.randint(len(x), (), generator=generator))
    rows, squared = [row], (x - x[row]).square().sum(1)
    while len(rows) < K:
        share = squared.double().cumsum(0).cpu()
        draw = share[-1] * torch.rand((), generator=generator, dtype=torch.float64)
        row = min(int(torch.searchsorted(share, draw, right=True)), len(x) - 1)
        rows.append(row)
        squared = torch.minimum(squared, (x - x[row]).square().sum(1))
    return x[rows]


def halved(x: Tensor, U: Tensor, generator: torch.Generator) -> Components:
    """Two components that share the samples x (n, D), n > 0, each half nearer to one of two of them, drawn apart.

    So two clusters in one component come apart. The bases start from U (D, E), that of the component which had x.
    """
    first, second = seeds(x, 2, generator)
    nearer_first = ((x - (first + second) / 2) @ (second - first)) < 0
    halves = [_fitted(half, U, generator) for half in (x[nearer_first], x[~nearer_first])]
    return Components(torch.stack([mu for mu, _ in halves]), torch.stack([U for _, U in halves]))


def _fitted(x: Tensor, U: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The mean of x, and one orthogonal-iteration step from U plus a little noise that opens new directions."""
    mean = x.mean(0) if len(x) else U.new_zeros(U.shape[0])
    centred = x - mean
    noise = torch.randn(U.shape, generator=generator).to(U)
    start = U + 0.01 * noise
    return mean, orthonormal((centred.T @ (centred @ start))[None])[0]
