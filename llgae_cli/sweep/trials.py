"""Progress of a search: it keeps as many trials as cells run at a time; each that ends makes room for the next."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace

from llgae_cli.formatting import five_digits
from llgae_cli.sweep.folder import SweepFolder
from llgae_cli.sweep.plan import Cell, Plan
from llgae_cli.sweep.progress import SweepProgress, expect_seconds
from llgae_cli.sweep.study import Study

logger = logging.getLogger(__name__)


class SearchProgress(SweepProgress):
    """Progress of a search. Trials without a result run first; further ones are proposed until the budget is spent.

    With `halving` a trial trains to the next rung, where it stops or continues. `plan` has the cells of all trials so
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
        self._started: dict[str, float] = {}  # time.monotonic() of the first start of each trial
        self._stopped_seconds: list[float] = []  # what each trial took that halving stopped
        for number, cell in enumerate(plan.cells):
            if cell.id not in self.waiting:  # it ended when the sweep no longer ran
                self.study.finish(number, folder.read_result(cell.id))
            elif folder.read_stopped(cell.id) is not None or self._stop(cell):
                del self.waiting[cell.id]
                self.done += 1
                self.study.stop(number)
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
            cell = self.study.add_trial([self.folder.read_end(cell.id) for cell in self.plan.cells])
            if cell is None:
                break
            self.folder.prepare(cell, self.threads)
            self.plan = replace(self.plan, cells=(*self.plan.cells, cell))
            self.waiting[cell.id], self._goals[cell.id] = cell, self._find_rung(cell)
        self.total = max(len(self.plan.cells), self.search.trials or 0)

    def start(self, cell: Cell) -> None:
        """Record that the trial has started, or continues after a rung."""
        super().start(cell)
        self.running[cell.id] = (cell, self._started.setdefault(cell.id, time.monotonic()))

    def finish(self, cell: Cell, status: int | str) -> None:
        """Record that the cell's process has ended: the trial continues after a rung, or the next one is proposed."""
        number = [one.id for one in self.plan.cells].index(cell.id)
        rung, label = self.find_goal(cell), self.plan.label(cell)
        reached = None if rung is None else self.folder.read_result(cell.id, rung)
        if reached is None:
            super().finish(cell, status)
            self.study.finish(number, self.folder.read_result(cell.id))
        else:
            _, started = self.running.pop(cell.id, (cell, time.monotonic()))
            value = f"validation mean L2 {five_digits(reached['validation_mean_l2'])} after epoch {rung}"
            if not self._stop(cell):
                self.waiting[cell.id], self._goals[cell.id] = cell, self._find_rung(cell)
                logger.info("%s: %s, continues", label, value)
                return
            self.done += 1
            self._stopped_seconds.append(time.monotonic() - started)
            logger.info("%d/%d  %s: %s, stopped", self.done + self.failed, self.total, label, value)
            self.study.stop(number)
        self.study.seconds = self.seconds
        self.propose()

    def seconds_left(self) -> float | None:
        """Return an estimate of the seconds left: trials to come take the mean of the others, or the minutes end it."""
        budget = 60 * self.search.minutes - self.seconds if self.search.minutes else math.inf
        known, ahead = super().seconds_left(), math.inf
        if self.search.trials and known is not None:
            begun = [*self.waiting.values(), *(cell for cell, _ in self.running.values())]
            seconds = self._stopped_seconds + [each for _, each in self._timed]
            seconds += [expect_seconds(cell.work, self._timed) for cell in begun]
            to_come = self.search.trials - len(self.plan.cells)
            ahead = known + sum(seconds) / len(seconds) * to_come / self.jobs
        left = min(budget, ahead)
        return max(0.0, left) if math.isfinite(left) else None

    def _find_rung(self, cell: Cell) -> int | None:
        """Return the first rung that a trial has not reached; None: it has reached all."""
        return next((rung for rung in self.plan.rungs if self.folder.read_result(cell.id, rung) is None), None)

    def _stop(self, cell: Cell) -> bool:
        """Stop a trial unless it is among the best that have reached its last rung; return whether it stops."""
        reached = [rung for rung in self.plan.rungs if self.folder.read_result(cell.id, rung) is not None]
        if self.plan.halving is None or not reached:
            return False
        results = {one.id: self.folder.read_result(one.id, reached[-1]) for one in self.plan.cells}
        validation = {id: float(result["validation_mean_l2"]) for id, result in results.items() if result is not None}
        own = results[cell.id]
        if own is None or cell.id in self.plan.halving.select(validation):
            return False
        self.folder.write_stopped(cell.id, own)
        return True
