"""Which stored rows are the samples 0, 1, ... of a set: a range, all but every n-th, or a list of indices."""

import numpy as np
import torch
from torch import Tensor


class AllBut:
    """All rows but step - 1, 2 step - 1, ...: position p is the row p + p // (step - 1). Takes no memory.

    It holds the positions low ... high - 1 of those.
    """

    def __init__(self, step: int, low: int, high: int) -> None:
        """`step` is at least 2."""
        self.step, self.low, self.high = step, low, high

    def __len__(self) -> int:
        """Return the number of positions."""
        return self.high - self.low

    def rows(self, positions: Tensor) -> Tensor:
        """Return the rows at positions (n,)."""
        positions = positions + self.low
        return positions + positions // (self.step - 1)

    def slice(self, index: slice) -> "AllBut | Tensor":
        """Return the rows at a slice of the positions."""
        at = range(len(self))[index]
        if at.step == 1:
            return AllBut(self.step, self.low + at.start, self.low + max(at.start, at.stop))
        return self.rows(torch.arange(at.start, at.stop, at.step))

    def count_below(self, row: int) -> int:
        """Return how many of the positions have rows before `row`."""
        return max(self.low, min(self.high, row - row // self.step)) - self.low


Positions = range | Tensor | AllBut


def count_below(at: Positions, row: int) -> int:
    """Return how many positions of ascending rows `at` have rows before `row`."""
    if isinstance(at, AllBut):
        return at.count_below(row)
    if isinstance(at, range):
        return len(range(at.start, min(at.stop, max(at.start, row)), at.step))
    return int(np.searchsorted(at.cpu().numpy(), row))
