"""Passes over narrow rows, of at most 16 values: in float64, by the products of their values.

With a = (1, x_1 ... x_d), a row has the F = (d + 1) (d + 2) / 2 products phi(x) = (a_i a_j for i <= j). The squared
distance of x from component k is a quadratic form a^T Q_k a, so a weighted sum of phi(x), and the samples of a
component enter its update by the sum of their phi only. So a pass computes the products, then the distances by one
matrix product, the least ones, and the sums by another one: n F (4 K + 1) operations, and no array with a column for
each axis of each component. The sums hold the scatters as a whole, so that the update is the optimum for the
assignments (see `update_components`).

Distances are differences of squares, as in `Scorer`. Samples whose distances lost their digits enter as x - mu_k.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from llgae_cli.inference import choose_exactly, has_lost_digits, within_rounding
from llgae_cli.threads import check_cancelled
from llgae_cli.training.components import Components, Coordinates
from llgae_cli.training.scoring import Workspace
from llgae_cli.training.statistics import Statistics

LARGEST_D = 16  # values of a row
FLOAT64_COLUMNS = 128  # limit of `choose_dtype` for K (E + 1)
PRODUCTS_AN_AXIS = 45  # up to so many products for each axis and the offset, they take less time than `Scorer`
LEAST_SHARE = 1e-100  # smaller soft assignments count as 0: subnormal numbers take ten times as long

Rows = tuple[Tensor, Tensor]  # samples x (n, d) and their products (F, n)


def choose_dtype(mu: Tensor, E: int) -> torch.dtype:
    """Return the type that passes compute in: float64 for narrow rows on a CPU, else that of the offsets mu (K, D).

    Where components explain nearly all of the data, most distances lose their digits in float32 and are computed again:
    then float64 takes a third to two thirds of the time. Where they do not, it takes up to a third more.
    """
    K, D = mu.shape
    narrow = D <= LARGEST_D and K * (E + 1) <= FLOAT64_COLUMNS
    return torch.float64 if narrow and mu.device.type == "cpu" else mu.dtype


def are_quicker(x: Tensor, E: int) -> bool:
    """Return whether passes over rows like x (n, d), with E axes a component, should use products."""
    d = x.shape[1]
    narrow = d <= LARGEST_D and count_products(d) <= PRODUCTS_AN_AXIS * (E + 1)
    return narrow and E > 0 and x.dtype == torch.float64 and x.device.type == "cpu"


def count_products(d: int) -> int:
    """Return the number F of products of a row of d values."""
    return (d + 1) * (d + 2) // 2


def multiply_values(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the products phi of the rows x (n, d), shape (F, n); in `out`, if given."""
    n, d = x.shape
    products = x.new_empty(count_products(d), n) if out is None else out
    a, done = products[: d + 1], d + 1
    a[0] = 1.0
    a[1:] = x.T
    for i in range(1, d + 1):
        torch.mul(a[i:], a[i], out=products[done : done + d + 1 - i])
        done += d + 1 - i
    return products


def with_products(chunks: Iterable[Tensor], workspace: Workspace) -> Iterator[Rows]:
    """Return the chunks x (n, d) with their products; the next chunk overwrites them."""
    for x in chunks:
        yield x, multiply_values(x, workspace.buffer("products", x, count_products(x.shape[1]), len(x)))


@cache
def _pairs(d: int) -> tuple[Tensor, Tensor]:
    """Return the indices i and j of the products a_i a_j, each (F,)."""
    i, j = torch.triu_indices(d + 1, d + 1)
    return i, j


@dataclass
class Moments:
    """Sums over the samples of each component, additive over samples."""

    sums: Tensor  # (F, K) sum of phi(x)
    close: Tensor  # (K, d + 1, d + 1) sum of a a^T with x - mu in place of x, over the samples that are not in `sums`
    distortion: Tensor  # (K,) sum of the squared residual; zero where assignments are soft

    @classmethod
    def zeros(cls, components: Components) -> "Moments":
        """Return the sums over no samples."""
        (K, d), new = components.mu.shape, components.mu.new_zeros
        return cls(new(count_products(d), K), new(K, d + 1, d + 1), new(K))

    def add_(self, other: "Moments") -> None:
        """Add the sums over other samples."""
        for mine, others in zip(self.tensors(), other.tensors(), strict=True):
            mine.add_(others)

    def tensors(self) -> list[Tensor]:
        """Return the additive tensors."""
        return [self.sums, self.close, self.distortion]

    def to_statistics(self, components: Components, coordinates: Coordinates | None = None) -> Statistics:
        """Return the statistics of a pass with these components, and with scatters in the coordinates, if given."""
        mu, U = components.mu, components.U
        K, d, E = U.shape
        i, j = _pairs(d)
        around_zero = mu.new_empty(K, d + 1, d + 1)  # sum of a a^T
        around_zero[:, i, j] = around_zero[:, j, i] = self.sums.T
        move = torch.eye(d + 1, dtype=mu.dtype).repeat(K, 1, 1)
        move[:, 1:, 0] = -mu
        around_mu = move @ around_zero @ move.mT + self.close  # the same with x - mu in place of x
        statistics = Statistics.zeros(components)
        statistics.count, statistics.full, shift = around_mu[:, 0, 0], around_mu[:, 1:, 1:], around_mu[:, :1, 1:]
        statistics.product[:, :E], statistics.product[:, E : E + 1] = U.mT @ statistics.full, shift
        statistics.latent, statistics.distortion = (shift @ U)[:, 0], self.distortion
        if coordinates is not None:
            statistics.scatter = coordinates.V.T @ statistics.full @ coordinates.V
        return statistics


class MomentScorer:
    """Collects moments, each sample assigned to its nearest component by weighted sums of its products.

    |x - mu|^2 - |U^T (x - mu)|^2 = x^T P x - 2 m.x + |m|^2 with P = I - U U^T and m = P mu.
    """

    def __init__(self, components: Components):
        mu, U = components.mu, components.U
        K, d, _ = U.shape
        form = torch.eye(d + 1, dtype=mu.dtype).repeat(K + 1, 1, 1)
        form[:K, 1:, 1:] -= U @ U.mT
        m = (form[:K, 1:, 1:] @ mu[:, :, None])[:, :, 0]
        form[:K, 0, 0], form[:K, 0, 1:], form[K, 0, 0] = m.square().sum(1), -m, 0.0
        i, j = _pairs(d)
        self.components = components
        self.weights = form[:, i, j].mul_(torch.where(i == j, 1.0, 2.0))  # (K + 1, F): distances, then |x|^2

    def collect(self, chunks: Iterable[Rows], temperature: float = 0.0) -> Moments:
        """Return the moments of all chunks; at a temperature above 0, with softmax_k(-distance / temperature)."""
        moments, weights = Moments.zeros(self.components), self.weights[None]
        for rows in chunks:
            self._add(moments, [rows], weights, temperature)
        return moments

    def collect_pairs(self, parts: Sequence[Rows]) -> Moments:
        """Return the moments, given the samples of each pair of components, 2 p and 2 p + 1."""
        moments, P = Moments.zeros(self.components), len(parts)
        pairs = torch.cat([self.weights[:-1].unflatten(0, (P, 2)), self.weights[-1:].expand(P, 1, -1)], 1)
        self._add(moments, parts, pairs)
        return moments

    def _add(self, moments: Moments, parts: Sequence[Rows], weights: Tensor, temperature: float = 0.0) -> None:
        """Add samples, given in a part for each group of T components, whose weights are (P, T + 1, F).

        All operations except products run on all parts at once: starting one takes longer than running it.
        """
        check_cancelled()
        (P, T, _), counts = weights[:, 1:].shape, [len(x) for x, _ in parts]
        scores = weights.new_empty(T + 1, sum(counts))
        for w, (_, products), out in zip(weights, parts, scores.split(counts, 1), strict=True):
            torch.mm(w, products, out=out)
        distances, squared = scores[:-1], scores[-1]
        if temperature > 0:
            share = torch.threshold(torch.softmax(distances.div_(-temperature), 0), LEAST_SHARE, 0.0)
        else:
            distance, k = distances.min(0)
            first = T * torch.arange(P).repeat_interleave(torch.tensor(counts))  # first component of a sample's group
            lost = has_lost_digits(distance, squared)
            some = lost.nonzero()[:, 0] if bool(lost.any()) else None
            if some is not None:
                x = (parts[0][0] if P == 1 else torch.cat([x for x, _ in parts]))[some]
                near = within_rounding(distances[:, some].T, squared[some, None])
                k[some], distance[some] = self._add_exactly(moments, x, first[some], near)
            share = distances.zero_().scatter_(0, k[None], 1.0)
            if some is not None:
                share[:, some] = 0.0
            moments.distortion.index_add_(0, first + k, distance)
        for i, ((_, products), own) in enumerate(zip(parts, share.split(counts, 1), strict=True)):
            moments.sums[:, i * T : (i + 1) * T].addmm_(products, own.T)

    def _add_exactly(self, moments: Moments, x: Tensor, first: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        """Add samples x (n, d) to `close`; return the places of their components in their groups, and their distances.

        `first` (n,) is the first component of a sample's group of T, `near` (n, T) which of them may be the nearest.
        Distances (n,) are squared.
        """
        mu, U = self.components.mu, self.components.U
        allowed = torch.zeros(len(x), len(mu), dtype=torch.bool)
        allowed.scatter_(1, first[:, None] + torch.arange(near.shape[1]), near)
        k, distance = choose_exactly(x, mu, U, allowed)
        a = torch.cat([x.new_ones(len(x), 1), x - mu[k]], 1)
        moments.close.index_add_(0, k, a[:, :, None] * a[:, None, :])
        return k - first, distance
