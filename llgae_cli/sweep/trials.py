"""Progress of a search: it keeps as many trials as cells run at a time; each that ends makes room for the next."""

import math
import time
from collections.abc import Callable
from dataclasses import replace

from llgae_cli.sweep.folder import SweepFolder
from llgae_cli.sweep.plan import Cell, Plan
from llgae_cli.sweep.progress import SweepProgress
from llgae_cli.sweep.study import Study


class SearchProgress(SweepProgress):
    """Progress of a search. Trials without a result run first; further ones are proposed until the budget is spent.

    `plan` has the cells of all trials so far. `threads`: of each cell.
    """

    def __init__(
        self,
        plan: Plan,
        folder: SweepFolder,
        study: Study,
        threads: int,
        jobs: int = 1,
        draw: Callable[[SweepProgress], None] = lambda progress: None,
    ):
        assert plan.search is not None
        self.search, self.study, self.threads = plan.search, study, threads
        self._began, self._before = time.monotonic(), study.seconds
        super().__init__(plan, folder, plan.cells, None, jobs, draw)
        for number, cell in enumerate(plan.cells):  # those that ended when the sweep no longer ran
            if cell.id not in self.waiting:
                self.study.finish(number, folder.read_result(cell.id))
        self.propose()

    @property
    def seconds(self) -> float:
        """How long the search has run, all its processes together."""
        return self._before + time.monotonic() - self._began

    @property
    def spent(self) -> bool:
        """Whether the budget is spent: no further trial may start."""
        trials, minutes = self.search.trials, self.search.minutes
        return len(self.plan.cells) >= (trials or math.inf) or self.seconds >= 60 * (minutes or math.inf)

    def propose(self) -> None:
        """Add trials until as many wait or run as may run at a time, or the budget is spent."""
        while len(self.waiting) + len(self.running) < self.jobs and not self.spent:
            results = [self.folder.read_result(cell.id) for cell in self.plan.cells]
            cell = self.study.add_trial(results)
            if cell is None:
                break
            self.folder.prepare(cell, self.threads)
            self.plan = replace(self.plan, cells=(*self.plan.cells, cell))
            self.waiting[cell.id] = cell
        self.total = max(len(self.plan.cells), self.search.trials or 0)

    def finish(self, cell: Cell, status: int | str) -> None:
        """Record that the cell's process has ended, and propose the next trial."""
        super().finish(cell, status)
        number = [one.id for one in self.plan.cells].index(cell.id)
        self.study.finish(number, self.folder.read_result(cell.id))
        self.study.seconds = self.seconds
        self.propose()

    def seconds_left(self) -> float | None:
        """Return an estimate of the seconds left: trials to come take the mean of those done, or the minutes end it."""
        budget = 60 * self.search.minutes - self.seconds if self.search.minutes else math.inf
        ended, ahead = self.done + self.failed, math.inf
        if self.search.trials and self._timed:
            mean = sum(seconds for _, seconds in self._timed) / len(self._timed)
            ahead = mean * (self.search.trials - ended) / self.jobs
        left = min(budget, ahead)
        return max(0.0, left) if math.isfinite(left) else None
