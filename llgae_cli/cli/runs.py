"""`llgae runs`."""

from pathlib import Path
from typing import Annotated

import typer

from llgae_cli.cli.console import print_json, print_lines, print_table
from llgae_cli.cli.options import Json
from llgae_cli.storage import count_others, filter_rows, list_runs, sort_rows

COLUMNS = ["mean_l2", "task", "model", "K", "embed_dim", "trainer", "epoch", "seed", "config_id", "checkpoint"]


def runs(
    folder: Annotated[Path, typer.Argument(help="A folder of checkpoints.", metavar="DIR")] = Path("checkpoints"),
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where", "-w", help="Show only matching rows: K=11, mean_l2<800, ...; repeatable.", metavar="TEST"
        ),
    ] = None,
    sort: Annotated[str, typer.Option(help="Column to sort by.")] = "mean_l2",
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="Largest first.")] = False,
    json: Json = False,
) -> None:
    """Run `llgae runs`; `app` has its help."""
    rows = sort_rows(filter_rows(list_runs(folder), where or []), sort, reverse)
    if json:
        print_json(rows)
        return
    if not rows:
        print_lines(f"no checkpoints in {folder}" + (" that match" if where else ""))
        return
    print_table(COLUMNS, [[str(row[column]) for column in COLUMNS] for row in rows])
    others = count_others(folder)
    if others:
        print_lines(f"{others} other files are no checkpoints")
