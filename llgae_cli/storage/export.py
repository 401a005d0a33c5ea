"""The table of runs as a file for other programs: CSV, or Parquet by pyarrow."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llgae_cli.errors import InputError, nearest, printable
from llgae_cli.storage.atomic import write_atomically, write_text
from llgae_cli.storage.run_table import COLUMNS


def export_runs(rows: Sequence[dict[str, Any]], kind: str, path: Path) -> None:
    """Write the rows of `list_runs` to a file of a kind of EXPORTS, with a column for each of COLUMNS.

    Raises InputError for another kind, or where a package is missing, and RunError where the file cannot be written.
    """
    if kind not in EXPORTS:
        raise InputError(f"--export {printable(kind)}: known are {', '.join(EXPORTS)}{nearest(kind, EXPORTS)}")
    EXPORTS[kind](rows, path)


def _write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _write_parquet(rows: Sequence[dict[str, Any]], path: Path) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise InputError("--export parquet: needs the package pyarrow: pip install 'llgae[data]'") from None
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    with write_atomically(path) as temporary:
        parquet.write_table(pa.table(columns), temporary)


EXPORTS: dict[str, Callable[[Sequence[dict[str, Any]], Path], None]] = {"csv": _write_csv, "parquet": _write_parquet}
