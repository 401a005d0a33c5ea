"""The leaderboard of a sweep's folder, as `llgae sweep` left it in results.json."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from llgae_cli.errors import InputError, printable
from llgae_cli.storage.json_files import Measure, Scalar, Text, read_json, validate

RESULTS = "results.json"
MAX_BYTES = 50_000_000
MAX_ROWS = 200
SHOWN_FIRST = ("task", "model", "trainer", "K", "embed_dim", "beta", "n_step", "lr", "prior", "inference", "seed")
NEVER = frozenset({"checkpoint", "mean_l2", "config", "history", "error", "checkpoint_dir", "data_dir", "id", "cell"})


class Row(BaseModel):
    """A run's row: its checkpoint and mean L2 (None where it failed), and whatever plain values stand beside them."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow", populate_by_name=True)
    __pydantic_extra__: dict[str, Scalar] = Field(init=False)

    checkpoint: Text | None = None
    mean_l2: Measure | None = Field(None, validation_alias="mean-l2")


class Lost(BaseModel):
    """A cell that failed."""

    model_config = ConfigDict(strict=True)

    label: Text | None = None
    reason: Text | None = None


class Results(BaseModel):
    """The document that `llgae sweep` writes."""

    model_config = ConfigDict(strict=True)

    rows: list[Row]
    failed: list[Lost] = []
    swept: list[Text] = []
    ranked_by: Text | None = None


@dataclass(frozen=True)
class Leaderboard:
    """A sweep's rows in the order of the figure `ranked_by`, failures last.

    `ranked_by`: `validation_mean_l2`, or `mean_l2` of the test samples, which is no choice. `keys`: what differs
    between the rows; `total`: all of them.
    """

    rows: list[dict[str, Any]]
    keys: list[str]
    total: int
    failed: int
    ranked_by: str = "mean_l2"

    @property
    def heading(self) -> str:
        """What the ranking is by."""
        if self.ranked_by == "validation_mean_l2":
            return "ranked by mean L2 on validation samples"
        return "ranked by test mean L2: no choice of a model"

    def first(self, folder: Path, n: int) -> list[Path]:
        """The checkpoints of the first n rows whose file is there."""
        found: list[Path] = []
        for row in self.rows:
            path = _found(folder, row.get("checkpoint"))
            if path is not None and path not in found and len(found) < n:
                found.append(path)
        return found


def read_leaderboard(folder: Path) -> Leaderboard:
    """Read FOLDER/results.json: rows with checkpoint, mean_l2 and keys. `llgae sweep` wrote it, or it is a bare list.

    Raises InputError where it is not that.
    """
    path = folder / RESULTS
    try:
        content = read_json(path, MAX_BYTES, "leaderboard")
    except FileNotFoundError:
        raise InputError(f"{printable(folder, 200)}: no sweep's folder, it has no {RESULTS}") from None
    document = validate(Results, {"rows": content} if isinstance(content, list) else content, path)
    rows = [{key.replace("-", "_"): value for key, value in row.model_dump().items()} for row in document.rows]
    done = [row for row in rows if row["mean_l2"] is not None]
    if document.ranked_by is None:  # else the sweep has ranked them, perhaps by held-out samples
        done.sort(key=lambda row: row["mean_l2"])
    failed = [row for row in rows if row["mean_l2"] is None]
    failed += [{"mean_l2": None, "error": f"{row.label}: {row.reason}"} for row in document.failed]
    keys = document.swept or _differing(rows)
    by = "validation_mean_l2" if document.ranked_by == "validation_mean_l2" else "mean_l2"
    return Leaderboard((done + failed)[:MAX_ROWS], keys, len(done) + len(failed), len(failed), by)


def _differing(rows: list[dict[str, Any]]) -> list[str]:
    plain = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in NEVER]
    keys = [
        key
        for key in plain
        if all(isinstance(row.get(key), (str, int, float, bool, type(None))) for row in rows)
        and len({json.dumps(row.get(key)) for row in rows}) > 1
    ]
    known = [key for key in SHOWN_FIRST if key in keys]
    return known + [key for key in keys if key not in known][: 12 - len(known)]


def _found(folder: Path, said: Any) -> Path | None:
    if not isinstance(said, str) or not said or "\0" in said:
        return None
    name = Path(said).name
    for path in (Path(said), folder / said, folder / name, folder / "checkpoints" / name):
        if path.is_file():
            return path
    return next(iter(sorted(folder.rglob(name))), None) if not set(name) & set("*?[") else None
