"""Shortlists for large K: a sample is scored under its present component and that component's neighbours only.

From one pass to the next about one sample in a hundred changes its component, and then to a near one. Components are
near where they code the same samples well: the neighbours of k are those with the least mean distance from a few
samples of k, the witnesses, and from mu_k, in the leading principal coordinates x ~ centre + V y. In addition, each
pass scores a share of the samples under all components in those coordinates, and scores them under the shortlist of
the nearest one too: what the shortlists cannot reach is reached within TURNS passes.

Samples are sorted by component, so that all that share a shortlist share one matrix product. A pass over n samples
takes 2 n D (C + 1) (E + 1) (1 + 1 / TURNS) operations with C neighbours, in place of 2 n D K (E + 1), and further
2 (W K + n / TURNS) d K (E + 1) in d coordinates.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from llgae_cli import distributed
from llgae_cli.inference import choose_exactly, has_lost_digits, within_rounding
from llgae_cli.tasks import list_positions, locate
from llgae_cli.training.components import Components, Coordinates
from llgae_cli.training.scoring import Scorer, Workspace, orthogonal_offsets, project_each
from llgae_cli.training.statistics import Statistics, accumulate

NEIGHBOURS = 23
WORTHWHILE_K = 100  # from here on a pass takes long enough to justify an approximation
COORDINATES = 128
WITNESSES = 2  # samples a component, W; with eight, the loss in the objective is a tenth smaller
TURNS = 8  # passes until every sample has been scored under all components
CHUNK_ROWS = 1 << 16  # samples sorted at a time; many, so that a component has enough of them for a product
BLOCK_ROWS = 2048

Rows = Callable[[Tensor], Tensor]  # rows(index (m,)): samples x (m, D)


class Shortlists:
    """Passes by shortlist over n of N samples, those at the positions `ranges`.

    k       (n,) the components of the samples after the last pass, None before a first full pass sets them
    before  (n,) their components before that pass
    turn    number of passes; `before` and `turn` are what a repetition of the last pass needs

    A pass replaces these and changes no tensor in place, so a shallow copy from before it undoes it.
    """

    def __init__(
        self, rows: Rows, ranges: tuple[range, ...], N: int, neighbours: int = NEIGHBOURS, alone: bool = False
    ):
        """`rows` returns x (m, D) for indices (m,) into the n samples; `alone`: other processes have no part in it."""
        self.rows, self.ranges, self.N, self.neighbours, self.alone = rows, ranges, N, neighbours, alone
        self.positions = list_positions(ranges)
        self.k: Tensor | None = None
        self.before: Tensor | None = None
        self.turn = 0

    def collect_statistics(
        self, components: Components, coordinates: Coordinates, workspace: Workspace, scatter: bool = False
    ) -> Statistics:
        """Return the statistics of all samples, each scored under its shortlist; with scatters where asked."""
        assert self.k is not None
        coarse = coarse_scorer(components, coordinates)
        score = _ListScorer(components, self._choose_neighbours(components, coordinates, coarse), workspace)
        statistics = Statistics.zeros(components, coordinates.V.shape[1] if scatter else 0)
        self.before, k = self.k, torch.empty_like(self.k)
        self.turn += 1
        for chunk in torch.arange(len(k), device=k.device).split(CHUNK_ROWS) if len(k) else ():
            n = len(chunk)
            again = ((self.positions[chunk.cpu()] + self.turn) % TURNS == 0).to(k.device)
            coarsely = [
                coarse.nearest(coordinates.project(self.rows(part), COORDINATES))[1]
                for part in chunk[again].split(BLOCK_ROWS)
            ]
            index = torch.cat([chunk, chunk[again]])
            scored = score.nearest(torch.cat([self.before[chunk], *coarsely]), index, self.rows)
            distance, nearest, z, lost = scored
            better = (distance[n:] < distance[:n][again]).nonzero()[:, 0]
            where = again.nonzero()[better, 0]
            for tensor in scored:
                tensor[where] = tensor[n + better]
            k[chunk] = nearest[:n]
            for some in nearest[:n].argsort().split(BLOCK_ROWS):
                latent = None if bool(lost[some].any()) else z[some] - score.z0[nearest[some]]
                x, y = self.rows(chunk[some]), coordinates if scatter else None
                accumulate(statistics, components, x, distance[some], nearest[some], latent, workspace, y)
        statistics.centre(components.mu)
        self.k = k
        return statistics

    def _choose_neighbours(self, components: Components, coordinates: Coordinates, coarse: Scorer) -> Tensor:
        """Return the shortlist of each component, itself first, (K, C + 1): the same on all processes."""
        mu = components.mu
        K = len(mu)
        drawn = torch.randint(self.N, (WITNESSES * K,), generator=torch.Generator().manual_seed(0))
        found = locate(drawn, self.ranges)
        witnesses = found[found >= 0].to(mu.device)
        assert self.k is not None
        total, count = mu.new_zeros(K, K), mu.new_zeros(K)
        for some in witnesses.split(BLOCK_ROWS):
            k = self.k[some]
            total.index_add_(0, k, coarse.distances(coordinates.project(self.rows(some), COORDINATES)))
            count.index_add_(0, k, torch.ones_like(k, dtype=count.dtype))
        if not self.alone:
            distributed.sum_([total, count])
        for ks in torch.arange(K, device=mu.device).split(BLOCK_ROWS):
            total[ks] += coarse.distances(coordinates.project(mu[ks], COORDINATES))
        mean = total / (count + 1)[:, None]
        mean.fill_diagonal_(-torch.inf)  # a component is first in its own shortlist
        return mean.topk(min(K, self.neighbours + 1), 1, largest=False).indices


class _ListScorer:
    """Exact scores of samples under the shortlists (K, C) of their components."""

    def __init__(self, components: Components, lists: Tensor, workspace: Workspace):
        m = orthogonal_offsets(components)
        self.components, self.lists, self.workspace = components, lists, workspace
        self.constant, self.z0 = m.square().sum(1), project_each(components.U, components.mu)
        self.matrices = torch.cat([components.U.mT, -2 * m[:, None, :]], 1)  # (K, E + 1, D): a list is one matrix

    def nearest(self, k: Tensor, index: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the least squared distance (n,), its component (n,), z (n, E), and whether digits were lost (n,).

        The samples are those at `index` (n,), each scored under the shortlist of its component in k (n,).
        """
        (_, width, _), C = self.matrices.shape, self.lists.shape[1]
        nearest = (
            self.constant.new_empty(len(k)),
            torch.empty_like(k),
            self.constant.new_empty(len(k), width - 1),
            torch.empty_like(k, dtype=torch.bool),
        )
        for some in k.argsort().split(BLOCK_ROWS):
            present, x = k[some], rows(index[some])
            product = self.workspace.buffer("product", self.constant, len(some), C, width)
            self._multiply(x, present, product)
            z = product[:, :, : width - 1]
            squares = torch.mul(z, z, out=self.workspace.buffer("squares", z, *z.shape)).sum(2)
            distances = self.constant[self.lists[present]] + product[:, :, width - 1] - squares
            best, column = distances.min(1)
            squared = torch.linalg.vector_norm(x, dim=1).square_()
            z, best = z[torch.arange(len(some), device=k.device), column], best + squared
            chosen = self.lists[present, column]
            lost = has_lost_digits(best, squared)
            if bool(lost.any()):
                these = lost.nonzero()[:, 0]
                allowed = torch.zeros(len(these), len(self.components.mu), dtype=torch.bool, device=k.device)
                near = within_rounding(distances[these], squared[these, None])
                allowed.scatter_(1, self.lists[present[these]], near)
                chosen[these], exact = choose_exactly(x[these], self.components.mu, self.components.U, allowed)
                best[these] = exact.to(best.dtype)
            for column_of_all, part in zip(nearest, (best, chosen, z, lost), strict=True):
                column_of_all[some] = part
        return nearest

    def _multiply(self, x: Tensor, k: Tensor, product: Tensor) -> None:
        """Multiply samples x (n, D), sorted by k (n,), by the matrices of their lists, into product (n, C, E + 1)."""
        C, (_, width, D) = self.lists.shape[1], self.matrices.shape
        used, counts = torch.unique_consecutive(k, return_counts=True)
        sizes = counts.tolist()
        for j, x_j, product_j in zip(used.tolist(), x.split(sizes), product.flatten(1).split(sizes), strict=True):
            matrices = self.workspace.buffer("listed", self.matrices, C, width, D)
            torch.index_select(self.matrices, 0, self.lists[j], out=matrices)
            torch.mm(x_j, matrices.flatten(0, 1).T, out=product_j)


def coarse_scorer(components: Components, coordinates: Coordinates) -> Scorer:
    """Return a scorer for samples in the COORDINATES leading coordinates: its products run over d, not D."""
    score = Scorer(Components(components.mu - coordinates.centre, components.U))
    V = coordinates.V[:, :COORDINATES]
    for tile in score.tiles:
        tile.matrix = V.T @ tile.matrix
    return score
