"""Sources of rows that `Samples` reads on request."""

from typing import Any, Protocol

import numpy as np


class RowSource(Protocol):
    """N rows of D stored values, read on request.

    dtype   type of the values, in native byte order; one of `npy_file.DTYPES`
    shape   (N, ...), with D the product of the lengths after the first
    names   of the columns, or None
    held    the ranges of rows that this process can read, ascending; None: all
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    names: tuple[str, ...] | None
    held: tuple[range, ...] | None
    N: int
    D: int

    def read(self, at: "range | np.ndarray") -> np.ndarray:
        """Return rows `at` (a range with a positive step, or int64 of shape (n,)) as an array (n, D) in C order.

        Raises RunError when what is read was changed since it was opened.
        """


class ArrayRows:
    """The rows of an array (N, ...) in memory."""

    names: tuple[str, ...] | None = None
    held: tuple[range, ...] | None = None

    def __init__(self, array: np.ndarray) -> None:
        """Keep a reference to the array."""
        self.dtype, self.shape, self.nbytes = array.dtype, array.shape, array.nbytes
        self.N, self.D = len(array), int(np.prod(array.shape[1:], dtype=object))
        self._array = array.reshape(self.N, self.D)

    def read(self, at: "range | np.ndarray") -> np.ndarray:
        """Return rows `at`, as `RowSource.read`."""
        return self._array[at.start : at.stop : at.step] if isinstance(at, range) else self._array[at]


class HeldRows:
    """N rows of which this process has those in `held`, one range after the other, as `values` (n, D) in memory."""

    names: tuple[str, ...] | None = None

    def __init__(self, values: np.ndarray, held: tuple[range, ...], N: int) -> None:
        """Keep a reference to the values; the ranges are ascending."""
        self.N, self.D = N, values.shape[1]
        self.dtype = values.dtype
        self.shape: tuple[int, ...] = (N, self.D)
        self.held: tuple[range, ...] | None = held
        self._values = values
        self._first = np.array([rows.start for rows in held], np.int64)
        self._before = np.cumsum([0, *map(len, held)])  # rows held before each range

    def read(self, at: "range | np.ndarray") -> np.ndarray:
        """Return rows `at`, all of them held, as `RowSource.read`."""
        rows = np.asarray(at, np.int64)
        which = np.searchsorted(self._first, rows, side="right") - 1
        return self._values[rows - self._first[which] + self._before[which]]
