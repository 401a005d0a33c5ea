"""Run a sweep, from its plan to its leaderboard."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from llgae_cli.config import join_faults
from llgae_cli.errors import InputError, Interrupted
from llgae_cli.sweep.folder import SweepFolder, result_name
from llgae_cli.sweep.leaderboard import Leaderboard
from llgae_cli.sweep.plan import MAX_SHOWN, Cell, Plan
from llgae_cli.sweep.process import Share
from llgae_cli.sweep.progress import SweepProgress
from llgae_cli.sweep.study import Study
from llgae_cli.sweep.trials import SearchProgress

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """Runs cells, each in a process of its own. `share`: what each may use; `jobs`: how many run at a time."""

    share: Share
    jobs: int

    def run(self, progress: SweepProgress) -> None:
        """Run all waiting cells and update the progress. On any exception all processes are stopped first."""

    def close(self) -> None:
        """Release what the engine started."""


def run_sweep(
    plan: Plan,
    folder: SweepFolder,
    engine: Engine,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    draw: Callable[[SweepProgress], None] = lambda progress: None,
) -> Leaderboard:
    """Run every cell that has no result yet, write the leaderboard and return it. It lists failed cells too.

    Of a search, run the trials without a result, then propose and run further ones until its budget is spent.
    `draw` is called with the progress several times a second. Raises InputError, before any cell starts, where the
    folder holds cells and neither `resume` nor `retry_failed` is set, where another sweep is running in it, and for
    data that cannot be loaded or do not fit a cell.
    """
    with folder.lock(), contextlib.closing(engine):
        study = None if plan.search is None else Study(plan, folder.path)
        if study is not None:
            plan = replace(plan, cells=tuple(study.list_cells()))
        existing = folder.count_cells()
        if existing and not (resume or retry_failed):
            done = sum(folder.read_end(cell.id) is not None for cell in plan.cells)
            total = plan.total or len(plan.cells)
            raise InputError(
                f"{folder.path}: holds {existing} cells already, {done} of this sweep's {total} are done; "
                "continue with --resume, or choose another folder with --out"
            )
        check_results(plan, folder)
        if study is not None:
            check_data(replace(plan, cells=tuple(plan.list_corners())))
        elif any(folder.read_result(cell.id) is None for cell in plan.cells):
            check_data(plan)
        for cell in plan.cells:
            if retry_failed:
                folder.remove_failure(cell.id)
            if folder.read_end(cell.id) is None:
                folder.prepare(cell, engine.share.threads)
        try:
            if study is None:
                run_grid(plan, folder, engine, draw)
            else:
                run_cells(engine, SearchProgress(plan, folder, study, engine.share.threads, engine.jobs, draw))
        except Interrupted:
            collect(plan, folder, study).write(folder.path)
            raise
        leaderboard = collect(plan, folder, study)
        leaderboard.write(folder.path)
        return leaderboard


def run_grid(plan: Plan, folder: SweepFolder, engine: Engine, draw: Callable[[SweepProgress], None]) -> None:
    """Run the cells of a plan: to each rung, and those that continue after the last one to their end."""
    cells = list(plan.cells)
    for rung in plan.rungs:
        run_cells(engine, SweepProgress(plan, folder, cells, rung, engine.jobs, draw))
        cells = select_cells(plan, folder, cells, rung)
    run_cells(engine, SweepProgress(plan, folder, cells, None, engine.jobs, draw))


def collect(plan: Plan, folder: SweepFolder, study: Study | None) -> Leaderboard:
    """Return the leaderboard: of a search, with all its trials and the importance of its keys."""
    if study is None:
        return Leaderboard.collect(plan, folder)
    cells = study.list_cells()
    results = [folder.read_result(cell.id) for cell in cells]
    leaderboard = Leaderboard.collect(replace(plan, cells=tuple(cells)), folder)
    return replace(leaderboard, importance=study.measure_importance(results))


def check_results(plan: Plan, folder: SweepFolder) -> None:
    """Raise InputError for a file of a result or a failure that no cell has written like this."""
    for cell in plan.cells:
        folder.read_failure(cell.id)
        folder.read_stopped(cell.id)
        for until in (None, *plan.rungs):
            result = folder.read_result(cell.id, until)
            if result is not None and cell.config.validation and result["validation_mean_l2"] is None:
                raise InputError(
                    f"{folder.cell_folder(cell.id) / result_name(until)}: validation_mean_l2: is null, but the cell "
                    "holds out a validation split; remove the file to run this cell again"
                )


def check_data(plan: Plan) -> None:
    """Load every task of the plan once, so that a download happens once.

    Raises InputError for a task that cannot be loaded, and for K, embed-dim or validation that do not fit the data.
    """
    from llgae_cli.factory import check_fit, describe_loading  # torch takes a second to import
    from llgae_cli.tasks import load_task

    shapes: dict[tuple[object, ...], tuple[int, int]] = {}
    errors = []
    for cell in plan.cells:
        config = cell.config
        how = describe_loading(config)
        key = (config.task, str(config.data_dir), *how.values())
        if key not in shapes:
            train = load_task(config.task, config.data_dir, **how).train
            shapes[key] = train.N, train.D
        try:
            check_fit(config, *shapes[key])
        except InputError as error:
            errors.append(f"cell {plan.label(cell)}: {error}")
    if errors:
        raise InputError(join_faults(errors, MAX_SHOWN))


def run_cells(engine: Engine, progress: SweepProgress) -> None:
    """Run the cells that have no result (after `progress.until` epochs) and have not failed."""
    if progress.waiting:
        done = f", {progress.done} done before" if progress.done else ""
        failed = f", {progress.failed} failed before (--retry-failed runs them again)" if progress.failed else ""
        threads = f"{engine.share.threads} thread{'s' * (engine.share.threads > 1)} each"
        logger.info("%d cells to run%s%s; %d at a time, %s", len(progress.waiting), done, failed, engine.jobs, threads)
        engine.run(progress)


def select_cells(plan: Plan, folder: SweepFolder, cells: Sequence[Cell], rung: int) -> list[Cell]:
    """Return the cells that continue after `rung` epochs. Computed from their results, so a resumed sweep agrees."""
    assert plan.halving is not None
    results = {cell.id: folder.read_result(cell.id, rung) for cell in cells}
    validation = {id: float(result["validation_mean_l2"]) for id, result in results.items() if result is not None}
    selected = set(plan.halving.select(validation))
    logger.info("after %d epochs: %d of %d cells continue, by validation mean L2", rung, len(selected), len(cells))
    return [cell for cell in cells if cell.id in selected]
