"""Progress of a sweep: which cells are done, failed and running, the best so far, and the time left."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from llgae_cli.formatting import describe_time_left, five_digits
from llgae_cli.sweep.folder import SweepFolder, last_line
from llgae_cli.sweep.plan import Cell, Plan
from llgae_cli.sweep.process import describe_exit

logger = logging.getLogger(__name__)

NAMES = {"validation_mean_l2": "validation mean L2", "mean_l2": "test mean L2"}


class SweepProgress:
    """Progress of the cells of a sweep, to `until` epochs (None: to their own). Engines update it.

    `jobs`: how many cells run at a time. `draw` is called with this object several times a second.

    total, done, failed   numbers of cells
    waiting, running      cells by id: those to run, the largest first (so that at the end no large one keeps a single
                          worker busy), and those that run, with the time.monotonic() of their start
    best                  (mean L2, label) of the best cell so far by `Plan.ranked_by`, or None
    """

    def __init__(
        self,
        plan: Plan,
        folder: SweepFolder,
        cells: Sequence[Cell],
        until: int | None = None,
        jobs: int = 1,
        draw: Callable[["SweepProgress"], None] = lambda progress: None,
    ):
        self.plan, self.folder, self.until, self.jobs = plan, folder, until, jobs
        self.total, self.done, self.failed = len(cells), 0, 0
        self.waiting: dict[str, Cell] = {}
        self.running: dict[str, tuple[Cell, float]] = {}
        self.best: tuple[float, str] | None = None
        self._draw = draw
        self._timed: list[tuple[float, float]] = []  # work and seconds of the cells that this sweep has run
        for cell in sorted(cells, key=lambda cell: -cell.work):
            result = folder.read_result(cell.id, until)
            if result is not None:
                self.add_result(cell, result)
            elif folder.read_failure(cell.id) is not None:
                self.failed += 1
            else:
                self.waiting[cell.id] = cell

    def add_result(self, cell: Cell, result: dict[str, Any]) -> None:
        """Count a cell that is done, and keep the best figure so far."""
        self.done += 1
        value = result[self.plan.ranked_by]
        if self.best is None or value < self.best[0]:
            self.best = (value, self.plan.label(cell))

    def find_goal(self, cell: Cell) -> int | None:
        """Return to how many epochs a waiting or running cell trains now; None: to its own."""
        return self.until

    def start(self, cell: Cell) -> None:
        """Record that the cell has started."""
        self.waiting.pop(cell.id, None)
        self.running[cell.id] = (cell, time.monotonic())

    def finish(self, cell: Cell, status: int | str) -> None:
        """Record that the cell's process has ended, with an exit status or the reason why its worker was lost."""
        self.waiting.pop(cell.id, None)
        _, started = self.running.pop(cell.id, (cell, time.monotonic()))
        result, label = self.folder.read_result(cell.id, self.find_goal(cell)), self.plan.label(cell)
        if result is not None:
            self._timed.append((cell.work, time.monotonic() - started))
            self.add_result(cell, result)
            by = self.plan.ranked_by
            text = f"{NAMES[by]} {five_digits(result[by])}, {result['epoch']} epochs{self.describe_time_left()}"
        else:
            self.failed += 1
            reason = status if isinstance(status, str) else describe_exit(status)
            failure = self.folder.write_failure(cell.id, reason)
            text = f"failed, {failure['reason']}: {failure['last_line']}"
        logger.info("%d/%d  %s: %s", self.done + self.failed, self.total, label, text)

    def draw(self) -> None:
        """Have the progress drawn. Engines call this several times a second."""
        self._draw(self)

    def last_lines(self) -> dict[str, str]:
        """Return the last line of the log of each running cell, by the cell's label."""
        cells = [cell for cell, _ in self.running.values()]
        return {self.plan.label(cell): last_line(self.folder.cell_folder(cell.id) / "log.txt") for cell in cells}

    def seconds_left(self) -> float | None:
        """Return an estimate of the seconds left, None while no cell is done.

        A running cell has its elapsed time behind it; the others, see `expect_seconds`.
        """
        if not self._timed:
            return None
        now = time.monotonic()
        left = sum(expect_seconds(cell.work, self._timed) for cell in self.waiting.values())
        for cell, started in self.running.values():
            left += max(0.0, expect_seconds(cell.work, self._timed) - (now - started))
        return left / self.jobs

    def describe_time_left(self) -> str:
        """Return words such as `, about 3 min left`; nothing while the time is unknown, or no cell is left."""
        left = self.seconds_left()
        if left is None or self.done + self.failed == self.total:
            return ""
        return f", {describe_time_left(left)}"


def expect_seconds(work: float, timed: Sequence[tuple[float, float]]) -> float:
    """Return the seconds that a cell of so much work takes, from the work and seconds of others.

    The pace, seconds over work, is a mean over the others in which those of like size count most: a small cell takes
    longer for its work than a large one, because it also has to start. The weight of a cell of work w is
    (min(w, work) / max(w, work))^2.
    """
    weighted = [((min(w, work) / max(w, work, 1e-300)) ** 2, w, seconds) for w, seconds in timed]
    total = sum(weight for weight, _, _ in weighted)
    return work * sum(weight * seconds / max(w, 1e-300) for weight, w, seconds in weighted) / max(total, 1e-300)
