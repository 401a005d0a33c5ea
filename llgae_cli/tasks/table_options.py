"""Options for the user's own data: which columns are variables, labels and test set, and what a missing value does."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from llgae_cli.errors import InputError, nearest, printable

Missing = Literal["error", "drop"]


@dataclass(frozen=True)
class TableOptions:
    """How the user's own data is read.

    columns   names of the variables, in the order of the model; `-NAME` leaves one out; `*` and `?` match several;
              empty: all but labels and test
    labels    a column, a member of the same file, or a file of labels; None: no labels, or those of the file beside it
    test      a file, a share 0 < t < 1 of the rows, or a column of 0 and 1; None: a tenth of the rows
    missing   NaN and empty cells: `error`, or `drop` the rows that hold one
    stored    the options come from a checkpoint and the file is another one: columns are used where the file has names,
              labels and test where it has these columns
    own       of data in shards each process opens only its own (see `shards`)
    """

    columns: tuple[str, ...] = ()
    labels: str | None = None
    test: str | float | None = None
    missing: Missing = "error"
    stored: bool = False
    own: bool = False

    @property
    def given(self) -> tuple[str, ...]:
        """Return the names of the options that differ from the default."""
        default = TableOptions()
        return tuple(
            name for name in ("columns", "labels", "test", "missing") if getattr(self, name) != getattr(default, name)
        )


def check_names(names: list[str], where: str) -> None:
    """Raise InputError where a column has no name, or two columns have the same one."""
    seen: set[str] = set()
    for number, name in enumerate(names):
        if not name.strip():
            raise InputError(f"{where}: column {number} has no name (columns count from 0)")
        if name in seen:
            raise InputError(f"{where}: {names.count(name)} columns are named '{printable(name)}'; names must differ")
        seen.add(name)


def choose_columns(names: list[str], options: TableOptions, where: str) -> list[str]:
    """Return the names of the variables, in the order in which `options` give them, else in that of the file.

    Raises InputError for a name that the file lacks, one that is given twice, and where no column is left.
    """
    reserved = {name for name in (options.labels, options.test) if isinstance(name, str)}
    kept = [name for name in names if name not in reserved]
    # A column whose name begins with a dash or holds an asterisk is meant by its full name.
    left_out = [entry for entry in options.columns if entry.startswith("-") and entry not in names]
    wanted = [entry for entry in options.columns if entry not in left_out]
    chosen: list[str] = []
    for entry in wanted:
        found = [entry] if entry in names else [name for name in _match(kept, entry, where) if name not in chosen]
        for name in found:
            if name in reserved:
                raise InputError(f"columns: '{printable(name)}' holds the labels or the test set, not a variable")
            if name in chosen:
                raise InputError(f"columns: '{printable(name)}' is given twice")
            chosen.append(name)
    dropped = {name for entry in left_out for name in _match(names, entry[1:], where)}
    chosen = [name for name in (chosen if wanted else kept) if name not in dropped]
    if not chosen:
        raise InputError(f"{where}: no column is left as a variable")
    return chosen


def find_column(names: list[str], wanted: str, key: str, where: str) -> str:
    """Return `wanted` if it is a column; InputError with the nearest name otherwise."""
    if wanted not in names:
        near = nearest(wanted, names) or f"; it has {_list(names)}"
        raise InputError(f"{key}: {where} has no column '{printable(wanted)}'{near}")
    return wanted


def _match(names: list[str], entry: str, where: str) -> list[str]:
    if entry in names:
        return [entry]
    found = [name for name in names if fnmatchcase(name, entry)] if any(c in entry for c in "*?") else []
    if not found:
        find_column(names, entry, "columns", where)
    return found


def _list(names: list[str]) -> str:
    shown = ", ".join(printable(name, 40) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
