"""The expected rate of a mixture at a quantiser step, and the step at which it meets a given rate.

A latent of standard deviation sigma has the density of a generalised Gaussian, proportional to exp(-|z / alpha|^s).
It is rounded with the step Delta by rate-distortion optimised rounding: to the nearest multiple of Delta, or to the
next one toward 0 where the bits that this saves are worth the error. The bits are those of a table that has the
probabilities of plain rounding. Their mean h depends on sigma / Delta only.

Source: Sullivan, Efficient scalar quantization of exponential and Laplacian random variables, IEEE Trans. Inf. Theory
42 (1996); the variance of a generalised Gaussian: Varanasi and Aazhang, J. Acoust. Soc. Am. 86 (1989).
"""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from llgae_cli.training.mixture import Mixture

TRADE_OFF = 0.08  # c = lambda / Delta^2, the price of a bit
SHAPE = 1.5  # the exponent s
PER_OCTAVE = 8  # points of the tabulated curve
LOWEST, HIGHEST = -5, 6  # log2(sigma / Delta): below no bits are needed, above the curve has the slope 1
POINTS = 32  # of the density in a cell
REACH = 12  # standard deviations that the density is tabulated over
BISECTIONS = 60


def step_to_theta(step: float) -> float:
    """Return theta = lambda / (2 ln 2) with lambda = c Delta^2: the least variance of a latent that gets bits."""
    return TRADE_OFF * step**2 / (2 * math.log(2))


@cache
def tabulate_bits() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points log2(sigma / Delta) and the bits h of a latent there, by summation over the density."""
    log_ratio = np.arange(LOWEST * PER_OCTAVE, HIGHEST * PER_OCTAVE + 1) / PER_OCTAVE
    return log_ratio, np.array([_sum_bits(2.0**x) for x in log_ratio])


def _sum_bits(sigma: float) -> float:
    """Return the bits of a latent of standard deviation `sigma`, in units of the step."""
    alpha = sigma * math.exp((math.lgamma(1 / SHAPE) - math.lgamma(3 / SHAPE)) / 2)
    M = math.ceil(REACH * sigma) + 3
    z = np.arange(-M * POINTS, M * POINTS + 1) / POINTS
    density = np.exp(-((np.abs(z) / alpha) ** SHAPE))
    density /= density.sum()
    nearest = np.sign(z) * np.floor(np.abs(z) + 0.5)
    cell = nearest.astype(int) + M
    bits = -np.log2(np.bincount(cell, density, 2 * M + 1).clip(1e-12, 1))  # at most 40: the tails would have more
    inward = np.sign(nearest) * (np.abs(nearest) - 1).clip(min=0)
    inward_cell = inward.astype(int) + M
    saving = TRADE_OFF * (bits[cell] - bits[inward_cell])
    chosen = np.where((z - inward) ** 2 - (z - nearest) ** 2 < saving, inward_cell, cell)
    return float((density * bits[chosen]).sum())


def expect_bits(mixture: Mixture, step: float) -> float:
    """Return sum_k p_k (-log2 p_k + sum_e h(sigma_ke / Delta)), the expected bits a sample at the step Delta."""
    p = mixture.p.double().cpu().numpy()
    log_ratio, curve = tabulate_bits()
    with np.errstate(divide="ignore"):
        x = np.log2(np.sqrt(mixture.v.double().cpu().numpy()) / step)
    bits = np.interp(x, log_ratio, curve, left=0.0) + (x - HIGHEST).clip(min=0)
    return float((p * bits.sum(1)).sum() - (p * np.log2(p, where=p > 0, out=np.zeros_like(p))).sum())


def solve_step(mixture: Mixture, bits: float) -> float:
    """Return the step at which the expected rate is `bits` a sample, by bisection of its logarithm.

    The choice of the component alone must not need more, as for K <= 2^bits. Where even a step of 2^-40 times the
    largest standard deviation needs less, as for few latents, that step is returned.
    """
    largest = float(mixture.v.max().sqrt()) if mixture.v.numel() else 0.0
    unit = math.log2(largest) if largest > 0 else 0.0
    low, high = unit - 40, unit - LOWEST + 1  # at the high end no latent gets a bit
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if expect_bits(mixture, 2.0**middle) > bits:
            low = middle
        else:
            high = middle
    return 2.0**high
