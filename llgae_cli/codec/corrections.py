"""Corrections: a second layer for rows that must keep an error bound, the residual of each value in steps of delta.

    value = x_hat_d + delta_d r_d,     r_d = round((x_d - x_hat_d) / delta_d),     error at most delta_d / 2

Integers are corrected from x_hat rounded to an integer, in odd steps: 2 a + 1 for an error of at most a, 1 for none.
r_d has a Laplace density whose scale is that of its variable times one of its row.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llgae_cli.codec.density import COST_UNIT, PER_OCTAVE, ROOTS, SHAPES, Integers, integer_log2, make_weights
from llgae_cli.codec.entropy_coder import LIMIT
from llgae_cli.codec.exact import Floats, table_id
from llgae_cli.codec.settings import CORRECTED, SHIFT_UNIT, SHIFTS, Corrections, Settings

if TYPE_CHECKING:
    from llgae_cli.codec.blocks import Rows

LAPLACE = SHAPES.index(1.0)
SMALLEST_RATIO = -30  # of a Laplace density that is coded: smaller scales count as this one
MARGIN = 2.0**-20  # of a step, for the rounding of the sum
MIDDLE = SHIFTS // 2


def is_integer(dtype: np.dtype[Any]) -> bool:
    """Return whether values of this type are whole numbers."""
    return bool(np.issubdtype(dtype, np.integer)) or dtype == np.bool_


def cast(x: Floats, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return values in the stored type: integers rounded to the nearest, ties to even, and clipped to their range."""
    if dtype == np.bool_:
        return np.rint(np.clip(x, 0, 1)).astype(np.bool_)
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        # The largest int64 is no float64.
        return np.rint(np.clip(x, max(info.min, -(2**62)), min(info.max, 2**62))).astype(dtype)
    with np.errstate(over="ignore"):
        return x.astype(dtype)


def find_steps(x: NDArray[Any], settings: Settings, unit: Floats | float) -> Floats:
    """Return the steps (1,) or (D,) that keep the bound of the settings for rows like x (n, D).

    `unit`: scales of the variables (D,), or 1; max_l2 is in these units.
    """
    if settings.max_abs is not None:
        if is_integer(x.dtype):
            return 2 * np.floor(settings.max_abs) + 1
        # Rounding to the stored type takes part of what is allowed.
        rounding = np.abs(x.astype(np.float64)).max(0, initial=0.0) * float(np.finfo(x.dtype).eps)
        return 2 * np.maximum(settings.max_abs - rounding, settings.max_abs / 2) * (1 - MARGIN)
    assert settings.max_l2 is not None
    limit = np.atleast_1d(settings.max_l2**0.5 * unit)
    if is_integer(x.dtype):
        return 2 * np.floor(limit) + 1
    largest = np.abs(x.astype(np.float64)).max(0 if len(limit) > 1 else None, initial=0.0)
    rounding = largest * float(np.finfo(x.dtype).eps)
    return 2 * np.maximum(limit - rounding, limit / 2) * (1 - MARGIN)


def correct(x: Floats, x_hat: Floats, delta: Floats, dtype: np.dtype[Any]) -> tuple[Integers, NDArray[np.bool_]]:
    """Return the corrections r (n, D) of x_hat, and for which rows they can be coded."""
    base = np.rint(x_hat) if is_integer(dtype) else x_hat
    r = np.rint((x - base) / delta)
    codable: NDArray[np.bool_] = np.asarray((np.isfinite(r) & (np.abs(r) < LIMIT / 2)).all(1))
    return np.where(codable[:, None], r, 0.0).astype(np.int64), codable


def apply(x_hat: Floats, r: Integers, delta: Floats, dtype: np.dtype[Any]) -> Floats:
    """Return the corrected values."""
    base = np.rint(x_hat) if is_integer(dtype) else x_hat
    with np.errstate(over="ignore"):  # a hostile file's
        step: Floats = r.astype(np.float64) * delta
        return base + step


def fit_corrections(x: NDArray[Any], rows: "Rows", settings: Settings, unit: Floats | float) -> Corrections | None:
    """Return the corrections for rows like x (n, D), coded as `rows`; None where all keep the bound without any."""
    missed = rows.mode >= CORRECTED
    if not missed.any():
        missed = np.ones(len(x), bool)  # a row of the file may miss where none of the sample does
    delta = find_steps(x, settings, unit)
    r, codable = correct(x[missed].astype(np.float64), rows.x_hat[missed], delta, x.dtype)
    if not codable.any():
        return None
    # The logarithm of the mean, at least 2^-4, in integers: logarithms of floats differ between processors.
    total, n = np.abs(r[codable]).sum(0), np.count_nonzero(codable)
    octaves = integer_log2(np.maximum(total << 4, n)) - int(integer_log2(np.array([n << 4]))[0])
    scale = np.clip((octaves * PER_OCTAVE + COST_UNIT // 2) // COST_UNIT, SMALLEST_RATIO, 30 * PER_OCTAVE)
    shifts = np.bincount(choose_row_scales(r[codable], scale), minlength=SHIFTS)
    return Corrections(delta, scale, make_weights(shifts * 8 + 1))


def choose_row_scales(r: Integers, scale: Integers) -> Integers:
    """Return the scale of each row (n,), 0 ... SHIFTS - 1: the mean of |r_d| / scale_d, in integers."""
    octave, eighth = np.divmod(scale, PER_OCTAVE)
    alpha = np.ldexp(np.array(ROOTS, np.float64)[PER_OCTAVE - eighth], octave + 1 - 30)
    relative = np.rint(np.minimum(np.abs(r) / alpha, 2.0**20) * 2.0**10).astype(np.int64).sum(1)
    octaves = integer_log2(np.maximum(relative, 1)) - int(integer_log2(np.array([r.shape[1] << 10]))[0])
    shift = (octaves * PER_OCTAVE + SHIFT_UNIT * COST_UNIT // 2) // (SHIFT_UNIT * COST_UNIT)
    return np.clip(shift + MIDDLE, 0, SHIFTS - 1)


def correction_tables(row_scales: Integers, scale: Integers) -> Integers:
    """Return the ids of the tables of r, (n, D)."""
    ratio = scale + SHIFT_UNIT * (row_scales[:, None] - MIDDLE)
    return table_id(np.full_like(ratio, LAPLACE), np.maximum(ratio, SMALLEST_RATIO))
