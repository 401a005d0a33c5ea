"""Rows of one data set or several, one after the other, in the type in which they are stored."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from llgae_cli.tasks.samples import Samples

SAMPLE_ROWS, SAMPLE_BYTES = 16_384, 1 << 28  # most that `sample` returns
CHUNK_BLOCKS, CHUNK_BYTES = 16, 1 << 25  # most that `chunks` yields at a time
PICK = 256  # rows of the sample read at a time: rows near each other are read with what lies between


@dataclass(frozen=True)
class Rows:
    """Rows of one or several data sets with the same shape and type of rows, which are read on request.

    parts   the data sets, in order
    shape   of a row
    """

    parts: list[Samples]
    shape: tuple[int, ...]

    @property
    def n(self) -> int:
        """Return the number of rows."""
        return sum(part.N for part in self.parts)

    @property
    def dtype(self) -> str:
        """Return the name of the stored type."""
        return self.parts[0].stored

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row."""
        return self.parts[0].D * self.parts[0].itemsize

    @property
    def origin(self) -> str:
        """Return the name of the first data set, for messages."""
        return self.parts[0].origin

    def read(self, at: range) -> np.ndarray:
        """Return the rows `at`, at least one, in the stored type, (len(at), D)."""
        found, begin = [], 0
        for part in self.parts:
            first = at.start + max(0, -(-(begin - at.start) // at.step)) * at.step  # the first of them in this part
            here = slice(first - begin, max(first, min(at.stop, begin + part.N)) - begin, at.step)
            if here.start < here.stop:
                found.append(part.stored_array(here))
            begin += part.N
        return np.concatenate(found) if len(found) != 1 else found[0]

    def sample(self) -> np.ndarray:
        """Return all rows, or every n-th where they are many: at most 16,384 rows and 256 MiB, but one row at least."""
        most = max(1, min(SAMPLE_ROWS, SAMPLE_BYTES // self.row_bytes))
        at = range(0, self.n, -(-self.n // most))
        return np.concatenate([self.read(at[start : start + PICK]) for start in range(0, len(at), PICK)])

    def chunks(self, block_rows: int) -> Iterator[np.ndarray]:
        """Yield all rows in order, some blocks of `block_rows` rows at a time."""
        blocks = max(1, min(CHUNK_BLOCKS, CHUNK_BYTES // (block_rows * self.row_bytes)))
        for start in range(0, self.n, blocks * block_rows):
            yield self.read(range(start, min(self.n, start + blocks * block_rows)))
