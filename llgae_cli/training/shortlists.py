"""Short lists of components for large K: a sample is scored under the one it has and under that one's neighbours alone.

From one pass to the next about one sample in a hundred changes its component, and then to a near one. Components are
near where they serve the same samples well: neighbours of k are those that are best, on average, for the few samples
of k that bear witness (and for mu_k), as seen in the leading principal coordinates, x ~ centre + V y. In turn, each
pass also looks a share of the samples up in those coordinates, under all components, and takes their lists from what is
best there too: what the lists cannot reach is reached within TURNS passes.

Samples are taken in the order of their components, so that all that share a list share one matrix product. Operations
for n samples: 2 n D (C + 1) (E + 1) (1 + 1 / TURNS) with C neighbours, in place of 2 n D K (E + 1), and
2 (W K + n / TURNS) d K (E + 1) in d coordinates.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from llgae_cli.inference import choose_exactly, has_lost_digits, within_rounding
from llgae_cli.training import distributed
from llgae_cli.training.components import Components, Coordinates
from llgae_cli.training.scoring import (
    Scorer,
    Workspace,
    perpendicular,
    projections,
)
from llgae_cli.training.statistics import Statistics, accumulate

NEIGHBOURS = 23
WORTHWHILE_K = 100  # where a pass takes long enough to be worth an approximation
COORDINATES = 128
WITNESSES = 2  # samples a component, W; lists from eight lose a tenth less
TURNS = 8  # passes until every sample has been looked up under all components
CHUNK_ROWS = 1 << 16  # put in order at a time; many, so that a component has enough of them for a product
BLOCK_ROWS = 2048


class ShortLists:
    """The components that the samples had in the last pass, `k` (n,), from which the next one starts.

    `before` is what the last pass started from, and `turn` counts passes: what it takes to repeat that pass.
    """

    def __init__(self, rows: Callable[[Tensor], Tensor], low: int, high: int, N: int, neighbours: int = NEIGHBOURS):
        """Of the samples low ... high - 1 of N; `rows` gives x (m, D) at the indices (m,) among all N."""
        self.rows, self.low, self.high, self.N, self.neighbours = rows, low, high, N, neighbours
        self.k: Tensor | None = None
        self.before: Tensor | None = None
        self.turn = 0

    def state(self) -> tuple[Tensor | None, Tensor | None, int]:
        """What a pass changes, for `set_state` to bring back where the pass is undone."""
        return self.k, self.before, self.turn

    def set_state(self, state: tuple[Tensor | None, Tensor | None, int]) -> None:
        """Bring back what `state` returned."""
        self.k, self.before, self.turn = state

    def survey(
        self, components: Components, coordinates: Coordinates, workspace: Workspace, scatter: bool = False
    ) -> Statistics:
        """As `passes.survey` of all samples, each scored under its own list; `scatter`: collect those too."""
        assert self.k is not None
        coarse = scorer_in(coordinates, components)
        search = _Search(components, self._lists(components, coordinates, coarse), workspace)
        statistics = Statistics.zeros(components, coordinates.V.shape[1] if scatter else 0)
        self.before, k = self.k, torch.empty_like(self.k)
        self.turn += 1
        for chunk in torch.arange(self.low, self.high, device=k.device).split(CHUNK_ROWS):
            n = len(chunk)
            again = (chunk + self.turn) % TURNS == 0
            coarsely = [
                coarse.nearest(coordinates.leading(self.rows(part), COORDINATES))[1]
                for part in chunk[again].split(BLOCK_ROWS)
            ]
            index = torch.cat([chunk, chunk[again]])
            found = search.best(torch.cat([self.before[chunk - self.low], *coarsely]), index, self.rows)
            distance, has, z, lost = found
            better = (distance[n:] < distance[:n][again]).nonzero()[:, 0]
            where = again.nonzero()[better, 0]
            for tensor in found:
                tensor[where] = tensor[n + better]
            k[chunk - self.low] = has[:n]
            for some in has[:n].argsort().split(BLOCK_ROWS):
                own = None if bool(lost[some].any()) else z[some] - search.z0[has[some]]
                x, y = self.rows(chunk[some]), coordinates if scatter else None
                accumulate(statistics, components, x, distance[some], has[some], own, workspace, y)
        statistics.centre(components.mu)
        self.k = k
        return statistics

    def _lists(self, components: Components, coordinates: Coordinates, coarse: Scorer) -> Tensor:
        """Each component and its neighbours, (K, C + 1); equal on all processes, however the samples are shared."""
        mu = components.mu
        K = len(mu)
        drawn = torch.randint(self.N, (WITNESSES * K,), generator=torch.Generator().manual_seed(0)).to(mu.device)
        drawn = drawn[(drawn >= self.low) & (drawn < self.high)]
        assert self.k is not None
        total, count = mu.new_zeros(K, K), mu.new_zeros(K)
        for some in drawn.split(BLOCK_ROWS):
            k = self.k[some - self.low]
            total.index_add_(0, k, coarse.distances(coordinates.leading(self.rows(some), COORDINATES)))
            count.index_add_(0, k, torch.ones_like(k, dtype=count.dtype))
        if self.high - self.low < self.N:
            distributed.sum_([total, count])
        for ks in torch.arange(K, device=mu.device).split(BLOCK_ROWS):
            total[ks] += coarse.distances(coordinates.leading(mu[ks], COORDINATES))
        mean = total / (count + 1)[:, None]
        mean.fill_diagonal_(-torch.inf)  # its own comes first
        return mean.topk(min(K, self.neighbours + 1), 1, largest=False).indices


class _Search:
    """Exact scores under the lists (K, C) of what the samples have."""

    def __init__(self, components: Components, lists: Tensor, workspace: Workspace):
        apart = perpendicular(components)
        self.components, self.lists, self.workspace = components, lists, workspace
        self.constant, self.z0 = apart.square().sum(1), projections(components.U, components.mu)
        self.matrices = torch.cat([components.U.mT, -2 * apart[:, None, :]], 1)  # (K, E + 1, D): a list is one matrix

    def best(self, k: Tensor, index: Tensor, rows: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The least squared distance (n,), whose it is (n,), z (n, E) there, and whether digits were lost (n,).

        Of the samples at `index` (n,), each under the list of its component in k (n,).
        """
        (_, width, _), C = self.matrices.shape, self.lists.shape[1]
        found = (
            self.constant.new_empty(len(k)),
            torch.empty_like(k),
            self.constant.new_empty(len(k), width - 1),
            torch.empty_like(k, dtype=torch.bool),
        )
        for some in k.argsort().split(BLOCK_ROWS):
            had, x = k[some], rows(index[some])
            product = self.workspace.take("product", self.constant, len(some), C, width)
            self._multiply(x, had, product)
            z = product[:, :, : width - 1]
            squares = torch.mul(z, z, out=self.workspace.take("squares", z, *z.shape)).sum(2)
            distances = self.constant[self.lists[had]] + product[:, :, width - 1] - squares
            best, column = distances.min(1)
            squared = torch.linalg.vector_norm(x, dim=1).square_()
            z, best, has = z[torch.arange(len(some), device=k.device), column], best + squared, self.lists[had, column]
            lost = has_lost_digits(best, squared)
            if bool(lost.any()):
                these = lost.nonzero()[:, 0]
                allowed = torch.zeros(len(these), len(self.components.mu), dtype=torch.bool, device=k.device)
                allowed.scatter_(1, self.lists[had[these]], within_rounding(distances[these], squared[these]))
                has[these], exact = choose_exactly(x[these], self.components.mu, self.components.U, allowed)
                best[these] = exact.to(best.dtype)
            for whole, part in zip(found, (best, has, z, lost), strict=True):
                whole[some] = part
        return found

    def _multiply(self, x: Tensor, k: Tensor, product: Tensor) -> None:
        """Samples x (n, D), in the order of k (n,), times the matrices of their lists, into product (n, C, E + 1)."""
        C, (_, width, D) = self.lists.shape[1], self.matrices.shape
        used, counts = torch.unique_consecutive(k, return_counts=True)
        sizes = counts.tolist()
        for j, x_j, product_j in zip(used.tolist(), x.split(sizes), product.flatten(1).split(sizes), strict=True):
            listed = self.workspace.take("listed", self.matrices, C, width, D)
            torch.index_select(self.matrices, 0, self.lists[j], out=listed)
            torch.mm(x_j, listed.flatten(0, 1).T, out=product_j)


def scorer_in(coordinates: Coordinates, components: Components) -> Scorer:
    """A scorer of the components for samples given in the COORDINATES leading coordinates: a product over d, not D."""
    score = Scorer(Components(components.mu - coordinates.centre, components.U))
    V = coordinates.V[:, :COORDINATES]
    for tile in score.tiles:
        tile.matrix = V.T @ tile.matrix
    return score
