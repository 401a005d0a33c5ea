"""Passes over narrow rows, of at most 16 values: in float64, by the products of their values.

With a = (1, x_1 ... x_d), a row has the F = (d + 1) (d + 2) / 2 products phi(x) = (a_i a_j for i <= j). The squared
distance of x from component k is a quadratic form a^T Q_k a, so a weighted sum of phi(x), and the samples of a
component enter its update by the sum of their phi only. So a pass computes the products, then the distances by one
matrix product, the least ones, and the sums by another one: n F (4 K + 1) operations, and no array with a column for
each axis of each component. The sums hold the scatters as a whole, so that the update is the optimum for the
assignments (see `update_components`).

Distances are differences of squares, as in `Scorer`. Samples whose distances lost their digits enter as x - mu_k.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from llgae_cli.inference import choose_exactly, has_lost_digits, within_rounding
from llgae_cli.threads import check_cancelled, run_single_threaded
from llgae_cli.training.components import Components, Coordinates
from llgae_cli.training.scoring import Workspace
from llgae_cli.training.statistics import Statistics, sum_over_shards

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


@dataclass(frozen=True)
class Layout:
    """Places and float64 weights of the products of a row, in the order of `multiply_values`: 1, x_i, then x_i x_j."""

    of_pair: Tensor  # ((d + 1)^2,) the place of a_i a_j, for the entries (i, j) of a matrix row by row
    entries: Tensor  # (F - d - 1,) for each product x_i x_j, i <= j, the place of (i, j) in a matrix (d, d)
    factors: Tensor  # (F - d - 1,) of x_i x_j in a symmetric quadratic form: 1 where i = j, else 2
    squared: Tensor  # (1, F) weights of the products in |x|^2


@cache
def lay_out_products(d: int) -> Layout:
    """Return where the products of a row of d values are."""
    i, j = torch.triu_indices(d + 1, d + 1)
    of_pair = torch.empty(d + 1, d + 1, dtype=torch.int64)
    of_pair[i, j] = of_pair[j, i] = torch.arange(len(i))
    i, j = i[d + 1 :] - 1, j[d + 1 :] - 1
    squares = (i == j).to(torch.float64)
    squared = torch.cat([squares.new_zeros(d + 1), squares])[None]
    return Layout(of_pair.flatten(), d * i + j, 2 - squares, squared)


@dataclass
class Moments:
    """Sums over the samples of each component, additive over samples."""

    sums: Tensor  # (F, K) sum of phi(x): products into this shape take two thirds of the time of those into (K, F)
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
        sums = self.sums.T[:, lay_out_products(d).of_pair].view(K, d + 1, d + 1)  # of a a^T
        n, s, close = sums[:, 0, 0], sums[:, 1:, :1], self.close
        shift = s - n[:, None, None] * mu[:, :, None]  # sum of x - mu
        full = torch.baddbmm(sums[:, 1:, 1:], s, mu[:, None, :], alpha=-1)  # sum of (x - mu) (x - mu)^T
        full.baddbmm_(mu[:, :, None], shift.mT, alpha=-1).add_(close[:, 1:, 1:])
        shift += close[:, 1:, :1]
        statistics = Statistics(
            product=torch.cat([U.mT @ full, shift.mT], 1),
            latent=(shift.mT @ U)[:, 0],
            count=n + close[:, 0, 0],
            scatter=mu.new_zeros(K, 0, 0),
            distortion=self.distortion,
            raw=mu.new_zeros(K, E + 1),
            full=full,
        )
        if coordinates is not None:
            statistics.scatter = coordinates.V.T @ full @ coordinates.V
        return statistics


class MomentScorer:
    """Collects moments, each sample assigned to its nearest component by weighted sums of its products.

    |x - mu|^2 - |U^T (x - mu)|^2 = x^T P x - 2 m.x + |m|^2 with P = I - U U^T and m = P mu.
    """

    def __init__(self, components: Components):
        mu, U = components.mu, components.U
        layout = lay_out_products(U.shape[1])
        P = torch.eye(U.shape[1], dtype=mu.dtype) - U @ U.mT
        m = (P @ mu[:, :, None])[:, :, 0]
        quadratic = P.flatten(1)[:, layout.entries].mul_(layout.factors)
        distances = torch.cat([m.square().sum(1, keepdim=True), -2 * m, quadratic], 1)
        self.components = components
        self.weights = torch.cat([distances, layout.squared])  # (K + 1, F): distances, then |x|^2

    def collect(self, chunks: Iterable[Rows], temperature: float = 0.0, groups: int = 1) -> Moments:
        """Return the moments of all chunks; at a temperature above 0, with softmax_k(-distance / temperature).

        With several groups of equally many components, at temperature 0, each sample is assigned once in every group.
        """
        moments, T = Moments.zeros(self.components), len(self.components.mu) // groups
        first = T * torch.arange(groups)[:, None]
        for x, products in chunks:
            check_cancelled()
            scores = self.weights @ products
            if temperature > 0:
                share = torch.softmax(scores[:-1].div_(-temperature), 0)
                moments.sums.addmm_(products, torch.threshold(share, LEAST_SHARE, 0.0).T)
            else:
                share, distance = self._assign(moments, scores, [x], first)
                moments.sums.addmm_(products, share.flatten(0, 1).T)
                moments.distortion += (share @ distance[:, :, None]).flatten()
        return moments

    def collect_pairs(self, parts: Sequence[Rows]) -> Moments:
        """Return the moments, given the samples of each pair of components, 2 p and 2 p + 1.

        All operations except products run on all parts at once: starting one takes longer than running it.
        """
        check_cancelled()
        moments, counts = Moments.zeros(self.components), torch.tensor([len(x) for x, _ in parts])
        sizes = counts.tolist()
        scores = self.weights.new_empty(3, sum(sizes))
        for p, ((_, products), out) in enumerate(zip(parts, scores.split(sizes, 1), strict=True)):
            torch.mm(self.weights[[2 * p, 2 * p + 1, -1]], products, out=out)
        first = 2 * torch.arange(len(parts)).repeat_interleave(counts)[None]
        share, distance = self._assign(moments, scores, [x for x, _ in parts], first)
        each = zip(parts, share[0].split(sizes, 1), distance[0].split(sizes), strict=True)
        for p, ((_, products), own, squared_residual) in enumerate(each):
            pair = slice(2 * p, 2 * p + 2)
            moments.sums[:, pair].addmm_(products, own.T)
            moments.distortion[pair].addmv_(own, squared_residual)
        return moments

    def _assign(self, moments: Moments, scores: Tensor, x: list[Tensor], first: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shares (G, T, n) of T components in the samples, 0 or 1, and the squared distances (G, n).

        Samples whose distances lost their digits are added to `moments` here, and get shares and distances of 0.

        scores  distances and |x|^2, (G T + 1, n)
        x       the samples (n, d), in parts
        first   the first one of a sample's T components, (G, 1) or (1, n)
        """
        distances, squared = scores[:-1].unflatten(0, (len(first), -1)), scores[-1]
        least = distances.amin(1)
        share = torch.eq(distances, least[:, None], out=torch.empty_like(distances))
        if bool((share.sum(1) != 1).any()):  # equal distances: the first component counts
            share.zero_().scatter_(1, distances.min(1, keepdim=True).indices, 1.0)
        lost = has_lost_digits(least, squared)
        if bool(lost.any()):
            g, row = lost.nonzero(as_tuple=True)
            near = within_rounding(distances[g, :, row], squared[row, None])
            rows = (x[0] if len(x) == 1 else torch.cat(x))[row]
            self._add_exactly(moments, rows, first.expand_as(lost)[g, row], near)
            share[g, :, row] = 0.0
            least[g, row] = 0.0
        return share, least

    def _add_exactly(self, moments: Moments, x: Tensor, first: Tensor, near: Tensor) -> None:
        """Add samples x (n, d) to `close`, and their squared residuals.

        `first` (n,) is the first component of a sample's group of T, `near` (n, T) which of them may be the nearest.
        """
        mu, U = self.components.mu, self.components.U
        allowed = torch.zeros(len(x), len(mu), dtype=torch.bool)
        allowed.scatter_(1, first[:, None] + torch.arange(near.shape[1]), near)
        k, distance = choose_exactly(x, mu, U, allowed)
        a = torch.cat([x.new_ones(len(x), 1), x - mu[k]], 1)
        moments.close.index_add_(0, k, a[:, :, None] * a[:, None, :])
        moments.distortion.index_add_(0, k, distance)


def collect_moments(
    chunks: Callable[[int, int], Iterable[Tensor]], n: int, components: Components, workspace: Workspace, parallel: bool
) -> Moments:
    """Return the moments of n samples; `chunks(a, b)` returns samples a ... b - 1 in chunks. See `sum_over_shards`."""
    score = run_single_threaded(partial(MomentScorer, components))

    def collect(low: int, high: int) -> Moments:
        return score.collect(with_products(chunks(low, high), workspace))

    return sum_over_shards(collect, 0, n, len(components.mu), parallel)
