"""Options of commands that read the user's own data without a config."""

from typing import TYPE_CHECKING, Annotated

import typer

from llgae_cli.errors import InputError, printable

if TYPE_CHECKING:
    from llgae_cli.tasks import TableOptions

Columns = Annotated[
    list[str] | None,
    typer.Option("--columns", help="Columns that are variables: names separated by commas; -NAME leaves one out."),
]
Labels = Annotated[str | None, typer.Option("--labels", help="Labels: a column, a member of the file, or a file.")]
Test = Annotated[
    str | None, typer.Option("--test", help="Test set: a file, a share of the rows, or a column of 0 and 1.")
]
Missing = Annotated[
    str | None, typer.Option("--missing", help="Missing values: error, or drop the rows.", metavar="error|drop")
]


def parse_options(
    columns: list[str] | None, labels: str | None, test: str | None, missing: str | None
) -> "TableOptions":
    """Return the options for `load_task`. Raises InputError for another `missing` than error and drop."""
    from llgae_cli.tasks import TableOptions

    names = tuple(name.strip() for entry in columns or [] for name in entry.split(",") if name.strip())
    if missing not in (None, "error", "drop"):
        raise InputError(f"--missing {printable(missing)}: error or drop")
    return TableOptions(names, labels, _share(test), "drop" if missing == "drop" else "error")


def _share(test: str | None) -> str | float | None:
    try:
        return float(test) if test is not None else None
    except ValueError:
        return test
