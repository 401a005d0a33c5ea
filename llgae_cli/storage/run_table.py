"""The runs of a folder as a table, from file names, times and states. Does not import torch."""

import math
import operator
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llgae_cli.errors import InputError, explain, nearest, printable, show_path
from llgae_cli.storage.checkpoint_file import is_finished
from llgae_cli.storage.names import SUFFIX, CheckpointName, slug

TEXTS = ("checkpoint", "task", "model", "trainer", "config_id", "saved", "state")
COLUMNS = (
    "checkpoint", "seed", "task", "model", "K", "embed_dim", "beta", "n_step", "lr",
    "trainer", "config_id", "epoch", "mean_l2", "saved", "state",
)  # fmt: skip
STATES = {True: "finished", False: "unfinished", None: "unknown"}

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CONDITION = re.compile(r"\s*([A-Za-z0-9_-]+)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*", re.DOTALL)
DEPTH = 4  # levels of sub-folders
_LR_TOLERANCE = 1e-5  # relative: a name has the logarithm of lr, rounded


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """Return one row per checkpoint in `folder` and its sub-folders, ranked by `rank_rows`; see COLUMNS.

    Sub-folders down to DEPTH levels: in a folder of sweeps the checkpoints of a cell are in NAME/cells/ID/.

    `checkpoint` is the path, `mean_l2` in squared grey levels per pixel, `saved` the UTC time at which the file was
    written, and `state` one of STATES. The others come from the file's name. Files with other names are omitted
    (`count_others` counts them). Raises InputError when the folder is missing or cannot be read.
    """
    return rank_rows([_row(path, name) for path, name in list_named_files(folder)])


def list_named_files(folder: Path) -> list[tuple[Path, CheckpointName]]:
    """Return the checkpoints that `list_runs` lists with their names, without a look into the files."""
    named = ((path, _name(path)) for path in _files(folder))
    return [(path, name) for path, name in named if name is not None]


def count_others(folder: Path) -> int:
    """Return how many .pkl files that `list_runs` omits. Raises as `list_runs`."""
    return sum(_name(path) is None for path in _files(folder))


def rank_rows(rows: Sequence[dict[str, Any]], reverse: bool = False) -> list[dict[str, Any]]:
    """Return the rows by ascending mean L2 (descending with `reverse`) within each task, tasks in alphabetical order.

    Mean L2 of two tasks cannot be compared.
    """
    return sorted(sort_rows(rows, reverse=reverse), key=lambda row: row["task"])


def sort_rows(rows: Sequence[dict[str, Any]], key: str = "mean_l2", reverse: bool = False) -> list[dict[str, Any]]:
    """Return the rows by ascending `key` (descending with `reverse`), equal ones by path.

    Raises InputError for an unknown key, with the nearest.
    """
    name = _column(key)
    return sorted(sorted(rows, key=lambda row: row["checkpoint"]), key=lambda row: row[name], reverse=reverse)


def filter_rows(rows: Sequence[dict[str, Any]], conditions: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows that meet every condition, such as `K=11`, `mean_l2<800` or `task!=mnist`, in their order.

    Columns of text have only = and !=, and ignore case; `task` may also be spelled as in a config. Raises InputError
    for a condition that cannot be parsed, an unknown key (with the nearest), or a value that is not a number where the
    column holds numbers.
    """
    tests = [_test(condition) for condition in conditions]
    return [row for row in rows if all(test(row) for test in tests)]


def _files(folder: Path) -> Iterator[Path]:
    """Yield the .pkl files in a folder and its sub-folders."""
    try:
        top = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        raise InputError(f"{show_path(folder)}: no such folder") from None
    except OSError as error:
        raise InputError(f"{show_path(folder)}: cannot be listed ({explain(error)})") from None
    yield from _walk(top, DEPTH)


def _walk(entries: "Sequence[os.DirEntry[str]]", depth: int) -> Iterator[Path]:
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=depth == DEPTH):  # no links below the top: they may form a cycle
            if depth:
                with suppress(OSError):  # another user's sub-folder is omitted
                    inner = sorted(os.scandir(entry.path), key=lambda entry: entry.name)
                    yield from _walk(inner, depth - 1)
        elif entry.name.endswith(SUFFIX) and entry.is_file():
            yield Path(entry.path)


def _name(path: Path) -> CheckpointName | None:
    try:
        return CheckpointName.parse(path.name)
    except InputError:
        return None


def _row(path: Path, name: CheckpointName) -> dict[str, Any]:
    try:
        saved = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    except (OSError, ValueError, OverflowError):  # removed since it was listed, or a time beyond the year 9999
        saved = ""
    own = {"checkpoint": str(path), "saved": saved, "state": STATES[is_finished(path)]}
    return {key: own[key] if key in own else getattr(name, key) for key in COLUMNS}


def _column(key: str) -> str:
    name = key.replace("-", "_")
    if name not in COLUMNS:
        near = nearest(name, COLUMNS) or f"; there are {', '.join(COLUMNS)}"
        raise InputError(f"unknown column '{printable(key)}'{near}")
    return name


def _test(condition: str) -> Callable[[dict[str, Any]], bool]:
    match = _CONDITION.fullmatch(condition)
    if match is None:
        raise InputError(f"{printable(condition)}: expected a condition such as K=11 or mean_l2<800")
    key, sign, text = match.groups()
    name = _column(key)
    if name in TEXTS:
        if sign not in ("=", "!="):
            raise InputError(f"{printable(condition)}: {name} is text, which has only = and !=")
        wanted = {text.casefold(), slug(text).casefold()} if name == "task" else {text.casefold()}
        return lambda row: (row[name].casefold() in wanted) == (sign == "=")
    number = _number(text, condition)
    if name == "lr" and "=" in sign:
        # 3e-4 in a condition is the 3e-4 of a config, though the name has only its rounded logarithm.
        compare = OPERATORS[sign]
        return lambda row: (
            math.isclose(row["lr"], number, rel_tol=_LR_TOLERANCE) != (sign == "!=")
            or (sign in ("<=", ">=") and compare(row["lr"], number))
        )
    return lambda row: OPERATORS[sign](row[name], number)


def _number(text: str, condition: str) -> float:
    try:
        number = int(text) if re.fullmatch(r"-?[0-9]{1,30}", text) else float(text)  # an int keeps all its digits
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise InputError(f"{printable(condition)}: '{printable(text)}' is not a number")
    return number
