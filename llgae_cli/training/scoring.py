"""How far each sample is from each component, from one matrix product for many of both."""

import math
import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from llgae_cli.training.components import Components

COLUMNS = 384  # of a tile, at most
BLOCK_VALUES, BLOCK_ROWS = 1 << 20, 4096  # numbers in an array of one tile and one block of samples: 4 MB


class Workspace(threading.local):
    """Buffers kept from chunk to chunk, and from pass to pass: fresh pages would cost as much as the arithmetic.

    Every thread has buffers of its own.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """An uninitialised tensor of that shape, and of the type and device of `like`; the next call reuses it."""
        numbers = math.prod(shape)
        if name not in self._kept or self._kept[name].numel() < numbers:
            self._kept[name] = like.new_empty(numbers)
        return self._kept[name][:numbers].view(shape)


@dataclass
class Tile:
    """Some of the components: `first` is the first one's number, `constant` |m_k|^2 (T,), `matrix` A (D, w).

    A's columns are U_k of all T components, then -2 m_k of all, then zeros: matrix products over ragged widths lose up
    to a third of their speed, so w is a multiple of 16.
    """

    first: int
    constant: Tensor
    matrix: Tensor


class Scorer:
    """|x - mu_k - U_k U_k^T (x - mu_k)|^2 - |x|^2 for all k, and the projections z_k = U_k^T x, from matrix products.

    With m_k = mu_k - U_k U_k^T mu_k the distance is |m_k|^2 - 2 x.m_k - |z_k|^2, so no projection need be centred.
    It is a difference of squares: see `inference.has_lost_digits` for where that fails.
    Components are taken a tile at a time, and samples a block, so that what is made of a product is still in the cache.
    """

    def __init__(self, components: Components, workspace: Workspace | None = None, columns: int = COLUMNS):
        """`columns`: of a tile, at most, but for tiles of one component."""
        mu, U = components.mu, components.U
        self.K, D, self.E = U.shape
        self.components, self.workspace = components, workspace or Workspace()
        apart = perpendicular(components)
        constant = apart.square().sum(1)
        T = max(1, columns // (self.E + 1))
        self.tiles = []
        for first in range(0, self.K, T):
            here = slice(first, min(first + T, self.K))
            t = here.stop - first
            matrix = mu.new_zeros(D, -(-t * (self.E + 1) // 16) * 16)
            matrix[:, : t * self.E] = U[here].permute(1, 0, 2).reshape(D, t * self.E)
            matrix[:, t * self.E : t * (self.E + 1)] = -2 * apart[here].T
            self.tiles.append(Tile(first, constant[here], matrix))
        self.block = max(256, min(BLOCK_ROWS, BLOCK_VALUES // self.tiles[0].matrix.shape[1]))

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of x (n, D): the least distance less |x|^2 (n,), the component k (n,) that has it, and z (n, E) there."""
        parts = [self._nearest(self.prepared(part)) for part in x.split(self.block)]
        if len(parts) == 1:
            return parts[0]
        best, k, z = (torch.cat(column) for column in zip(*parts, strict=True))
        return best, k, z

    def _nearest(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.arange(len(x), device=x.device)
        found: tuple[Tensor, Tensor, Tensor] | None = None
        for i, tile in enumerate(self.tiles):
            distance, z = self.scores(i, x)
            best, column = distance.min(1)
            here = best, column + tile.first, z[rows, column]
            if found is None:
                found = here
            else:
                better = best < found[0]
                pairs = zip(here, found, (better, better, better[:, None]), strict=True)
                found = tuple(torch.where(where, new, old) for new, old, where in pairs)  # type: ignore[assignment]
        assert found is not None
        return found

    def distances(self, x: Tensor) -> Tensor:
        """Of x (n, D), less |x|^2, shape (n, K), which the next call overwrites."""
        distances = self.workspace.take("distances", self.tiles[0].matrix, len(x), self.K)
        for first in range(0, len(x), self.block):
            part = slice(first, first + self.block)
            prepared = self.prepared(x[part])
            for i, tile in enumerate(self.tiles):
                distances[part, tile.first : tile.first + len(tile.constant)] = self.scores(i, prepared)[0]
        return distances

    def scores(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """For the T components of tile i and prepared x: distances less |x|^2 (n, T), and z (n, T, E).

        The next call overwrites z.
        """
        tile = self.tiles[i]
        T = len(tile.constant)
        product = self.product(i, x)
        z = product[:, : T * self.E].unflatten(1, (T, self.E))
        squares = torch.mul(z, z, out=self.workspace.take("squares", product, *z.shape))
        return product[:, T * self.E : T * (self.E + 1)] + tile.constant - squares.sum(2), z

    def prepared(self, x: Tensor) -> Tensor:
        """The samples x as `product` takes them."""
        return x

    def product(self, i: int, x: Tensor) -> Tensor:
        """Of prepared x (n, D) and the matrix of tile i, (n, w), which the next call overwrites."""
        matrix = self.tiles[i].matrix
        return torch.mm(x, matrix, out=self.workspace.take("product", x, len(x), matrix.shape[1]))

    def taken(self, x: Tensor, order: Tensor) -> Tensor:
        """The samples x[order], which the next call overwrites."""
        return torch.index_select(x, 0, order, out=self.workspace.take("sorted", x, *x.shape))


def perpendicular(components: Components) -> Tensor:
    """m_k = mu_k - U_k U_k^T mu_k with shape (K, D)."""
    mu, U = components.mu, components.U
    return mu - (U * projections(U, mu)[:, None, :]).sum(2)


def projections(U: Tensor, v: Tensor) -> Tensor:
    """U_k^T v_k with shape (K, E)."""
    return (U * v[:, :, None]).sum(1)
