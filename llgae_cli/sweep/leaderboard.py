"""What a sweep has learnt: its rows, ranked; its failures; `results.csv` and `results.json`."""

import csv
import io
import json
from dataclasses import dataclass
from typing import Any

from llgae_cli.sweep.folder import SweepFolder, write_whole
from llgae_cli.sweep.plan import Cell, Plan

Row = dict[str, Any]

HEADINGS = {
    "validation_mean_l2": "ranked by mean L2 on validation samples",
    "mean_l2": "ranked by test mean L2: no choice of a model (for that, set one `validation` share for all cells)",
}


@dataclass(frozen=True)
class Board:
    """The leaderboard.

    rows        one per cell with a result, the lowest `ranked_by` first: `cell`, `status` (done, or stopped by
                halving), `checkpoint`, `mean_l2` (of the test samples), `train_mean_l2`, `validation_mean_l2` (all in
                squared grey levels per pixel), `epoch` (epochs done), `seconds`, `threads`, the fields of `rate.Rate`,
                and the config's keys in snake_case
    ranked_by   `validation_mean_l2`, or `mean_l2` of the test samples: see `Plan.ranked_by`
    failed      `cell`, `label`, `reason`, `last_line`, `log`
    missing     cells that have not run
    """

    plan: Plan
    rows: list[Row]
    ranked_by: str
    failed: list[dict[str, str]]
    missing: int

    @classmethod
    def read(cls, plan: Plan, folder: SweepFolder) -> "Board":
        """The board of what is in the folder now."""
        rows, failed, missing = [], [], 0
        for cell in plan.cells:
            row = _row(plan, folder, cell)
            failure = None if row and row["status"] == "done" else folder.failure(cell.id)
            if failure is not None:
                log = str(folder.cell(cell.id) / "log.txt")
                failed.append({"cell": cell.id, "label": plan.label(cell), **failure, "log": log})
            elif row is not None:
                rows.append(row)
            else:
                missing += 1
        by = plan.ranked_by
        rows.sort(key=lambda row: (row["status"] != "done", row[by], row["cell"]))
        return cls(plan, rows, by, failed, missing)

    @property
    def heading(self) -> str:
        """What the ranking is by, and that a ranking by test is no choice."""
        return HEADINGS[self.ranked_by]

    @property
    def done(self) -> list[Row]:
        """The rows of cells that trained to their end."""
        return [row for row in self.rows if row["status"] == "done"]

    def write(self, folder: SweepFolder) -> None:
        """Write results.csv and results.json into the folder, each whole."""
        text = io.StringIO()
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(folder.path / "results.csv", text.getvalue())
        document = {
            "sweep": self.plan.name,
            "swept": [key.replace("-", "_") for key in self.plan.keys],
            "ranked_by": {"mean_l2": "test_mean_l2"}.get(self.ranked_by, self.ranked_by),
            "heading": self.heading,
            "rows": self.rows,
            "failed": self.failed,
            "missing": self.missing,
        }
        write_whole(folder.path / "results.json", json.dumps(document, indent=2) + "\n")


def _row(plan: Plan, folder: SweepFolder, cell: Cell) -> Row | None:
    status, result = "done", folder.result(cell.id)
    for rung in reversed(plan.halving.rungs if plan.halving and result is None else ()):
        if result is None:
            status, result = "stopped", folder.result(cell.id, rung)
    if result is None:
        return None
    config = {key.replace("-", "_"): value for key, value in plan.settings(cell).items()}
    head = {"cell": cell.id, "status": status, **result}
    head["checkpoint"] = str(folder.cell(cell.id) / result["checkpoint"])
    return {**head, **{key: value for key, value in config.items() if key not in head}}
