"""Probabilities of quantised latents: generalised Gaussian densities as tables of integer weights.

A latent z with density proportional to exp(-|z / alpha|^s) is coded as q = round(z / Delta). The probability of q is
the integral of the density over the cell [(q - 1/2) Delta, (q + 1/2) Delta], so it depends on s and alpha / Delta only.
A decoder must find the same probabilities on every machine: every step below is exact arithmetic with integers.
"""

import math
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

SHAPES = (0.5, 1.0, 1.5, 2.0)  # the exponent s
PER_OCTAVE = 8  # alpha / Delta = 2^(ratio / 8)
TOTAL = 1 << 24  # the sum of a table's weights; constriction codes with 24 bits
COST_UNIT = 1 << 16  # costs are integers, in units of 2^-16 bit
LENGTH_BITS = 6  # an escaped value: the length of a binary number in 6 bits, then the number

MIN_RATIO = -10 * PER_OCTAVE  # every latent of a smaller ratio is skipped, whatever its shape
MAX_RATIO = 32 * PER_OCTAVE  # a larger ratio is coded as this one: at most 30 low bits
LARGEST_TABLE = (19, 44, 54, 59)  # by shape: a larger ratio is coded with low bits. At most 1,024 symbols on a side
REACH = (400, 17, 7, 5)  # by shape: multiples of alpha that hold all but 2^-24 of the mass
FINEST_CELL = 4  # the density is summed at points at most 2^-4 alpha apart
RARE = 12  # a latent that is nonzero with a probability below 2^-12 is skipped
TAIL = 16  # the escape symbol stands for the outermost 2^-16 of the mass

# Fixed-point constants. ROOTS[f] = floor(2^(30 - f/8)): the eighth root of 2^(240 - f) by three integer square roots.
ROOTS = tuple(math.isqrt(math.isqrt(math.isqrt(1 << (240 - f)))) for f in range(PER_OCTAVE + 1))
LOG2_E = 1549082005  # 2^30 log2(e)
LN_2 = 799144290325165979  # 2^60 ln 2
EXP2 = tuple((LN_2**j // math.factorial(j)) >> (60 * j - 30) if j else 1 << 30 for j in range(11))  # 2^30 (ln 2)^j / j!


@dataclass(frozen=True, eq=False)
class Table:
    """The distribution of one quantised latent q, |q| < 2^40.

    With b = `low_bits` and M = `half`, the symbol is m = (q + 2^(b-1)) >> b, rounded to the nearest multiple of 2^b
    (m = q for b = 0). What is left, q + 2^(b-1) - (m << b), is b raw bits. |m| > M is coded as the escape symbol and m
    in raw bits. Two tables are equal only if they are one object: a table can be a key of a cache.

    Attributes:
        weights: (2 M + 2,) probabilities times 2^24, each at least 1: of m = -M ... M in this order, then of the
            escape symbol.
        half: M, at least 1.
        low_bits: b.
        costs: (2 M + 2,) -log2 of the probabilities in units of 2^-16 bit, without low bits and escaped values.
    """

    weights: Integers
    half: int
    low_bits: int
    costs: Integers

    def split(self, q: Integers) -> tuple[Integers, Integers]:
        """Return m, which is q rounded to a multiple of 2^low_bits, and what is left, 0 ... 2^low_bits - 1."""
        shifted = q + (1 << self.low_bits >> 1)
        return shifted >> self.low_bits, shifted & ((1 << self.low_bits) - 1)

    def join(self, m: Integers, low: Integers) -> Integers:
        """Return q from the two parts of `split`."""
        return (m << self.low_bits) + low - (1 << self.low_bits >> 1)

    def compute_costs(self, q: Integers) -> Integers:
        """Return the cost of each value of q in units of 2^-16 bit, with low bits and escaped values; shape of q."""
        m, _ = self.split(np.asarray(q, np.int64))
        escaped = np.abs(m) > self.half
        costs = self.costs[np.where(escaped, 2 * self.half + 1, m + self.half)] + self.low_bits * COST_UNIT
        if escaped.any():
            length = count_bits(number_escapes(m[escaped], self.half)) - 1
            costs[escaped] += (LENGTH_BITS + length) * COST_UNIT
        return costs


def number_escapes(m: Integers, half: int) -> Integers:
    """Return 1 for m = half + 1, 2 for -half - 1, 3 for half + 2, and so on: a positive number for each |m| > half."""
    return 2 * (np.abs(m) - half) - 1 + (m < 0)


def restore_escapes(numbers: Integers, half: int) -> Integers:
    """Return m from the numbers of `number_escapes`."""
    magnitude = ((numbers + 1) >> 1) + half
    return np.where(numbers & 1, magnitude, -magnitude)


@lru_cache(maxsize=4096)
def make_table(shape: int, ratio: int) -> Table | None:
    """Return the table of a quantised generalised Gaussian density.

    Args:
        shape: index of the exponent s in SHAPES.
        ratio: 8 log2(alpha / Delta), rounded. Ratios above MAX_RATIO count as MAX_RATIO.

    Returns:
        The table, made once for each pair; None where q differs from 0 with a probability below 2^-12. Such a latent is
        skipped: it is always 0 and costs nothing.

    Raises:
        ValueError: `shape` is not an index of SHAPES.
    """
    if not 0 <= shape < len(SHAPES):
        raise ValueError(f"shape {shape}: 0 to {len(SHAPES) - 1} are allowed")
    # Python's integers, which do not overflow where numpy's do.
    return _make_table(int(shape), min(max(int(ratio), MIN_RATIO - 1), MAX_RATIO))


@cache  # at most 4 x 338 tables; those of one shape that differ by low bits only share their arrays
def _make_table(shape: int, ratio: int) -> Table | None:
    """Return `make_table` of a ratio within MIN_RATIO - 1 ... MAX_RATIO."""
    low_bits = max(0, -((LARGEST_TABLE[shape] - ratio) // PER_OCTAVE))
    arrays = _make_arrays(shape, ratio - PER_OCTAVE * low_bits)
    return None if arrays is None else Table(arrays[0], len(arrays[0]) // 2 - 1, low_bits, arrays[1])


@cache
def _make_arrays(shape: int, ratio: int) -> tuple[Integers, Integers] | None:
    """Return weights and costs of a table without low bits, or None where it is skipped."""
    mass = integrate_density(shape, ratio)
    whole = int(mass[0] + 2 * mass[1:].sum())
    if whole - int(mass[0]) < whole >> RARE:
        return None
    beyond = whole - np.cumsum(np.where(np.arange(len(mass)), 2 * mass, mass))  # the mass of |q| > M, for each M
    half = max(1, int(np.argmax(beyond <= whole >> TAIL)))
    # Each symbol has weight 1 and a share of the rest, rounded down; 0, the most probable, has what then remains.
    shift = max(0, whole.bit_length() - 38)  # so that the products stay below 2^62
    rest = TOTAL - (2 * half + 2)
    side = 1 + (mass[1 : half + 1] >> shift) * rest // (whole >> shift)
    escape = 1 + (int(beyond[half]) >> shift) * rest // (whole >> shift)
    centre = TOTAL - 2 * int(side.sum()) - escape
    weights = np.concatenate([side[::-1], [centre], side, [escape]])
    costs = TOTAL.bit_length() - 1 << 16
    arrays = weights, costs - integer_log2(weights)
    for array in arrays:
        array.flags.writeable = False  # shared by all who ask for the table
    return arrays


def integrate_density(shape: int, ratio: int) -> Integers:
    """Return the masses of the cells q = 0, 1, 2, ... under exp(-|z / alpha|^s), falling, without normalisation.

    The midpoint rule with 2^a points a cell, at most alpha / 16 apart, in units of 2^-40 times the distance of points.
    A probability is off by at most 0.0004, and by less than 1 % of itself where it counts; that costs 0.00001 bits.

    Args:
        shape: index of the exponent s in SHAPES.
        ratio: 8 log2(alpha / Delta), at least MIN_RATIO - 1, at most LARGEST_TABLE[shape].
    """
    octave, eighth = divmod(ratio, PER_OCTAVE)
    a = max(2, FINEST_CELL - octave)
    # Cells up to REACH alpha, and one more, which may be cut: 2^(eighth / 8) is 2 * 2^-((8 - eighth) / 8).
    cells = (2 * REACH[shape] * ROOTS[PER_OCTAVE - eighth] << (octave + 64) >> 94) + 2
    odd = (
        2 * np.arange((cells << a) - (1 << a >> 1), dtype=np.int64) + 1
    )  # point i is at z = (2 i + 1) 2^-(a + 1) Delta
    u = odd * ROOTS[eighth] >> (
        octave + a + 5
    )  # |z| / alpha, 26 fraction bits: 30 of ROOTS, a + 1 of z, octave less 26
    u = np.minimum(u, REACH[shape] << 27)  # no density is left there, and no product below reaches 2^63
    powers = {
        0.5: lambda: floor_sqrt(u << 26),
        1.0: lambda: u,
        1.5: lambda: u * floor_sqrt(u << 26) >> 26,
        2.0: lambda: u * u >> 26,
    }
    power = np.minimum(powers[SHAPES[shape]](), (1 << 31) - 1)
    density = exp2_negative(power * LOG2_E >> 30)
    centre = density[: 1 << a >> 1].sum(keepdims=True) * 2
    mass = np.concatenate([centre, density[1 << a >> 1 :].reshape(cells - 1, 1 << a).sum(1)])
    return np.minimum.accumulate(mass)  # rounding may have raised a cell by a unit


def exp2_negative(t: Integers) -> Integers:
    """Return 2^(40 - t / 2^26), for t >= 0 with 26 fraction bits; off by at most 2^-26 of the value, and 1.

    2^-f of the fraction f is its Taylor polynomial of degree 10 in fixed point with 30 bits.
    """
    fraction = (t & ((1 << 26) - 1)) << 4
    value = np.full_like(t, EXP2[-1])
    for coefficient in EXP2[-2::-1]:
        value = coefficient - (value * fraction >> 30)
    return value << 10 >> np.minimum(t >> 26, 62)


def floor_sqrt(values: Integers) -> Integers:
    """Return the integer square roots floor(sqrt(v)) of values below 2^62, exactly.

    The float's square root is within 1 of the integer, on any machine that follows IEEE 754; integers correct it.
    """
    root = np.sqrt(values.astype(np.float64)).astype(np.int64)
    root -= root * root > values
    root += (root + 1) * (root + 1) <= values
    return root


def count_bits(values: Integers) -> Integers:
    """Return the length of each value as a binary number: floor(log2 v) + 1, for v from 1 to 2^63 - 1."""
    length = np.ones_like(values)
    rest = values.copy()
    for step in (32, 16, 8, 4, 2, 1):
        high = rest >> step
        length += np.where(high > 0, step, 0)
        rest = np.where(high > 0, high, rest)
    return length


def integer_log2(values: Integers) -> Integers:
    """Return 2^16 log2 of each value, rounded down, in integer arithmetic.

    The mantissa, 30 fraction bits, is squared 16 times; each time that it passes 2 yields a bit of the logarithm. The
    result L satisfies 2^16 log2(v) - 1.001 < L <= 2^16 log2(v), and is exact for powers of 2.

    Raises:
        ValueError: a value is not positive.
    """
    values = np.asarray(values, np.int64)
    if values.size and values.min() < 1:
        raise ValueError("a logarithm of a number below 1")
    exponent = count_bits(values) - 1
    mantissa = np.where(exponent > 30, values >> np.maximum(exponent - 30, 0), values << np.maximum(30 - exponent, 0))
    logarithm = exponent
    for _ in range(16):
        mantissa = mantissa * mantissa >> 30
        passed = mantissa >> 31
        logarithm = 2 * logarithm + passed
        mantissa >>= passed
    return logarithm


def make_weights(counts: Integers) -> Integers:
    """Return weights, each at least 1, with a total of 2^24, in proportion to counts (K,) as far as that allows.

    Each weight is 1 plus a share of the rest, 2^24 - K, by the method of largest remainders; ties go to the lower
    index. Equal weights where all counts are 0. K is below 2^24.

    Raises:
        ValueError: no counts, or a negative one.
    """
    counts = np.asarray(counts, np.int64)
    if counts.ndim != 1 or not 0 < len(counts) < TOTAL or counts.min() < 0:
        raise ValueError("counts: a list of numbers from 0 is needed")
    counts = counts >> max(0, sum(map(int, counts)).bit_length() - 38)  # so that the products stay below 2^62
    if not counts.any():
        counts = np.ones_like(counts)
    rest = TOTAL - len(counts)
    share, remainder = np.divmod(counts * rest, counts.sum())
    missing = rest - int(share.sum())
    share[np.argsort(-remainder, kind="stable")[:missing]] += 1
    return share + 1
