"""Decoders in fixed point: x_hat = mu_k + U_k (Delta q), and a network's part, with the same bits on every machine.

mu, U and Delta are integers times powers of two, so every product and every sum is an integer times a power of two.
float64 adds integers below 2^53 exactly, in any order: no library, instruction set or number of threads changes a bit.
With f fraction bits in the result, the partial sums of a row are exact where

    (max_d |mu_d| + Delta max_de |U_de| sum_e |q_e|) 2^f < 2^53

which is checked row by row. A row that fails has no exact reconstruction: an encoder stores it as it is.

Rows of one component differ in contrast, and their latents are large or small together. So a row's symbol says its
component k and its activity class a, as the number k A + a; the class shifts the scales of the latents' densities.
"""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llgae_cli.codec.density import (
    COST_UNIT,
    MAX_RATIO,
    MIN_RATIO,
    PER_OCTAVE,
    Integers,
    Table,
    integer_log2,
    make_table,
)
from llgae_cli.threads import find_torch

if TYPE_CHECKING:
    from llgae_cli.codec.network import FixedNetwork

Floats = NDArray[np.float64]

BASIS_BITS = 20  # fraction bits of U
OFFSET_BITS = 30  # bits of the largest |mu|
MANTISSA_BITS = 10  # of Delta
SCALES = 64  # of densities, an octave
SPREAD = (28, 4, -2, -4)  # 8 log2 of the standard deviation over alpha, by shape
LOG2_VARIANCE = (452650, 65536, -28662, -65536)  # 2^16 log2(v / alpha^2) of each shape: Gamma(3/s) / Gamma(1/s)
SPREADS = 9  # classes of latents by their standard deviation over Delta: below 2^-3, octaves, at least 2^4
NO_ACTIVITY: Integers = np.zeros((1, SPREADS), np.int64)
EXACT = 2.0**53


@dataclass(frozen=True)
class Step:
    """A quantiser's step Delta = mantissa * 2^exponent, with 2^9 <= mantissa < 2^10: within 0.1 % of any number."""

    mantissa: int
    exponent: int

    @classmethod
    def nearest(cls, value: float) -> "Step":
        """Return the step nearest to a positive number. Raises ValueError for any other number."""
        if not 1e-200 < value < 1e200:
            raise ValueError(f"a step of {value:g}")
        fraction, exponent = math.frexp(value)
        mantissa = round(fraction * 2**MANTISSA_BITS)
        if mantissa == 2**MANTISSA_BITS:
            mantissa, exponent = mantissa // 2, exponent + 1
        return cls(mantissa, exponent - MANTISSA_BITS)

    @property
    def value(self) -> float:
        """Delta."""
        return math.ldexp(self.mantissa, self.exponent)

    @property
    def log2(self) -> int:
        """2^16 log2 Delta, rounded down, from integers only."""
        return int(integer_log2(np.array([self.mantissa]))[0]) + self.exponent * COST_UNIT

    def divide(self, halvings: int) -> "Step":
        """Return Delta / 2^halvings."""
        return replace(self, exponent=self.exponent - halvings)


@dataclass(frozen=True, eq=False)
class Level:
    """K components and the densities of their latents.

    mu      (K, D) offsets, multiples of 2^-mu_bits
    U       (K, D, E) bases, multiples of 2^-20, orthonormal up to rounding where there is no network
    shape   (K, E) exponents of the densities, indices of `density.SHAPES`
    scale   (K, E) their scales: alpha = 2^(scale / 64), finer than the tables: these change one by one with Delta
    activity  (A, SPREADS) what each activity class adds to the scale of a latent, by its standard deviation over Delta,
              in units of 1/8 octave
    network   None, or a part of x_hat that is not affine; it has the first latents, all but the constant row's
    """

    mu: Floats
    U: Floats
    mu_bits: int
    shape: Integers
    scale: Integers
    activity: Integers = field(default_factory=lambda: NO_ACTIVITY)
    network: "FixedNetwork | None" = None

    @classmethod
    def round(cls, mu: Floats, U: Floats, shape: Integers, scale: Integers) -> "Level":
        """Return the level whose offsets (K, D) and bases (K, D, E) are rounded to fixed point."""
        largest = float(np.abs(mu).max(initial=0.0))
        bits = OFFSET_BITS - (math.frexp(largest)[1] if largest > 0 else 0)
        bits = max(-900, min(bits, 900))
        return cls(
            np.rint(mu * 2.0**bits) * 2.0**-bits, np.rint(U * 2.0**BASIS_BITS) * 2.0**-BASIS_BITS, bits, shape, scale
        )

    @property
    def K(self) -> int:  # noqa: N802
        """Number of components."""
        return self.U.shape[0]

    @property
    def E(self) -> int:  # noqa: N802
        """Number of latents."""
        return self.U.shape[2]

    @property
    def A(self) -> int:  # noqa: N802
        """Number of activity classes."""
        return len(self.activity)

    @property
    def fraction_bits(self) -> int:
        """Fraction bits of mu and of the network's values."""
        return self.mu_bits if self.network is None else max(self.mu_bits, self.network.output_bits)

    @cached_property
    def largest(self) -> tuple[float, float]:
        """The largest magnitudes in mu and in U."""
        return float(np.abs(self.mu).max(initial=0.0)), float(np.abs(self.U).max(initial=0.0))

    def table_ids(self, step: Step, shift: int = 0) -> Integers:
        """Return the table of each latent at a step for each symbol k A + a, (K A, E): ids, see `find_table`.

        `shift` is added to all scales, in units of 1/8 octave.
        """
        ratio = self.scale * (COST_UNIT * PER_OCTAVE // SCALES) + (shift * COST_UNIT - PER_OCTAVE * step.log2)
        ratio = ratio + COST_UNIT // 2 >> 16
        moved = self.activity.T[self.spreads(step, shift)].transpose(0, 2, 1)  # (K, A, E)
        return table_id(self.shape[:, None], ratio[:, None] + moved).reshape(self.K * self.A, self.E)

    def spreads(self, step: Step, shift: int = 0) -> Integers:
        """Return the class of each latent by its standard deviation over Delta, (K, E), 0 ... SPREADS - 1."""
        octaves = np.array(SPREAD)[self.shape] * (SCALES // PER_OCTAVE) + self.scale
        octaves = (octaves + shift * (SCALES // PER_OCTAVE)) * (COST_UNIT // SCALES) - step.log2 >> 16
        return np.clip(octaves + SPREADS // 2, 0, SPREADS - 1)

    def log2_variances(self, shift: int = 0) -> Integers:
        """Return 2^16 log2 v of the latents' variances v, (K, E); `shift` as in `table_ids`."""
        scale = self.scale + shift * (SCALES // PER_OCTAVE)
        return scale * (2 * COST_UNIT // SCALES) + np.array(LOG2_VARIANCE)[self.shape]

    def decode(self, k: Integers, q: Integers, step: Step) -> Floats:
        """Return mu_k + U_k (Delta q) + network, exact, shape (n, D), for symbols k A + a (n,) and q (n, E)."""
        k = k // self.A
        out = np.empty((len(k), self.U.shape[1]))
        z = q.astype(np.float64) * step.value
        for j, rows in group_rows(k, self.K):
            out[rows] = multiply(z[rows], self.U[j].T) + self.mu[j]
        if self.network is not None:
            out += self.network.decode(k, q[:, : self.network.E], step)
        return out

    def has_exact_sums(self, q: Integers, step: Step, f: int) -> NDArray[np.bool_]:
        """Return for which rows of q (n, E) the sum is exact with f fraction bits (see the module)."""
        mu, U = self.largest
        with np.errstate(over="ignore"):
            bound = mu + step.value * U * np.abs(q).sum(1).astype(np.float64)
            if self.network is not None:
                bound += 2.0**self.network.limit
            exact: NDArray[np.bool_] = bound * 2.0**f < EXACT / 2  # half of it, for the rounding of this bound
        return exact if self.network is None else exact & self.network.has_exact_sums(q[:, : self.network.E], step)


def multiply(a: Floats, b: Floats) -> Floats:
    """Return a @ b, whose sums are exact, so that every library returns the same, in one thread.

    torch's product where torch is loaded, which `run_parallel` gives one thread. Elsewhere numpy's: its BLAS would use
    several for each of many small products, if it has not been loaded in `single_threaded_blas`.
    """
    torch = find_torch()
    return a @ b if torch is None else (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()


IDS = MAX_RATIO - MIN_RATIO + 2  # ids of one shape


def table_id(shape: Integers, ratio: Integers) -> Integers:
    """Return the ids of tables, below 4 IDS; `find_table` returns the table of an id."""
    return shape * IDS + np.clip(ratio, MIN_RATIO - 1, MAX_RATIO) - (MIN_RATIO - 1)


def find_table(number: int) -> Table | None:
    """Return the table of an id from `Level.table_ids`."""
    return make_table(number // IDS, number % IDS + MIN_RATIO - 1)


def group_rows(k: Integers, K: int) -> list[tuple[int, Integers]]:
    """Return (j, rows with k = j, rising) for each component j that occurs in k (n,)."""
    order = np.argsort(k, kind="stable")
    ends = np.cumsum(np.bincount(k, minlength=K))
    return [(j, rows) for j, rows in enumerate(np.split(order, ends[:-1])) if len(rows)]


@dataclass(frozen=True, eq=False)
class ExactDecoder:
    """Sums one component of each level, and then moves the values to other places where the code has a shift.

    levels   one, but for residual models
    places   (V, D) int64 or None: value d of the result is value places[s, d] of the sum
    """

    levels: tuple[Level, ...]
    places: Integers | None = None

    @property
    def D(self) -> int:  # noqa: N802
        """Number of values of a row."""
        return self.levels[0].mu.shape[1]

    @property
    def E(self) -> int:  # noqa: N802
        """Number of latents of all levels."""
        return sum(level.E for level in self.levels)

    def split(self, q: Integers) -> list[Integers]:
        """Return the latents q (n, E) of each level."""
        return np.split(q, np.cumsum([level.E for level in self.levels])[:-1], axis=1)

    def is_exact(self, q: Integers, step: Step) -> NDArray[np.bool_]:
        """Return for which rows of q (n, E) the reconstruction is exact."""
        f = (
            max(BASIS_BITS - step.exponent, *(level.fraction_bits for level in self.levels))
            + (len(self.levels) - 1).bit_length()
        )
        if not -900 < f < 900:
            return np.zeros(len(q), bool)
        parts = zip(self.levels, self.split(q), strict=True)
        return np.logical_and.reduce([level.has_exact_sums(part, step, f) for level, part in parts])

    def decode(self, k: Integers, s: Integers | None, q: Integers, step: Step) -> Floats:
        """Return x_hat (n, D) of symbols k (n, L), s (n,) or None and q (n, E), exact where `is_exact`."""
        x = np.zeros((len(k), self.D))
        for i, (level, part) in enumerate(zip(self.levels, self.split(q), strict=True)):
            x += level.decode(k[:, i], part, step)
        if s is not None and self.places is not None:
            x = np.take_along_axis(x, self.places[s], 1)
        return x
