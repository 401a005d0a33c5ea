"""Sources of rows that `Samples` reads on request: one .npy file, or several as one array."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llgae_cli.errors import InputError, show_path
from llgae_cli.tasks.npy_file import NpyFile


class RowSource(Protocol):
    """N rows of D stored values, read on request.

    dtype   type of the values, in native byte order; one of `npy_file.DTYPES`
    shape   (N, ...), with D the product of the lengths after the first
    names   of the columns, or None
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    names: tuple[str, ...] | None
    N: int
    D: int

    def read(self, at: "range | np.ndarray") -> np.ndarray:
        """Return rows `at` (a range with a positive step, or int64 of shape (n,)) as an array (n, D) in C order.

        Raises RunError when what is read was changed since it was opened.
        """


class Shards:
    """Several .npy files as one array: their rows one after the other, in the order of `paths`.

    Raises InputError as `NpyFile` does, and where type or shape of the rows differ between the files.
    """

    names: tuple[str, ...] | None = None

    def __init__(self, paths: list[Path]) -> None:
        """Read the headers of all files."""
        self._files = [NpyFile(path) for path in paths]
        first = self._files[0]
        for file in self._files:
            if (file.shape[1:], file.dtype, len(file.shape)) != (first.shape[1:], first.dtype, len(first.shape)):
                raise InputError(
                    f"{show_path(file.path)}: holds {_describe(file)}, and {first.path.name} {_describe(first)}; "
                    "shards have rows of one shape and type"
                )
        self._starts = np.cumsum([0, *(file.N for file in self._files)])  # of each file, and the end
        self.dtype = first.dtype
        self.N, self.D = int(self._starts[-1]), first.D
        self.shape = (self.N, *first.shape[1:])

    def read(self, at: "range | np.ndarray") -> np.ndarray:
        """Return rows `at`, as `RowSource.read`."""
        rows = np.asarray(at, dtype=np.int64)
        out = np.empty((len(rows), self.D), self.dtype)
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        for k in np.unique(shard):
            here = np.flatnonzero(shard == k)
            local = rows[here] - self._starts[k]
            step = at.step if isinstance(at, range) else 0
            out[here] = self._files[k].read(range(int(local[0]), int(local[-1]) + 1, step) if step else local)
        return out


def _describe(file: NpyFile) -> str:
    return f"rows of {'x'.join(map(str, file.shape[1:])) or 'one value'} {file.dtype.name}"
