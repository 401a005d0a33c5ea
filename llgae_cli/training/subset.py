"""The rows that restarts work on, in the leading principal coordinates, and passes over them."""

import copy
import math
from collections.abc import Iterator
from functools import partial

from torch import Tensor

from llgae_cli.progress import NOBODY, Work
from llgae_cli.threads import run_single_threaded
from llgae_cli.training.components import Components, Coordinates
from llgae_cli.training.narrow import MomentScorer, multiply_values
from llgae_cli.training.restart_work import count_operations
from llgae_cli.training.scoring import Scorer, Workspace
from llgae_cli.training.shortlists import Shortlists
from llgae_cli.training.shrinkage import update_with_shrinkage
from llgae_cli.training.statistics import (
    Statistics,
    collect_in_shards,
    collect_soft_statistics,
    even_chunk_size,
    sum_over_shards,
)

CHUNK_ROWS = 8192  # of a chunk, at most; smaller ones cost time in calls
SHARD_ROWS = 6000  # large ones: restarts run in parallel, and wait for each other at each call
JUDGE_FROM, JUDGE_MARGIN = 2, 0.02  # a move is rejected after pass i while above the best by the share 0.02 / i


class Subset:
    """The rows x (n, d) that restarts work on, with the buffers that passes over them share."""

    def __init__(self, x: Tensor, neighbours: int = 0, products: bool = False):
        """Keep the rows, and their products where passes use them.

        neighbours  length of the shortlists that passes use, 0 for full passes
        products    whether full passes use products of the values (see `narrow`)
        """
        self.x, self.neighbours = x, neighbours
        self.products = multiply_values(x) if products and neighbours == 0 else None  # (F, n)
        self.work, self.step, self.spent = NOBODY, "", 0.0  # what passes report to, and the operations so far
        self.workspace, self.coordinates = Workspace(), Coordinates.identity(x)
        self.on_cpu = x.device.type == "cpu"

    def reporting(self, work: Work) -> "Subset":
        """Return the same rows, whose passes are reported to `work`."""
        subset = copy.copy(self)
        subset.work, subset.spent = work, 0.0
        return subset

    def count(self, operations: float) -> None:
        """Report operations of a restart that are done, in the step `step`."""
        self.spent += operations
        self.work.advance("restarts", operations, self.step)

    def pass_operations(self, components: Components) -> float:
        """Return the operations of a pass."""
        K, d, E = components.U.shape
        return count_operations(len(self.x), d, K, E)

    def chunks(self, low: int = 0, high: int | None = None) -> Iterator[Tensor]:
        """Return the rows low ... high - 1 in chunks."""
        x = self.x[low:high]
        return iter(x.split(even_chunk_size(len(x), CHUNK_ROWS)))

    def make_shortlists(self) -> Shortlists | None:
        """Return new shortlists, for a sequence of passes; None where passes are full."""
        n = len(self.x)
        return (
            Shortlists(lambda index: self.x[index], (range(n),), n, self.neighbours, alone=True)
            if self.neighbours
            else None
        )

    def collect_statistics(
        self, components: Components, scatter: bool = False, lists: Shortlists | None = None
    ) -> Statistics:
        """Return the statistics of a pass; by the shortlists `lists` from their second pass on."""
        if lists is not None and lists.k is not None:
            statistics = lists.collect_statistics(components, self.coordinates, self.workspace, scatter)
            self.count(self.pass_operations(components))
            return statistics
        if self.products is not None:
            return self._collect_moments(components, coordinates=self.coordinates if scatter else None)
        statistics, k = collect_in_shards(
            self.chunks,
            0,
            len(self.x),
            components,
            self.coordinates if scatter else None,
            Scorer(components, self.workspace),
            assign=lists is not None,
            parallel=self.on_cpu,
            shard_rows=SHARD_ROWS,
        )
        if lists is not None:
            lists.k = k
        self.count(self.pass_operations(components))
        return statistics

    def collect_soft_statistics(self, components: Components, temperature: float) -> Statistics:
        """Return the statistics of a pass with soft assignments."""
        if self.products is not None:
            return self._collect_moments(components, temperature)
        K, _, E = components.U.shape
        score = Scorer(components, self.workspace, columns=K * (E + 1))  # a single tile

        def collect(low: int, high: int) -> Statistics:
            return collect_soft_statistics(self.chunks(low, high), components, temperature, score)

        statistics = sum_over_shards(collect, 0, len(self.x), K, self.on_cpu, SHARD_ROWS)
        self.count(2 * self.pass_operations(components))
        return statistics

    def collect_group_statistics(self, components: Components, groups: int) -> Statistics:
        """Return the statistics of a pass in which each of so many groups of components gets all rows."""
        return self._collect_moments(components, groups=groups)

    def _collect_moments(
        self,
        components: Components,
        temperature: float = 0.0,
        coordinates: Coordinates | None = None,
        groups: int = 1,
    ) -> Statistics:
        assert self.products is not None
        size = even_chunk_size(len(self.x), CHUNK_ROWS)
        chunks = zip(self.x.split(size), self.products.split(size, 1), strict=True)

        def collect() -> Statistics:
            return MomentScorer(components).collect(chunks, temperature, groups).to_statistics(components, coordinates)

        statistics = run_single_threaded(collect, self.on_cpu)
        self.count((2 if temperature > 0 else 1) * self.pass_operations(components))
        return statistics


def run_passes(
    subset: Subset,
    components: Components,
    passes: int,
    *,
    tol: float = 0.0,
    best: float = math.inf,
    shrinkage: float = 0.0,
) -> tuple[Components, float]:
    """Run up to `passes` passes with hard assignments; return components and the objective of the last pass.

    The components are those of the last pass, or of the pass before where the last one ended the loop: it gained less
    than the share `tol`, or its objective was above `best` by more than the share JUDGE_MARGIN / pass. (In ten moves
    that ended below `best`, no objective on the way was above it by more than two thirds of that margin.)
    """
    objective, lists = math.inf, subset.make_shortlists()
    for i in range(passes):
        statistics = subset.collect_statistics(components, shrinkage > 0, lists)
        before, objective = objective, statistics.objective
        converged = before - objective <= tol * objective and i > 0
        if converged or (i >= JUDGE_FROM and objective > best * (1 + JUDGE_MARGIN / i)):
            break
        measured = components
        components = run_single_threaded(
            partial(update_with_shrinkage, measured, statistics, subset.coordinates, shrinkage), subset.on_cpu
        )
    return (components if math.isinf(objective) else measured), objective
