"""A sweep from its plan to its leaderboard."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from llgae_cli.errors import InputError, Interrupted
from llgae_cli.sweep.folder import SweepFolder, begin_save_every, last_line, result_name
from llgae_cli.sweep.leaderboard import Board
from llgae_cli.sweep.plan import Cell, Plan
from llgae_cli.sweep.process import Share, reason


@dataclass(frozen=True)
class State:
    """How a sweep stands. `seconds_left` is None while nothing is known.

    `lowest` is (mean L2, label) of the cells done so far, by the figure `ranked_by` (see `Plan.ranked_by`).
    """

    total: int
    done: int
    failed: int
    running: dict[str, str]  # label -> last line of its log
    lowest: tuple[float, str] | None
    ranked_by: str
    seconds_left: float | None


class Watcher(Protocol):
    """Whom a sweep tells how it goes."""

    def note(self, message: str) -> None:
        """Something worth a line."""

    def finished(self, label: str, result: dict[str, Any], state: State) -> None:
        """A cell is done."""

    def failed(self, label: str, failure: dict[str, Any], state: State) -> None:
        """A cell failed."""

    def tick(self, state: State) -> None:
        """Called several times a second."""


class Engine(Protocol):
    """Runs cells side by side, each a process of its own. `share`: what each may use; `width`: how many at once."""

    share: Share
    width: int

    def run(self, folder: SweepFolder, cells: Sequence[Cell], until: int | None, ledger: "Ledger") -> None:
        """Run all cells, telling the ledger. On any exception all processes are stopped before it leaves."""

    def close(self) -> None:
        """Let go of what was started."""


@dataclass
class Ledger:
    """Who is running, who is done: kept for one stage of a sweep, told by the engine."""

    plan: Plan
    folder: SweepFolder
    watcher: Watcher
    width: int
    until: int | None
    waiting: dict[str, Cell]
    done: int = 0
    failed: int = 0
    lowest: tuple[float, str] | None = None
    running: dict[str, Cell] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)
    timed: list[tuple[float, float]] = field(default_factory=list)  # work and seconds of the cells done
    total: int = 0

    def begun(self, cell: Cell) -> None:
        """The engine has started the cell."""
        self.waiting.pop(cell.id, None)
        self.running[cell.id] = cell
        self.started[cell.id] = time.monotonic()

    def ended(self, cell: Cell, what: int | str) -> None:
        """The cell's process has ended with this exit status (or, of a lost worker, this story)."""
        self.waiting.pop(cell.id, None)
        self.running.pop(cell.id, None)
        seconds = time.monotonic() - self.started.get(cell.id, time.monotonic())
        result = self.folder.result(cell.id, self.until)
        label = self.plan.label(cell)
        if result is not None:
            self.done += 1
            self.timed.append((cell.work, seconds))
            self.compare(cell, result)
            self.watcher.finished(label, result, self.state())
        else:
            self.failed += 1
            failure = self.folder.fail(cell.id, what if isinstance(what, str) else reason(what))
            self.watcher.failed(label, failure, self.state())

    def compare(self, cell: Cell, result: dict[str, Any]) -> None:
        """Keep the lowest so far, by the one figure that ranks all cells."""
        value = result[self.plan.ranked_by]
        if self.lowest is None or value < self.lowest[0]:
            self.lowest = (value, self.plan.label(cell))

    def tick(self) -> None:
        """The engine is alive."""
        self.watcher.tick(self.state())

    def state(self) -> State:
        """How it stands now."""
        running = {
            self.plan.label(cell): last_line(self.folder.cell(id) / "log.txt") for id, cell in self.running.items()
        }
        by = self.plan.ranked_by
        return State(self.total, self.done, self.failed, running, self.lowest, by, self.seconds_left())

    def seconds_left(self) -> float | None:
        """Taken as rate * work for each cell, the rate from those done; what runs has its elapsed time behind it."""
        work = sum(w for w, _ in self.timed)
        if not work:
            return None
        rate = sum(s for _, s in self.timed) / work
        now = time.monotonic()
        ahead = sum(rate * cell.work for cell in self.waiting.values())
        ahead += sum(max(0.0, rate * cell.work - (now - self.started[id])) for id, cell in self.running.items())
        return ahead / self.width


def run_sweep(
    plan: Plan,
    folder: SweepFolder,
    engine: Engine,
    watcher: Watcher,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    check: Callable[[Plan], None] | None = None,
) -> Board:
    """Run every cell that has no result yet, write the leaderboard and the pictures.

    `check` may refuse the plan (InputError) before any cell starts. Raises InputError where the folder holds cells
    and neither `resume` nor `retry_failed` is set, or another sweep is at work there. A failed cell is in the board.
    """
    with folder.locked(), contextlib.closing(engine):
        held = folder.holds()
        if held and not (resume or retry_failed):
            done = sum(folder.result(cell.id) is not None for cell in plan.cells)
            raise InputError(
                f"{folder.path}: holds {held} cells already, {done} of this sweep's {len(plan.cells)} are done; "
                "go on with --resume, or choose another folder with --out"
            )
        check_results(plan, folder)
        if check is not None and any(folder.result(cell.id) is None for cell in plan.cells):
            check(plan)
        for cell in plan.cells:
            if retry_failed:
                folder.forgive(cell.id)
            if folder.result(cell.id) is None:
                folder.prepare(cell, cell.config.threads or engine.share.threads, begin_save_every(cell.config))
        try:
            alive = list(plan.cells)
            for rung in plan.halving.rungs if plan.halving else ():
                alive = judged(plan, folder, engine, watcher, alive, rung)
            stage(plan, folder, engine, watcher, alive, None)
        except Interrupted:
            Board.read(plan, folder).write(folder)
            raise
        board = Board.read(plan, folder)
        board.write(folder)
        return board


def check_results(plan: Plan, folder: SweepFolder) -> None:
    """Raise InputError for a result or failure that is not as a cell leaves it, before any cell starts."""
    for cell in plan.cells:
        folder.failure(cell.id)
        for until in (None, *(plan.halving.rungs if plan.halving else ())):
            result = folder.result(cell.id, until)
            if result is not None and cell.config.validation and result["validation_mean_l2"] is None:
                raise InputError(
                    f"{folder.cell(cell.id) / result_name(until)}: validation_mean_l2: is null, and the cell holds out "
                    "a validation split; remove it to run this cell again"
                )


def judged(
    plan: Plan, folder: SweepFolder, engine: Engine, watcher: Watcher, cells: Sequence[Cell], rung: int
) -> list[Cell]:
    """Train the cells to `rung` epochs and return those that go on; decided anew, and alike, after every resumption."""
    assert plan.halving is not None
    stage(plan, folder, engine, watcher, cells, rung)
    results = {cell.id: folder.result(cell.id, rung) for cell in cells}
    validation = {id: float(result["validation_mean_l2"]) for id, result in results.items() if result is not None}
    kept = set(plan.halving.survivors(validation))
    watcher.note(f"after {rung} epochs: {len(kept)} of {len(cells)} cells go on, by mean L2 on validation samples")
    return [cell for cell in cells if cell.id in kept]


def stage(
    plan: Plan, folder: SweepFolder, engine: Engine, watcher: Watcher, cells: Sequence[Cell], until: int | None
) -> None:
    """Run those of the cells that have no result (after `until` epochs) and have not failed, the largest first.

    The largest first, so that at the end no single large cell keeps one worker busy while the others idle.
    """
    todo: list[Cell] = []
    ledger = Ledger(plan, folder, watcher, engine.width, until, {}, total=len(cells))
    for cell in cells:
        result = folder.result(cell.id, until)
        if result is not None:
            ledger.done += 1
            ledger.compare(cell, result)
        elif folder.failure(cell.id) is not None:
            ledger.failed += 1
        else:
            todo.append(cell)
    todo.sort(key=lambda cell: -cell.work)
    ledger.waiting = {cell.id: cell for cell in todo}
    if todo:
        before = f", {ledger.done} done before" if ledger.done else ""
        failed = f", {ledger.failed} failed before (--retry-failed runs them again)" if ledger.failed else ""
        watcher.note(
            f"{len(todo)} cells to run{before}{failed}; {engine.width} at a time, "
            f"{engine.share.threads} thread{'s' * (engine.share.threads > 1)} each"
        )
        engine.run(folder, todo, until, ledger)
