"""The leaderboard of a sweep's folder, as `llgae sweep` left it in results.json."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llgae_cli.errors import InputError, printable

RESULTS = "results.json"
MAX_BYTES = 50_000_000
MAX_ROWS = 200
SHOWN_FIRST = ("task", "model", "trainer", "K", "embed_dim", "beta", "n_step", "lr", "prior", "inference", "seed")
NEVER = frozenset({"checkpoint", "mean_l2", "config", "history", "error", "checkpoint_dir", "data_dir", "id", "cell"})


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
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{printable(path, 200)}: too large for a leaderboard")
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{printable(folder, 200)}: no sweep's folder, it has no {RESULTS}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{printable(path, 200)}: cannot be read ({printable(error)})") from None
    document: dict[str, Any] = rows if isinstance(rows, dict) else {"rows": rows}
    rows, lost, swept = (document.get(name, []) for name in ("rows", "failed", "swept"))
    if not all(isinstance(part, list) for part in (rows, lost, swept)):
        raise InputError(f"{printable(path, 200)}: not a list of rows")
    if not all(isinstance(row, dict) for row in [*rows, *lost]):
        raise InputError(f"{printable(path, 200)}: not a list of rows")
    rows = [{str(key).replace("-", "_"): value for key, value in row.items()} for row in rows]
    done = [row for row in rows if _is_number(row.get("mean_l2"))]
    if "ranked_by" not in document:  # else the sweep has ranked them, perhaps by held-out samples
        done.sort(key=lambda row: row["mean_l2"])
    failed = [row for row in rows if not _is_number(row.get("mean_l2"))]
    failed += [{"mean_l2": None, "error": f"{row.get('label')}: {row.get('reason')}"} for row in lost]
    keys = [key for key in swept if isinstance(key, str)] or _differing(rows)
    by = "validation_mean_l2" if document.get("ranked_by") == "validation_mean_l2" else "mean_l2"
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


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
