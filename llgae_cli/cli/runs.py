"""`llgae runs`."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from llgae_cli.cli.console import RESULTS, print_json, print_lines, print_table
from llgae_cli.cli.options import Json
from llgae_cli.errors import printable
from llgae_cli.formatting import five_digits
from llgae_cli.storage import count_others, export_runs, filter_rows, list_runs, rank_rows, shorten_ids, sort_rows

# Headers of the table and the keys of `storage.list_runs` behind them.
COLUMNS = {
    "id": "config_id", "task": "task", "model": "model", "trainer": "trainer", "seed": "seed", "K": "K",
    "E": "embed_dim", "mean L2": "mean_l2", "epochs": "epoch", "saved": "saved", "state": "state",
}  # fmt: skip
IF_WIDE = ("trainer", "seed")  # columns that are shown where all fits
CUT, SHORTEST = ("task", "model"), 5  # columns whose cells may be cut, to so many characters
GAP = 2  # characters between columns
DAYS = 60  # an older checkpoint has its date


def runs(
    folder: Annotated[Path, typer.Argument(help="A folder of checkpoints.", metavar="DIR")] = Path("checkpoints"),
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where", "-w", help="Show only matching rows: K=11, mean_l2<800, ...; repeatable.", metavar="TEST"
        ),
    ] = None,
    sort: Annotated[
        str | None, typer.Option(help="Column to sort by.", show_default="mean_l2, each task by itself")
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="Largest first.")] = False,
    paths: Annotated[bool, typer.Option("--paths", help="Print the paths of the files, one a line.")] = False,
    export: Annotated[
        str | None, typer.Option(help="Write the table to a file: csv or parquet.", metavar="KIND")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File of --export.", metavar="FILE", show_default="runs.KIND")
    ] = None,
    json: Json = False,
) -> None:
    """Run `llgae runs`; `app` has its help."""
    rows = filter_rows(list_runs(folder), where or [])
    rows = rank_rows(rows, reverse) if sort is None else sort_rows(rows, sort, reverse)
    if export is not None:
        path = output or Path(f"runs.{export}")
        export_runs(rows, export, path)
        if not json:
            print_lines(f"{len(rows)} rows in {path}")
            return
    if json:
        print_json(rows)
        return
    if paths:
        print_lines(*(row["checkpoint"] for row in rows))
        return
    if not rows:
        print_lines(f"no checkpoints in {folder}" + (" that match" if where else ""))
        return
    if RESULTS.is_terminal:
        print_table(*make_table(rows, RESULTS.width, datetime.now(UTC), by_task=sort is None))
    else:
        print_table(list(COLUMNS), [[str(row[key]) for key in COLUMNS.values()] for row in rows])
    others = count_others(folder)
    if others:
        print_lines(f"{others} other files are no checkpoints")


def make_table(
    rows: Sequence[dict[str, Any]], width: int, now: datetime, by_task: bool
) -> tuple[list[str], list[list[str]]]:
    """Return headers and cells of a table of `width` characters, one line a row; `by_task`: a gap between tasks.

    Where all would not fit, the columns IF_WIDE are left out, and then the cells of the columns CUT are cut.
    """
    ids = shorten_ids([row["config_id"] for row in rows])
    columns = {header: [_show(header, row, ids, now) for row in rows] for header in COLUMNS}
    if not any(columns["state"]):
        del columns["state"]
    widths = {header: max(map(len, [header, *cells])) for header, cells in columns.items()}

    def too_wide() -> int:
        return sum(widths.values()) + GAP * (len(widths) - 1) - width

    if too_wide() > 0:
        for header in IF_WIDE:
            del columns[header], widths[header]
    while too_wide() > 0 and max(widths[header] for header in CUT) > SHORTEST:
        widths[max(CUT, key=lambda header: widths[header])] -= 1
    table = [[printable(columns[header][i], widths[header]) for header in columns] for i in range(len(rows))]
    if by_task:
        for i in range(len(rows) - 1, 0, -1):
            if rows[i]["task"] != rows[i - 1]["task"]:
                table.insert(i, [""] * len(columns))
    return list(columns), table


def _show(header: str, row: dict[str, Any], ids: dict[str, str], now: datetime) -> str:
    value = row[COLUMNS[header]]
    if header == "id":
        return ids[value] or "-"
    if header == "mean L2":
        return five_digits(value)
    if header == "saved":
        return describe_age(value, now)
    return "" if value == "finished" else str(value)


def describe_age(saved: str, now: datetime) -> str:
    """Return how long before `now` a time was, as in `5 min ago`; the date of one longer than DAYS days ago."""
    if not saved:
        return "-"
    seconds = (now - datetime.fromisoformat(saved)).total_seconds()
    if seconds >= DAYS * 86400 or seconds < -60:  # or a clock that is wrong
        return saved[:10]
    for unit, size, limit in (("s", 1, 60), ("min", 60, 60), ("h", 3600, 48), ("d", 86400, math.inf)):
        if seconds < size * limit:
            return f"{max(0, int(seconds // size))} {unit} ago"
    return saved[:10]
