"""`llgae sweep`, and the hidden `llgae sweep-cell` that one cell's process runs."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llgae_cli.cli.console import TrainingBar, print_json, say, table
from llgae_cli.cli.options import Json, Overrides, Quiet
from llgae_cli.errors import InputError, printable
from llgae_cli.formatting import five_digits

if TYPE_CHECKING:
    from llgae_cli.sweep import Board, Plan

SHOWN_ROWS = 20


class EngineName(StrEnum):
    """Where cells run."""

    local = "local"
    ray = "ray"


def sweep(
    config: Annotated[Path, typer.Option("--config", "-c", help="The sweep file.", metavar="FILE")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the sweep.", metavar="DIR", show_default="sweeps/NAME")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Cells at a time.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on; finished cells stay as they are.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="As --resume, failed cells again too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells and stop.")] = False,
    engine: Annotated[EngineName, typer.Option(help="Processes of this machine, or tasks of a Ray cluster.")] = (
        EngineName.local
    ),
    address: Annotated[str | None, typer.Option(help="Ray: the cluster's address; none starts one here.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of a cell.", show_default="cores / jobs; with Ray 1")
    ] = None,
    gpus: Annotated[float, typer.Option(min=0, help="Ray: GPUs of a cell, may be a fraction.")] = 0.0,
    memory: Annotated[float | None, typer.Option(min=0.1, help="GiB that a cell may use.", metavar="GIB")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run `llgae sweep`; `app` has its help."""
    from llgae_cli.sweep import SweepFolder, read_plan, run_sweep

    plan = read_plan(config, overrides or [])
    if dry_run:
        _list_cells(plan, json)
        return
    from llgae_cli.cli.sweep_progress import Watching
    from llgae_cli.sweep.data import check_data
    from llgae_cli.sweep.process import Share, fair_threads

    if engine is EngineName.local:
        if address or gpus:
            raise InputError("--address and --gpus are for --engine ray")
        from llgae_cli.sweep.local_engine import Local

        chosen: Any = Local(jobs, Share(threads or fair_threads(jobs), memory))
    else:
        from llgae_cli.sweep.ray_engine import Cluster

        chosen = Cluster(address, jobs, Share(threads or 1, memory, gpus))
    folder = SweepFolder(out or Path("sweeps") / plan.name)
    with Watching(quiet) as watching:
        board = run_sweep(plan, folder, chosen, watching, resume=resume, retry_failed=retry_failed, check=check_data)
        pictures = _pictures(board, folder.path, watching.note)
    if json:
        print_json(board.rows)
    else:
        show(board)
        say("", f"tables      {folder.path / 'results.csv'}, results.json")
        for path in pictures:
            say(f"picture     {path}")
    for failure in board.failed:
        watching.complain(f"{failure['label']}: {failure['reason']}: {failure['last_line']} ({failure['log']})")
    if board.failed:
        watching.complain(f"{len(board.failed)} of {len(plan.cells)} cells failed; --retry-failed runs them again")
        raise typer.Exit(1)


def sweep_cell(
    folder: Annotated[Path, typer.Argument(help="The cell's folder.")],
    until: Annotated[int | None, typer.Option(help="Epochs after which to stop for now.")] = None,
    memory: Annotated[float | None, typer.Option(help="GiB that this process may use.")] = None,
    keep_all: Annotated[bool, typer.Option("--keep-all", help="Keep superseded checkpoints.")] = False,
) -> None:
    """Run `llgae sweep-cell`; `app` has its help."""
    from llgae_cli.sweep.process import follow_parent, limit_memory

    follow_parent()
    limit_memory(memory)
    from llgae_cli.sweep.cell import run_cell

    with TrainingBar() as bar:
        run_cell(folder, until, keep_all, bar.show_epoch)


def show(board: "Board") -> None:
    """The leaderboard on stdout; where cells are ranked by validation, test is shown for the best cell alone."""
    chosen = board.ranked_by == "validation_mean_l2"
    keys = [key.replace("-", "_") for key in board.plan.keys]
    figures = ["validation_mean_l2" if chosen else "mean_l2", "train_mean_l2", "bits_coded", "epoch", "seconds"]
    headers = ["rank", *keys, *figures, "cell"]
    rows = []
    for i, row in enumerate(board.rows[:SHOWN_ROWS]):
        rank = str(i + 1) if row["status"] == "done" else "stopped"
        rows.append([rank, *(str(row[key]) for key in keys), *(_number(row.get(key)) for key in figures), row["cell"]])
    say(board.heading)
    table(headers, rows)
    if len(board.rows) > SHOWN_ROWS:
        say(f"... and {len(board.rows) - SHOWN_ROWS} more rows in results.csv")
    if board.plan.duplicates:
        say(f"{board.plan.duplicates} cells of the file came out the same as another and ran once")
    if not board.done:
        return
    first = board.done[0]
    label = " ".join(f"{key}={first[key.replace('-', '_')]}" for key in board.plan.keys) or first["cell"]
    if chosen:
        say(
            "",
            f"best        {label}, chosen on validation samples",
            f"validation  {five_digits(first['validation_mean_l2'])}",
        )
    else:
        say("", f"first       {label}, by test mean L2: no choice of a model")
    say(f"mean L2     {five_digits(first['mean_l2'])} on test, {five_digits(first['train_mean_l2'])} on train")
    say(f"checkpoint  {first['checkpoint']}")


def _number(value: float | int | None) -> str:
    return "" if value is None else five_digits(value) if isinstance(value, float) else str(value)


def _list_cells(plan: "Plan", json: bool) -> None:
    rows = [
        {"cell": cell.id, **{key.replace("-", "_"): value for key, value in plan.settings(cell).items()}}
        for cell in plan.cells
    ]
    if json:
        print_json(rows)
        return
    keys = [key.replace("-", "_") for key in plan.keys]
    table(["cell", *keys], [[row["cell"], *(printable(row[key]) for key in keys)] for row in rows])
    say(f"{len(rows)} cells" + (f", {plan.duplicates} duplicates left out" if plan.duplicates else ""))


def _pictures(board: "Board", folder: Path, note: Callable[[str], None]) -> list[Path]:
    if not board.done:
        return []
    note("drawing")
    from llgae_cli.figures import write_sweep

    return write_sweep(board.done, board.plan.keys, board.ranked_by, folder / "figures")
