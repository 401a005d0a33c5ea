"""Data that is read once from its first to its last row: what every reader of a format returns."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llgae_cli.errors import InputError, printable
from llgae_cli.tasks.npy_file import DTYPES

BLOCK_BYTES = 1 << 23  # of the values that a reader yields at a time


@dataclass(frozen=True)
class Block:
    """Consecutive rows: `values` (n, D), and of tables the raw values of the label and the test column, (n,) each.

    `missing` (n, D) marks the empty cells of a table; None: there are none but NaN.
    """

    values: np.ndarray
    labels: np.ndarray | None = None
    test: np.ndarray | None = None
    missing: np.ndarray | None = None


@dataclass(frozen=True)
class Stream:
    """A data set whose format and columns are known and whose values are not read yet.

    where    its name in messages
    dtype    type of the stored values, one of `npy_file.DTYPES`
    shape    of a row
    names    of the columns, or None
    blocks   opens the data and yields all rows in order
    rows     their number, where the format says so
    """

    where: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    names: tuple[str, ...] | None
    blocks: Callable[[], Iterator[Block]]
    rows: int | None = None

    def clean_blocks(self, drop: bool) -> Iterator[Block]:
        """Yield the blocks without missing values: rows that hold one are dropped, or refused with row and column.

        Raises InputError: a missing value, where they are not dropped.
        """
        start = 0
        for block in self.blocks():
            missing = block.missing
            if self.dtype.kind == "f":
                nan = np.isnan(block.values)
                missing = nan if missing is None else missing | nan
            n = len(block.values)
            if missing is not None and missing.any():
                bad = missing.any(axis=1)
                if not drop:
                    row = int(bad.argmax())
                    column = int(missing[row].argmax())
                    what = f"column '{printable(self.names[column])}'" if self.names else f"value {column}"
                    raise InputError(
                        f"{self.where}: row {start + row}, {what}: a missing value (NaN); missing: drop leaves such "
                        "rows out (rows count from 0)"
                    )
                kept = np.logical_not(bad)
                block = Block(block.values[kept], _share(block.labels, kept), _share(block.test, kept))
            start += n
            if len(block.values):
                yield block


def rows_per_block(D: int, itemsize: int) -> int:
    """Return how many rows of D values make a block of some 8 MiB, at least 1."""
    return max(1, BLOCK_BYTES // (D * itemsize))


def check_type(dtype: np.dtype[Any], where: str) -> None:
    """Raise InputError for a type that `npy_file.DTYPES` does not list."""
    if dtype.name not in DTYPES:
        raise InputError(f"{where}: holds {printable(dtype)}; allowed are {', '.join(DTYPES)}")


def load_library(name: str, what: str) -> Any:
    """Import a library of the extra `data`; InputError with the pip command where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise InputError(f"{what} needs {package}, which is not installed: pip install 'llgae[data]'") from None


def _share(values: np.ndarray | None, kept: np.ndarray) -> np.ndarray | None:
    return None if values is None else values[kept]
