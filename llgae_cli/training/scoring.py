"""How far each sample is from each component, for all of them in one matrix product."""

import math

import torch
from torch import Tensor

from llgae_cli.training.components import Components


class Workspace:
    """Buffers kept from chunk to chunk, and from pass to pass: fresh pages would cost as much as the arithmetic."""

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

    def __init__(self, components: Components, workspace: Workspace | None = None):
        mu, U = components.mu, components.U
        K, D, E = U.shape
        perpendicular = mu - _project(U, mu)
        self.K, self.E = K, E
        self.workspace = workspace or Workspace()
        self.constant = perpendicular.square().sum(1)  # (K,)
        # Columns are padded to a multiple of 16: matrix products over ragged widths lose up to a third of their speed.
        self.matrix = mu.new_zeros(D, -(-K * (E + 1) // 16) * 16)
        self.matrix[:, : K * E] = U.permute(1, 0, 2).reshape(D, K * E)
        self.matrix[:, K * E : K * E + K] = -2 * perpendicular.T

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Distances less |x|^2 with shape (n, K), and z with shape (n, K, E), which the next call overwrites."""
        width = self.K * self.E
        product = self.product(x)
        z = product[:, :width].unflatten(1, (self.K, self.E))
        squares = torch.mul(z, z, out=self.workspace.take("squares", product, *z.shape))
        return product[:, width : width + self.K] + self.constant - squares.sum(2), z

    def product(self, x: Tensor) -> Tensor:
        """Of x (n, D) and `matrix`."""
        return torch.mm(x, self.matrix, out=self.workspace.take("product", x, len(x), self.matrix.shape[1]))

    def taken(self, x: Tensor, order: Tensor) -> Tensor:
        """The rows x[order], which the next call overwrites."""
        return torch.index_select(x, 0, order, out=self.workspace.take("sorted", x, *x.shape))


def _project(U: Tensor, v: Tensor) -> Tensor:
    """U_k U_k^T v_k with shape (K, D)."""
    return (U * projections(U, v)[:, None, :]).sum(2)


def projections(U: Tensor, v: Tensor) -> Tensor:
    """U_k^T v_k with shape (K, E)."""
    return (U * v[:, :, None]).sum(1)


def winners(x: Tensor, components: Components) -> Tensor:
    """The nearest component of each of x (n, D), scored a block of rows at a time: k (n,)."""
    score = Scorer(components)
    return torch.cat([score(part)[0].argmin(1) for part in x.split(1024)])
