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
