"""Squared distance of every sample from every component, from matrix products."""

import math
import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from llgae_cli.inference import within_rounding
from llgae_cli.training.components import Components

COLUMNS = 384  # of a tile, at most
FEW_AXES = 8  # up to so many, squares are summed axis by axis: `sum` takes up to ten times as long over few values
BLOCK_VALUES, BLOCK_ROWS = 1 << 20, 4096  # values in the product of a tile and a block of samples: 4 MB


class Workspace(threading.local):
    """Buffers that are kept between chunks and passes: fresh memory would cost as much time as the arithmetic.

    Every thread has its own buffers.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def buffer(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """Return an uninitialised tensor of a shape, with the type and device of `like`; the next call reuses it."""
        size = math.prod(shape)
        if name not in self._kept or self._kept[name].numel() < size:
            self._kept[name] = like.new_empty(size)
        return self._kept[name][:size].view(shape)


@dataclass
class Tile:
    """A group of T consecutive components.

    first     index of the first component
    constant  |m_k|^2, shape (T,)
    matrix    (D, w): the columns of all U_k, then -2 m_k of all, then zeros. w is a multiple of 16, because products of
              other widths lose up to a third of their speed. The columns come component by component, or axis by axis
              up to FEW_AXES axes.
    """

    first: int
    constant: Tensor
    matrix: Tensor


class Scorer:
    """Computes |x - mu_k - U_k U_k^T (x - mu_k)|^2 - |x|^2 and the projections z_k = U_k^T x for all k.

    With m_k = mu_k - U_k U_k^T mu_k the distance is |m_k|^2 - 2 x.m_k - |z_k|^2, so x need not be centred for each k.
    It is a difference of squares: see `inference.has_lost_digits` for where that fails.

    Components are processed in tiles and samples in blocks, so that a product stays in the cache while it is used.
    """

    def __init__(self, components: Components, workspace: Workspace | None = None, columns: int = COLUMNS):
        """`columns`: the largest width of a tile of more than one component."""
        mu, U = components.mu, components.U
        self.K, D, self.E = U.shape
        self.components, self.workspace = components, workspace or Workspace()
        m = orthogonal_offsets(components)
        constant = m.square().sum(1)
        T = max(1, columns // (self.E + 1))
        self.tiles = []
        for first in range(0, self.K, T):
            tile = slice(first, min(first + T, self.K))
            t = tile.stop - first
            matrix = mu.new_zeros(D, -(-t * (self.E + 1) // 16) * 16)
            order = (1, 2, 0) if self.E <= FEW_AXES else (1, 0, 2)
            matrix[:, : t * self.E] = U[tile].permute(order).reshape(D, t * self.E)
            matrix[:, t * self.E : t * (self.E + 1)] = -2 * m[tile].T
            self.tiles.append(Tile(first, constant[tile], matrix))
        self.block = max(256, min(BLOCK_ROWS, BLOCK_VALUES // self.tiles[0].matrix.shape[1]))

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the least distance minus |x|^2 (n,), its component k (n,) and z (n, E) there, for x (n, D)."""
        parts = [self._nearest(self.prepare(part)) for part in x.split(self.block)]
        if len(parts) == 1:
            return parts[0]
        best, k, z = (torch.cat(column) for column in zip(*parts, strict=True))
        return best, k, z

    def find_allowed(self, x: Tensor, rows: Tensor, squared: Tensor) -> Tensor:
        """Return which components may be the nearest, given rounding errors, of the samples x[rows], (m, K).

        x is that of the last call of `nearest`; `squared` (m,) are the |x|^2 of the samples.
        """
        return within_rounding(self.distances(x[rows]), squared[:, None])

    def _nearest(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.arange(len(x), device=x.device)
        nearest: tuple[Tensor, Tensor, Tensor] | None = None
        for i, tile in enumerate(self.tiles):
            distance, z = self.score_tile(i, x)
            best, column = distance.min(1)
            of_tile = best, column + tile.first, z[rows, column]
            if nearest is None:
                nearest = of_tile
            else:
                better = best < nearest[0]
                pairs = zip(of_tile, nearest, (better, better, better[:, None]), strict=True)
                nearest = tuple(torch.where(where, new, old) for new, old, where in pairs)  # type: ignore[assignment]
        assert nearest is not None
        return nearest

    def distances(self, x: Tensor) -> Tensor:
        """Return the distances of x (n, D) from all components minus |x|^2, shape (n, K).

        The next call overwrites them.
        """
        distances = self.workspace.buffer("distances", self.tiles[0].matrix, len(x), self.K)
        for first in range(0, len(x), self.block):
            part = slice(first, first + self.block)
            prepared = self.prepare(x[part])
            for i, tile in enumerate(self.tiles):
                distances[part, tile.first : tile.first + len(tile.constant)] = self.score_tile(i, prepared)[0]
        return distances

    def score_tile(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return, for the T components of tile i, distances minus |x|^2 (n, T) and z (n, T, E), for prepared x.

        The next call overwrites z.
        """
        return self._score(self.multiply(i, x), self.tiles[i].constant)

    def _score(self, product: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `score_tile` does, given the product (n, w), and |m_k|^2, (T,) or (n, T)."""
        T, E = constant.shape[-1], self.E
        distance = product[:, T * E : T * (E + 1)] + constant
        if E <= FEW_AXES:
            by_axis = product[:, : T * E].unflatten(1, (E, T))
            for z_e in by_axis.unbind(1):
                distance.addcmul_(z_e, z_e, value=-1)
            return distance, by_axis.mT
        z = product[:, : T * E].unflatten(1, (T, E))
        squares = torch.mul(z, z, out=self.workspace.buffer("squares", product, *z.shape))
        return distance.sub_(squares.sum(2)), z

    def prepare(self, x: Tensor) -> Tensor:
        """Return the samples x in the form that `multiply` needs."""
        return x

    def multiply(self, i: int, x: Tensor) -> Tensor:
        """Return the product of prepared x (n, D) and the matrix of tile i, (n, w); the next call overwrites it."""
        matrix = self.tiles[i].matrix
        return torch.mm(x, matrix, out=self.workspace.buffer("product", x, len(x), matrix.shape[1]))

    def gather(self, x: Tensor, order: Tensor) -> Tensor:
        """Return the samples x[order] as floats; the next call overwrites them."""
        return torch.index_select(x, 0, order, out=self.workspace.buffer("sorted", x, *x.shape))


class PairScorer(Scorer):
    """A `Scorer` for pairs of components, 2 p and 2 p + 1: `nearest` scores each sample under one pair only.

    All operations except products run on the samples of all pairs at once: for pairs of few samples, starting an
    operation takes longer than running it. It keeps the scores of the last samples, so one thread uses it at a time.
    """

    def __init__(self, pairs: Components, counts: list[int], workspace: Workspace):
        """`counts`: number of samples of each pair. `nearest` takes them together, in this order."""
        super().__init__(pairs, workspace, columns=2 * (pairs.U.shape[2] + 1))  # a tile is a pair
        self.counts, device = counts, pairs.mu.device
        pair = torch.arange(len(counts), device=device).repeat_interleave(torch.tensor(counts, device=device))
        self.constant = torch.stack([tile.constant for tile in self.tiles])[pair]  # (n, 2)
        self.candidates = torch.stack([2 * pair, 2 * pair + 1], 1)

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the least distance minus |x|^2 (n,), its component k (n,) and z (n, E) there, for x (n, D)."""
        product = self.workspace.buffer("product", x, len(x), self.tiles[0].matrix.shape[1])
        for tile, part, out in zip(self.tiles, x.split(self.counts), product.split(self.counts), strict=True):
            torch.mm(part, tile.matrix, out=out)
        self.scored, z = self._score(product, self.constant)
        best, column = self.scored.min(1)
        rows = torch.arange(len(x), device=x.device)
        return best, self.candidates[rows, column], z[rows, column]

    def find_allowed(self, x: Tensor, rows: Tensor, squared: Tensor) -> Tensor:
        """Return which components of its pair may be the nearest, given rounding errors, of each sample x[rows]."""
        allowed = torch.zeros(len(rows), self.K, dtype=torch.bool, device=x.device)
        return allowed.scatter_(1, self.candidates[rows], within_rounding(self.scored[rows], squared[:, None]))


def orthogonal_offsets(components: Components) -> Tensor:
    """Return m_k = mu_k - U_k U_k^T mu_k, shape (K, D)."""
    mu, U = components.mu, components.U
    return mu - (U * project_each(U, mu)[:, None, :]).sum(2)


def project_each(U: Tensor, v: Tensor) -> Tensor:
    """Return U_k^T v_k, shape (K, E)."""
    return (U * v[:, :, None]).sum(1)
