"""Scaling of the variables of a table: u_j = (v_j - c_j) / s_j, with c and s from the training rows.

Columns of different units cannot be compared by squared error: the largest numbers would decide everything. With m_j
the mean, sd_j the standard deviation (of N, not N - 1) and max_j, min_j the extremes of column j, s_j is

    std      sd_j                   pareto   sqrt(sd_j)            level    |m_j|
    range    max_j - min_j          vast     sd_j^2 / |m_j|        max      |max_j|
    poisson  sqrt(m_j)              robust   quantile 3/4 - quantile 1/4

and c_j is m_j; for robust, the median. The first seven are those of the field of reduced-order combustion models
(Zdybal, Armstrong, Parente and Sutherland, PCAfold, SoftwareX 12, 2020). There std is called auto, and level, vast and
max keep the sign of the mean or the maximum, which changes no squared error.
"""

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llgae_cli import distributed
from llgae_cli.errors import InputError, printable
from llgae_cli.scaling import Floats, Scaling
from llgae_cli.tasks.samples import Samples

Method = Literal["auto", "none", "std", "range", "pareto", "vast", "level", "max", "poisson", "robust"]

QUANTILE_ROWS = 1_000_000  # evenly spaced rows from which quantiles are taken, and at most
QUANTILE_VALUES = 1 << 26  # so many values
NAMED = 5  # columns that a message names
NEARLY_ZERO = 1e-12  # of a mean, over the column's range: rounding of a sum that is zero

logger = logging.getLogger(__name__)


def fit_scaling(samples: Samples, method: str) -> Scaling:
    """Return the scaling of samples by a method of `Method`, but auto and none: one streamed pass, sums in float64.

    A constant column is only centred. Quantiles are those of evenly spaced rows, where there are more than a million.
    Raises InputError where all columns are constant, and where a method gives no scale for a column.
    """
    if samples.on_disk:
        logger.info("%s: scaling is fitted in one pass over %s rows", samples.origin, f"{samples.N:,}")
    mean, deviation, low, high = _measure(samples)
    centre = mean
    if method == "robust":
        step = max(1, -(-samples.N // min(QUANTILE_ROWS, max(1, QUANTILE_VALUES // samples.D))))
        rows = samples.gather(slice(0, None, step)).stored_array().astype(np.float64)
        below, centre, above = np.quantile(rows, (0.25, 0.5, 0.75), axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = {
            "std": lambda: deviation,
            "range": lambda: high - low,
            "pareto": lambda: np.sqrt(deviation),
            "vast": lambda: deviation**2 / np.abs(mean),
            "level": lambda: np.abs(mean),
            "max": lambda: np.abs(high),
            "poisson": lambda: np.sqrt(mean),
            "robust": lambda: above - below,
        }[method]()
    constant = low == high
    if constant.all():
        raise InputError(f"{samples.origin}: every column is constant, so there is nothing to learn")
    if constant.any():
        names = name_columns(samples.names, np.flatnonzero(constant))
        logger.info("%d constant columns are not scaled: %s", int(constant.sum()), names)
    nearly_zero = (
        np.abs(mean) <= NEARLY_ZERO * (high - low) if method in ("vast", "level") else np.zeros(samples.D, bool)
    )
    wrong = ~constant & (nearly_zero | ~(np.isfinite(scale) & (scale > 0)))
    if wrong.any():
        names = name_columns(samples.names, np.flatnonzero(wrong))
        raise InputError(
            f"scaling: {method} has no scale for {names}: {_REASON.get(method, 'it is zero')}; "
            "std and range always work"
        )
    return Scaling(method, centre, np.where(constant, 1.0, scale))


_REASON = {
    "vast": "the mean is zero",
    "level": "the mean is zero",
    "max": "the maximum is zero",
    "poisson": "the mean is not positive",
    "robust": "half of the values are equal",
}


def name_columns(names: Sequence[str] | None, at: NDArray[np.int64]) -> str:
    """Return the names of some columns for a message, or their numbers where they have no names; at most five."""
    found = [printable(names[i], 40) if names else f"column {i}" for i in at[:NAMED].tolist()]
    return ", ".join(found) + (f" and {len(at) - NAMED} more" if len(at) > NAMED else "")


def find_range(samples: Samples) -> float:
    """Return the range of all values of scaled samples: the largest less the smallest u."""
    assert samples.scaling is not None
    _, _, low, high = _measure(samples)
    return float(samples.scaling.apply(high).max() - samples.scaling.apply(low).min())


def compare_spread(samples: Samples) -> float:
    """Return how many times the largest standard deviation of a column is the smallest one, of columns that vary."""
    deviation = _measure(samples)[1]
    varying = deviation[deviation > 0]
    return float(varying.max() / varying.min()) if len(varying) else 1.0


def _measure(samples: Samples) -> tuple[Floats, Floats, Floats, Floats]:
    """Return mean, standard deviation, minimum and maximum of each column, (D,) each; a call of all processes."""
    shift, unit = None, np.ones(samples.D)
    low, high = np.full(samples.D, np.inf), np.full(samples.D, -np.inf)
    total, squares = np.zeros(samples.D), np.zeros(samples.D)
    for _, block in samples.stored_blocks():
        v = block.cpu().double().numpy()
        # Sums about a point inside the data: about zero, columns far from zero would cancel.
        # And in units of a power of two, which changes no digit: squares of 1e200 would overflow, of 1e-200 vanish.
        if shift is None:
            shift = v.mean(0)
            unit = np.exp2(np.frexp(np.abs(v - shift).max(0))[1])
        low, high = np.minimum(low, v.min(0)), np.maximum(high, v.max(0))
        v = (v - shift) / unit
        total += v.sum(0)
        squares += (v * v).sum(0)
    n = samples.N if samples.held is None else sum(map(len, samples.held))
    shift = np.zeros(samples.D) if shift is None else shift  # no rows are held
    mean = total / max(n, 1)
    deviation = np.sqrt(np.maximum(squares / max(n, 1) - mean * mean, 0.0))
    own = shift + unit * mean, unit * deviation, low, high
    return own if samples.held is None else _combine(n, own)


def _combine(n: int, own: tuple[Floats, Floats, Floats, Floats]) -> tuple[Floats, Floats, Floats, Floats]:
    """Return what `_measure` does for the rows of all processes, of which n are here and `own` is theirs."""
    listed = distributed.exchange([n, *(values.tolist() for values in own)])
    shares = [[np.array(values, np.float64) for values in one] for one in listed if one[0]]
    n_each, means, deviations, lows, highs = (np.stack(column) for column in zip(*shares, strict=True))
    share = (n_each / n_each.sum())[:, None]
    origin = means[0]
    mean = origin + (share * (means - origin)).sum(0)
    away = means - mean
    unit = np.exp2(np.frexp(np.maximum(deviations, np.abs(away)).max(0))[1])  # as in `_measure`
    variance = (share * ((deviations / unit) ** 2 + (away / unit) ** 2)).sum(0)
    return mean, unit * np.sqrt(variance), lows.min(0), highs.max(0)
