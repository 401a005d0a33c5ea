"""The leaderboard of a sweep: its cells ranked, its failures, and the files results.csv and results.json."""

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from llgae_cli.errors import InputError, printable
from llgae_cli.storage.atomic import write_text
from llgae_cli.storage.json_files import Count, Measure, Scalar, Text, read_json, validate
from llgae_cli.sweep.folder import SweepFolder
from llgae_cli.sweep.plan import Cell, Plan

RESULTS = "results.json"
MAX_BYTES = 50_000_000
MAX_KEYS = 12  # columns of keys where the file does not name the varied ones
HEADINGS = {
    "validation_mean_l2": "ranked by mean L2 on validation samples",
    "mean_l2": "ranked by test mean L2: no choice of a model (for that, set one `validation` share for all cells)",
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Leaderboard:
    """The cells of a sweep, ranked.

    name        of the sweep
    keys        the config's keys that differ between cells, in snake_case
    ranked_by   `validation_mean_l2`, or `mean_l2` of the test samples: see `Plan.ranked_by`
    rows        one per cell with a result, the lowest `ranked_by` first: `cell`, `status` (done, or stopped by
                halving), `checkpoint`, `mean_l2` (of the test samples), `train_mean_l2`, `validation_mean_l2` (all in
                squared grey levels per pixel), `epoch` (epochs done), `seconds`, `threads`, the fields of `rate.Rate`,
                and the config's keys in snake_case
    failed      one per failed cell: `cell`, `label`, `reason`, `last_line`, `log`
    missing     number of cells that have not run
    objectives  of a search: the columns that it minimises. Its rows have `trial`, the number, and `front`: whether no
                other finished row is as low in every objective and lower in one
    importance  of a search: the importance of each key for each objective, by the names of the search file
    """

    name: str
    keys: list[str]
    ranked_by: str
    rows: list[Row]
    failed: list[Row]
    missing: int = 0
    objectives: list[str] = field(default_factory=list)
    importance: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def collect(cls, plan: Plan, folder: SweepFolder) -> "Leaderboard":
        """Return the leaderboard of the results that are in the folder now."""
        rows, failed, missing = [], [], 0
        for number, cell in enumerate(plan.cells):
            row = _make_row(plan, folder, cell)
            failure = None if row and row["status"] == "done" else folder.read_failure(cell.id)
            if failure is not None:
                log = str(folder.cell_folder(cell.id) / "log.txt")
                failed.append({"cell": cell.id, "label": plan.label(cell), **failure, "log": log})
            elif row is not None:
                rows.append(row if plan.search is None else {"trial": number, **row})
            else:
                missing += 1
        by = plan.ranked_by
        rows.sort(key=lambda row: (row["status"] != "done", row[by], row["cell"]))
        objectives = [] if plan.search is None else plan.search.figures
        if objectives:
            _mark_front(rows, objectives)
        keys = [key.replace("-", "_") for key in plan.keys]
        return cls(plan.name, keys, by, rows, failed, missing, objectives)

    @property
    def heading(self) -> str:
        """What the ranking is by, and that a ranking by test samples may not be used to choose a model."""
        return HEADINGS[self.ranked_by]

    @property
    def done(self) -> list[Row]:
        """The rows of cells that trained to their end."""
        return [row for row in self.rows if row["status"] == "done"]

    @property
    def total(self) -> int:
        """The number of cells."""
        return len(self.rows) + len(self.failed) + self.missing

    def write(self, folder: Path) -> None:
        """Write results.csv and results.json into the folder, each as a whole."""
        text = io.StringIO()
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(folder / "results.csv", text.getvalue())
        document = {
            "sweep": self.name,
            "swept": self.keys,
            "ranked_by": "test_mean_l2" if self.ranked_by == "mean_l2" else self.ranked_by,
            "heading": self.heading,
            "rows": self.rows,
            "failed": self.failed,
            "missing": self.missing,
        }
        if self.objectives:
            document |= {"objectives": self.objectives, "importance": self.importance}
        write_text(folder / RESULTS, json.dumps(document, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Leaderboard":
        """Read results.json in the folder: what `write` wrote, or a bare list of rows, which is ranked here.

        A row needs no key; one without `mean_l2` is a failure. Raises InputError for anything else.
        """
        path = folder / RESULTS
        try:
            content = read_json(path, MAX_BYTES, "leaderboard")
        except FileNotFoundError:
            raise InputError(f"{printable(folder, 200)}: not a sweep's folder, it has no {RESULTS}") from None
        document = validate(_Document, {"rows": content} if isinstance(content, list) else content, path)
        rows = [{key.replace("-", "_"): value for key, value in row.model_dump().items()} for row in document.rows]
        done = [row for row in rows if row["mean_l2"] is not None]
        if document.ranked_by is None:
            done.sort(key=lambda row: row["mean_l2"])
        failed = [row for row in rows if row["mean_l2"] is None] + [one.model_dump() for one in document.failed]
        keys = document.swept or _find_differing(rows)
        by = "validation_mean_l2" if document.ranked_by == "validation_mean_l2" else "mean_l2"
        found = document.objectives, document.importance
        return cls(document.sweep, keys, by, done, failed, document.missing, *found)

    def find_checkpoints(self, folder: Path, n: int) -> list[Path]:
        """Return the checkpoints of the first n rows whose file exists, here or in the sweep's folder."""
        paths: list[Path] = []
        for row in self.rows:
            path = _find_file(folder, row.get("checkpoint"))
            if path is not None and path not in paths and len(paths) < n:
                paths.append(path)
        return paths


class _Row(BaseModel):
    """A row: checkpoint and mean L2, None where the run failed, and any plain values next to them."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow", populate_by_name=True)
    __pydantic_extra__: dict[str, Scalar] = Field(init=False)

    checkpoint: Text | None = None
    mean_l2: Measure | None = Field(None, validation_alias="mean-l2")


class _Failure(BaseModel):
    """A cell that failed."""

    model_config = ConfigDict(strict=True)

    cell: Text | None = None
    label: Text | None = None
    reason: Text | None = None
    last_line: Text | None = None
    log: Text | None = None


class _Document(BaseModel):
    """The content of results.json."""

    model_config = ConfigDict(strict=True)

    sweep: Text = ""
    swept: list[Text] = []
    ranked_by: Text | None = None
    rows: list[_Row]
    failed: list[_Failure] = []
    missing: Count = 0
    objectives: list[Text] = []
    importance: dict[Text, dict[Text, Measure]] = {}


def _make_row(plan: Plan, folder: SweepFolder, cell: Cell) -> Row | None:
    """Return the row of a cell: its final result, else that of the last rung it reached, else None.

    Of a search, only trials that have stopped at a rung have its figures: the others continue.
    """
    status, result = "done", folder.read_result(cell.id)
    if result is None:
        of_rungs = (folder.read_result(cell.id, rung) for rung in reversed(plan.rungs))
        last = next((reached for reached in of_rungs if reached is not None), None)
        status, result = "stopped", last if plan.search is None else folder.read_stopped(cell.id)
    if result is None:
        return None
    config = {key.replace("-", "_"): value for key, value in plan.settings(cell).items()}
    head = {"cell": cell.id, "status": status, **result}
    head["checkpoint"] = str(folder.cell_folder(cell.id) / result["checkpoint"])
    return {**head, **{key: value for key, value in config.items() if key not in head}}


def _mark_front(rows: list[Row], objectives: list[str]) -> None:
    """Write into each row whether it is on the Pareto front of the finished ones."""
    from llgae_cli.evaluation.rate import find_pareto_front  # torch takes a second to import

    done = [row for row in rows if row["status"] == "done"]
    points = [(float(row[objectives[0]]), float(row[objectives[-1]])) for row in done]
    front = set(find_pareto_front(points))
    for row in rows:
        row["front"] = False
    for i, row in enumerate(done):
        row["front"] = i in front


# Columns of rows whose file does not name the varied keys: these first, and those never.
SHOWN_FIRST = ("task", "model", "trainer", "K", "embed_dim", "beta", "n_step", "lr", "prior", "inference", "seed")
HIDDEN = frozenset({"checkpoint", "mean_l2", "config", "history", "error", "checkpoint_dir", "data_dir", "id", "cell"})


def _find_differing(rows: list[Row]) -> list[str]:
    keys = [
        key
        for key in dict.fromkeys(key for row in rows for key in row)
        if key not in HIDDEN and len({json.dumps(row.get(key)) for row in rows}) > 1
    ]
    first = [key for key in SHOWN_FIRST if key in keys]
    return first + [key for key in keys if key not in first][: MAX_KEYS - len(first)]


def _find_file(folder: Path, checkpoint: Any) -> Path | None:
    if not isinstance(checkpoint, str) or not checkpoint or "\0" in checkpoint:
        return None
    name = Path(checkpoint).name
    for path in (Path(checkpoint), folder / checkpoint, folder / name, folder / "checkpoints" / name):
        if path.is_file():
            return path
    return next(iter(sorted(folder.rglob(name))), None) if not set(name) & set("*?[") else None
