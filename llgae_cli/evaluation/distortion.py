"""Errors of decoded rows in the stored type, and the bounds that were promised for them. All in float64."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llgae_cli.errors import RunError


@dataclass(frozen=True, eq=False)
class Bound:
    """The error that is promised for every row, or none.

    max_l2    of the squared error's mean over the values of a row, each over `unit`
    max_abs   (1,) or (D,), of each value's absolute error
    lossless  the same bytes
    unit      scales of the variables (D,), or 1.0
    """

    max_l2: float | None = None
    max_abs: np.ndarray | None = None
    lossless: bool = False
    unit: np.ndarray | float = 1.0

    def find_broken(self, x: np.ndarray, x_hat: np.ndarray, difference: np.ndarray) -> np.ndarray:
        """Return for each row of x (n, D) whether it breaks the bound; `difference` is |x - x_hat|, float64."""
        broken = np.zeros(len(x), bool)
        if self.max_l2 is not None:
            broken |= ~(np.square(difference / self.unit).mean(1) <= self.max_l2)  # also where it is NaN
        if self.max_abs is not None:
            broken |= ~(difference <= self.max_abs).all(1)
        if self.lossless:  # the same bytes: -0.0 is not 0.0
            broken |= (np.ascontiguousarray(x).view(np.uint8) != np.ascontiguousarray(x_hat).view(np.uint8)).any(1)
        return broken


@dataclass
class Distortion:
    """Errors of decoded rows, added block by block.

    n, values      rows and values so far
    total          sum of the squared errors, in scaled units
    largest_row    largest mean squared error of a row, in scaled units
    largest_value  largest absolute error of a value
    digest         of all decoded bytes
    """

    bound: Bound
    n: int = 0
    values: int = 0
    total: float = 0.0
    largest_row: float = 0.0
    largest_value: float = 0.0
    digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    @property
    def mean(self) -> float:
        """Return the mean over all values of the squared error."""
        return self.total / self.values if self.values else 0.0

    def add(self, x: np.ndarray, x_hat: np.ndarray) -> None:
        """Add rows x (n, D) and what they decode to. Raises RunError for a row that breaks the bound."""
        if (x_hat.shape, x_hat.dtype) != (x.shape, x.dtype):
            raise RunError(f"rows {self.n}..{self.n + len(x) - 1} decode to another shape or type: please report this")
        difference = absolute_difference(x, x_hat)
        broken = self.bound.find_broken(x, x_hat, difference)
        if broken.any():
            row = self.n + int(broken.argmax())
            raise RunError(f"row {row} decodes with an error beyond the bound: please report this")
        l2 = np.square(difference / self.bound.unit).mean(1)
        self.digest.update(np.ascontiguousarray(x_hat).view(np.uint8).data)
        self.n += len(x)
        self.values += x.size
        self.total += float(l2.sum()) * x.shape[1]
        self.largest_row = max(self.largest_row, float(l2.max()))
        self.largest_value = max(self.largest_value, float(difference.max()))


def absolute_difference(x: np.ndarray, x_hat: np.ndarray) -> np.ndarray:
    """Return |x - x_hat| in float64; of integers it is rounded once, also beyond 2^53."""
    if x.dtype.kind == "f":
        return np.abs(x.astype(np.float64) - x_hat.astype(np.float64))
    a, b = x.astype(np.int64), x_hat.astype(np.int64)
    return (np.maximum(a, b) - np.minimum(a, b)).view(np.uint64).astype(np.float64)
