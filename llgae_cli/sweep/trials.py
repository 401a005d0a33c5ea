"""Progress of a search: it keeps as many trials as cells run at a time; each that ends makes room for the next."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from llgae_cli.formatting import five_digits
from llgae_cli.sweep.folder import SweepFolder
from llgae_cli.sweep.plan import Cell, Plan
from llgae_cli.sweep.progress import SweepProgress, expect_seconds
from llgae_cli.sweep.study import Study

logger = logging.getLogger(__name__)


class SearchProgress(SweepProgress):
    """Progress of a search. Trials without a result run first; further ones are proposed until the budget is spent.

    With `halving` a trial trains to the next rung, where it stops or goes on. `plan` has the cells of all trials so
    far. `threads`: of each cell.
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
        self._goals: dict[str, int | None] = {}  # epochs to which trials train now, by the ids of their cells
        self._stopped = {plan.cells[number].id for number in study.list_stopped()}
        self._started: dict[str, float] = {}  # time.monotonic() of the first start of each trial
        for number, cell in enumerate(plan.cells):
            if cell.id in self._stopped:
                del self.waiting[cell.id]
                self.done += 1
            elif cell.id not in self.waiting:  # it ended when the sweep no longer ran
                self.study.finish(number, folder.read_result(cell.id))
            else:
                self._goals[cell.id] = self._find_rung(cell)
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

    def find_goal(self, cell: Cell) -> int | None:
        """Return the rung to which a waiting or running trial trains now; None: to its own epochs."""
        return self._goals[cell.id]

    def propose(self) -> None:
        """Add trials until as many wait or run as may run at a time, or the budget is spent."""
        while len(self.waiting) + len(self.running) < self.jobs and not self.spent:
            cell = self.study.add_trial([self._read_last(cell) for cell in self.plan.cells])
            if cell is None:
                break
            self.folder.prepare(cell, self.threads)
            self.plan = replace(self.plan, cells=(*self.plan.cells, cell))
            self.waiting[cell.id], self._goals[cell.id] = cell, self._find_rung(cell)
        self.total = max(len(self.plan.cells), self.search.trials or 0)

    def start(self, cell: Cell) -> None:
        """Record that the trial has started, or goes on after a rung."""
        super().start(cell)
        self.running[cell.id] = (cell, self._started.setdefault(cell.id, time.monotonic()))

    def finish(self, cell: Cell, status: int | str) -> None:
        """Record that the cell's process has ended: it goes on after a rung, or makes room for the next trial."""
        rung = self.find_goal(cell)
        reached = None if rung is None else self.folder.read_result(cell.id, rung)
        if rung is not None and reached is not None:
            if self._is_kept(cell, rung):
                self.running.pop(cell.id, None)
                self.waiting[cell.id], self._goals[cell.id] = cell, self._find_rung(cell)
                value = five_digits(reached["validation_mean_l2"])
                logger.info("%s: validation mean L2 %s after %d epochs, continues", self.plan.label(cell), value, rung)
                return
            self._stopped.add(cell.id)
        super().finish(cell, status)
        number = [one.id for one in self.plan.cells].index(cell.id)
        self.study.finish(number, self._read_last(cell), cell.id in self._stopped)
        self.study.seconds = self.seconds
        self.propose()

    def seconds_left(self) -> float | None:
        """Return an estimate of the seconds left: trials to come take the mean of the others, or the minutes end it."""
        budget = 60 * self.search.minutes - self.seconds if self.search.minutes else math.inf
        known, ahead = super().seconds_left(), math.inf
        if self.search.trials and known is not None:
            begun = [*self.waiting.values(), *(cell for cell, _ in self.running.values())]
            seconds = [each for _, each in self._timed] + [expect_seconds(cell.work, self._timed) for cell in begun]
            to_come = self.search.trials - len(self.plan.cells)
            ahead = known + sum(seconds) / len(seconds) * to_come / self.jobs
        left = min(budget, ahead)
        return max(0.0, left) if math.isfinite(left) else None

    def _find_rung(self, cell: Cell) -> int | None:
        """Return the first rung that a trial has not reached; None: it has reached all."""
        return next((rung for rung in self.plan.rungs if self.folder.read_result(cell.id, rung) is None), None)

    def _is_kept(self, cell: Cell, rung: int) -> bool:
        """Return whether a trial that has reached a rung is among the best of those that have."""
        assert self.plan.halving is not None
        results = {one.id: self.folder.read_result(one.id, rung) for one in self.plan.cells}
        reached = {id: float(result["validation_mean_l2"]) for id, result in results.items() if result is not None}
        return cell.id in self.plan.halving.select(reached)

    def _read_last(self, cell: Cell) -> dict[str, Any] | None:
        """Return the result of a trial: its own, or the one at the rung where it stopped; None while there is none."""
        if cell.id not in self._stopped:
            return self.folder.read_result(cell.id)
        results = [self.folder.read_result(cell.id, rung) for rung in self.plan.rungs]
        return next((result for result in reversed(results) if result is not None), None)
