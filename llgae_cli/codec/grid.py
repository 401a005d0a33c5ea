"""The grid to which rows are rounded before they are coded, so that all products with bases are exact."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llgae_cli.codec.exact import Floats

GRID_BITS = 24  # |y| of the training rows, at most; rows up to twice as long are coded


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid on which rows are coded: y = round((x - origin) 2^bits)."""

    origin: Floats
    bits: int

    @classmethod
    def fit(cls, origin: Floats, radius: float) -> "Grid":
        """Return the grid for rows at most `radius` from the origin."""
        bits = GRID_BITS - math.frexp(max(radius, 1e-30))[1]
        return cls(np.rint(origin * 2.0**bits) * 2.0**-bits, bits)

    def round(self, x: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """Return y (n, D) of rows x (n, D), and which are on the grid; the others are zero."""
        with np.errstate(over="ignore", invalid="ignore"):
            y = np.rint((x - self.origin) * 2.0**self.bits)
            fits = (y * y).sum(1) <= 4.0 ** (GRID_BITS + 1)
        y[~fits] = 0.0
        return y, fits

    def holds(self, mu: Floats, is_first: bool) -> bool:
        """Return whether the offsets mu (K, D) of a level are on the grid, so that all products are exact."""
        m = np.rint((mu - (self.origin if is_first else 0.0)) * 2.0**self.bits)
        return bool(((m * m).sum(1) <= 4.0 ** (GRID_BITS + 1)).all())
