"""`llgae sweep`, and the hidden `llgae sweep-cell` that the process of one cell runs."""

import logging
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llgae_cli.cli.console import RESULTS, print_error, print_json, print_lines, print_table, set_up_logging
from llgae_cli.cli.options import Json, Overrides, Quiet
from llgae_cli.cli.training_progress import TrainingProgress
from llgae_cli.errors import InputError, printable
from llgae_cli.formatting import five_digits

if TYPE_CHECKING:
    from llgae_cli.sweep import Engine, Leaderboard, Plan

logger = logging.getLogger(__name__)

MAX_ROWS = 20  # of the leaderboard on stdout
SHORT = {  # heads of its columns on a terminal; in a pipe they are the names in results.csv
    "validation_mean_l2": "validation",
    "mean_l2": "test",
    "train_mean_l2": "train",
    "bits_coded": "bits",
    "validation_bits_coded": "bits",
}


class EngineName(StrEnum):
    """What runs the cells."""

    local = "local"
    ray = "ray"


def sweep(
    config: Annotated[
        Path, typer.Option("--config", "-c", help="The sweep file (YAML), or a shipped one by name.", metavar="FILE")
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Results folder.", metavar="DIR", show_default="sweeps/NAME")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", "-j", min=1, help="Number of cells that run at a time.", show_default="one a GPU or core, to 8"
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue: run the cells without a result.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Like --resume, and rerun failures.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells and stop.")] = False,
    engine: Annotated[EngineName, typer.Option(help="Processes of this machine, or tasks of a Ray cluster.")] = (
        EngineName.local
    ),
    address: Annotated[str | None, typer.Option(help="Ray: address of a cluster; none starts one here.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of each cell.", show_default="cores / jobs; 1 with Ray")
    ] = None,
    gpus: Annotated[float, typer.Option(min=0, help="Ray: GPUs of each cell, which may be a fraction.")] = 0.0,
    memory: Annotated[float | None, typer.Option(min=0.1, help="Memory limit of each cell.", metavar="GIB")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run `llgae sweep`; `app` has its help."""
    set_up_logging(quiet)
    from llgae_cli.sweep import SweepFolder, read_plan, run_sweep

    plan = read_plan(config, overrides or [])
    if dry_run and plan.search is not None:
        raise InputError(f"{printable(config, 300)}: --dry-run: the cells of a search are chosen while it runs")
    if dry_run:
        list_cells(plan, json)
        return
    from llgae_cli.cli.sweep_progress import LiveTable

    folder = SweepFolder(out or Path("sweeps") / plan.name)
    runner = make_engine(plan, engine, jobs, threads, memory, address, gpus)
    with LiveTable() as live:
        leaderboard = run_sweep(plan, folder, runner, resume=resume, retry_failed=retry_failed, draw=live.draw)
        pictures = draw_figures(leaderboard, folder.path)
    if json:
        print_json(leaderboard.rows)
    else:
        show(leaderboard, plan.duplicates)
        print_lines("", f"tables      {folder.path / 'results.csv'}, results.json")
        print_lines(*(f"picture     {path}" for path in pictures))
    for failure in leaderboard.failed:
        print_error(f"{failure['label']}: {failure['reason']}: {failure['last_line']} ({failure['log']})")
    if leaderboard.failed:
        print_error(f"{len(leaderboard.failed)} of {leaderboard.total} cells failed; --retry-failed runs them again")
        raise typer.Exit(1)


def sweep_cell(
    folder: Annotated[Path, typer.Argument(help="Folder of the cell.")],
    until: Annotated[int | None, typer.Option(help="Stop after this many epochs.")] = None,
    memory: Annotated[float | None, typer.Option(help="Memory limit of this process in GiB.")] = None,
    keep_all: Annotated[bool, typer.Option("--keep-all", help="Keep superseded checkpoints.")] = False,
) -> None:
    """Run `llgae sweep-cell`; `app` has its help."""
    from llgae_cli.sweep.process import follow_parent, limit_memory

    follow_parent()
    limit_memory(memory)
    from llgae_cli.sweep.cell import run_cell

    with TrainingProgress() as progress:
        run_cell(folder, until, keep_all, progress.show_epoch, progress.show)


def make_engine(
    plan: "Plan",
    engine: EngineName,
    jobs: int | None,
    threads: int | None,
    memory: float | None,
    address: str | None,
    gpus: float,
) -> "Engine":
    """Return the engine that runs the cells; InputError for options that it does not have."""
    from llgae_cli.sweep.process import Share, choose_jobs, choose_threads, list_gpus

    found = list_gpus() if engine is EngineName.local and plan.may_use_gpu else []
    if jobs is None:
        jobs = choose_jobs(len(found), threads, plan.total or len(plan.cells) or MAX_ROWS)
    if engine is EngineName.ray:
        from llgae_cli.sweep.ray_engine import RayEngine

        return RayEngine(address, jobs, Share(threads or 1, memory, gpus))
    if address or gpus:
        raise InputError("--address and --gpus need --engine ray")
    from llgae_cli.sweep.local_engine import LocalEngine

    return LocalEngine(jobs, Share(threads or choose_threads(jobs), memory), found)


def show(leaderboard: "Leaderboard", duplicates: int = 0) -> None:
    """Print the leaderboard on stdout.

    Where cells are ranked by validation samples, the figure on test samples is printed only for the best cell.
    """
    by_validation = leaderboard.ranked_by == "validation_mean_l2"
    keys = [*(["trial"] if leaderboard.objectives else []), *leaderboard.keys]
    bits = "validation_bits_coded" if leaderboard.objectives else "bits_coded"
    figures = [leaderboard.ranked_by, "train_mean_l2", bits, "epoch", "seconds"]
    two, rows = len(leaderboard.objectives) > 1, []
    for i, row in enumerate(leaderboard.rows[:MAX_ROWS]):
        rank = str(i + 1) if row["status"] == "done" else "stopped"
        rank += " *" if two and row["front"] else ""
        rows.append([rank, *(str(row[key]) for key in keys), *(_number(row.get(key)) for key in figures), row["cell"]])
    print_lines(leaderboard.heading)
    heads = [SHORT.get(name, name) for name in figures] if RESULTS.is_terminal else figures
    print_table(["rank", *keys, *heads, "cell"], rows)
    if len(leaderboard.rows) > MAX_ROWS:
        print_lines(f"... and {len(leaderboard.rows) - MAX_ROWS} more rows in results.csv")
    if duplicates:
        print_lines(f"{duplicates} duplicate cells of the file were left out")
    if not leaderboard.done:
        return
    if two:
        front = sum(row["front"] for row in leaderboard.done)
        names = " and ".join(leaderboard.objectives)
        print_lines(f"* on the front: {front} of {len(leaderboard.done)} trials, by {names}")
    first = leaderboard.done[0]
    label = " ".join(f"{key.replace('_', '-')}={first[key]}" for key in keys) or first["cell"]
    if by_validation:
        value = five_digits(first["validation_mean_l2"])
        print_lines("", f"best        {label}, chosen on validation samples", f"validation  {value}")
    else:
        print_lines("", f"first       {label}, by test mean L2: no choice of a model")
    from llgae_cli.figures.units import error_unit_of_tasks

    print_lines(f"mean L2     {five_digits(first['mean_l2'])} on test, {five_digits(first['train_mean_l2'])} on train")
    print_lines(f"unit        {error_unit_of_tasks(str(row['task']) for row in leaderboard.done)}")
    print_lines(f"checkpoint  {first['checkpoint']}")


def list_cells(plan: "Plan", json: bool) -> None:
    """Print the cells of a plan on stdout: their configs as JSON, or a table of the varied keys."""
    rows = [
        {"cell": cell.id, **{key.replace("-", "_"): value for key, value in plan.settings(cell).items()}}
        for cell in plan.cells
    ]
    if json:
        print_json(rows)
        return
    keys = [key.replace("-", "_") for key in plan.keys]
    print_table(["cell", *keys], [[row["cell"], *(printable(row[key]) for key in keys)] for row in rows])
    print_lines(f"{len(rows)} cells" + (f", {plan.duplicates} duplicates left out" if plan.duplicates else ""))


def draw_figures(leaderboard: "Leaderboard", folder: Path) -> list[Path]:
    """Draw the figures of the cells that are done, into the sweep's folder."""
    if not leaderboard.done:
        return []
    logger.info("drawing figures")
    from llgae_cli.figures import write_sweep

    board = leaderboard
    return write_sweep(board.done, board.keys, board.ranked_by, folder / "figures", board.objectives, board.importance)


def _number(value: float | int | None) -> str:
    return "" if value is None else five_digits(value) if isinstance(value, float) else str(value)
