"""What passes over training rows give a codec: the grid, moments of latents, and the densities that follow from them.

Each latent gets a generalised Gaussian density exp(-|z / alpha|^s). For a given s the most likely scale is

    alpha^s = s mean |z|^s,      with the log-likelihood a row  ln(s / (2 alpha Gamma(1/s))) - 1/s,

so moments of a few powers are all that a pass collects. s is chosen for the e-th latent of all components together, and
alpha for each, where SMOOTHING rows distributed as in the other components are added to its own.
"""

import math
from collections.abc import Iterator

import numpy as np

from llgae_cli.codec.density import SHAPES, Integers
from llgae_cli.codec.encoder import LOG2_THETA
from llgae_cli.codec.exact import SCALES, Floats, group_rows
from llgae_cli.codec.grid import Grid
from llgae_cli.errors import InputError
from llgae_cli.tasks import Samples

CHUNK = 2048
SMOOTHING = 10.0


def read_rows(samples: Samples) -> Iterator[tuple[slice, Floats]]:
    """Yield rows as float64, scaled but not centred, chunk by chunk."""
    for low in range(0, samples.N, CHUNK):
        here = slice(low, min(low + CHUNK, samples.N))
        rows = samples.stored_array(here).astype(np.float64)
        yield here, rows if samples.scaling is None else samples.scaling.apply(rows)


class Moments:
    """Sums over rows, by component: count, z, z z^T and |z|^s for each s of SHAPES."""

    def __init__(self, K: int, E: int):
        self.count, self.sum, self.outer = np.zeros(K), np.zeros((K, E)), np.zeros((K, E, E))
        self.powers = np.zeros((len(SHAPES), K, E))

    def add(self, k: Integers, z: Floats) -> None:
        """Add latents z (n, E) of rows in components k (n,)."""
        for j, at in group_rows(k, len(self.count)):
            own = z[at]
            self.count[j] += len(at)
            self.sum[j] += own.sum(0)
            self.outer[j] += own.T @ own
            magnitude = np.abs(own)
            root = np.sqrt(magnitude)
            for powers, value in zip(self.powers, (root, magnitude, magnitude * root, own * own), strict=True):
                powers[j] += value.sum(0)

    def covariance(self) -> Floats:
        """Return (K, E, E); zero without rows."""
        n = np.maximum(self.count, 1)[:, None, None]
        mean = self.sum / n[:, :, 0]
        return self.outer / n - mean[:, :, None] * mean[:, None, :]

    def rotated_variances(self) -> Floats:
        """Return the eigenvalues of the covariance (K, E), falling."""
        return np.maximum(np.linalg.eigvalsh(self.covariance())[:, ::-1], 0.0)

    def fit_densities(self) -> tuple[Integers, Integers]:
        """Return shapes and scales (K, E), on their grids."""
        total = np.maximum(self.count.sum(), 1)
        pooled = self.powers.sum(1) / total  # (S, E)
        moment = (self.powers + SMOOTHING * pooled[:, None, :]) / (self.count[:, None] + SMOOTHING)
        s = np.array(SHAPES)[:, None, None]
        alpha = (s * np.maximum(moment, 1e-60)) ** (1 / s)
        gamma = np.array([math.lgamma(1 / each) for each in SHAPES])[:, None, None]
        likelihood = np.log(s / 2 / alpha) - gamma - 1 / s
        best = (likelihood * (self.count + 1e-9)[:, None]).sum(1).argmax(0)  # (E,)
        shape = np.broadcast_to(best, moment.shape[1:])
        return shape.astype(np.int64), round_scale(np.take_along_axis(alpha, shape[None], 0)[0])


def fit_grid(samples: Samples, offsets: list[Floats], constant: bool = False) -> Grid:
    """Return a grid around the mean of the rows that holds rows and the offsets (K, D) of all levels.

    `constant`: around a constant row, for codes with a shift.
    """
    total, squared = np.zeros(samples.D), 0.0
    for _, rows in read_rows(samples):
        total += rows.sum(0)
    origin = total / samples.N
    if constant:
        origin = np.full_like(origin, origin.mean())
    for _, rows in read_rows(samples):
        squared = max(squared, float(((rows - origin) ** 2).sum(1).max()))
    for i, mu in enumerate(offsets):
        squared = max(squared, float(((mu - (origin if i == 0 else 0.0)) ** 2).sum(1).max()))
    if not math.isfinite(squared):
        raise InputError("values too large to be coded")
    return Grid.fit(origin, math.sqrt(squared))


def choose_step(variances: list[Floats], mean_l2: float, offsets: list[Floats]) -> float:
    """Return the step at which theta is the variance of the last latents: smaller ones would be worth more latents.

    Theta is at least the mean L2 of what no latent codes, and the square of 2^-16 times the largest offset, so that a
    model without latents or without error has a step too.
    """
    last = [float(np.median(v[:, -1])) for v in variances if v.shape[1]]
    offset = max(float(np.abs(mu).max()) for mu in offsets)
    theta = max(min(last, default=0.0), mean_l2, (offset * 2.0**-16) ** 2, 1e-24)
    return math.sqrt(theta / 2 ** (LOG2_THETA / 65536))


def scales_of(variances: Floats, shape: Integers) -> Integers:
    """Return the scales on the grid of latents with these variances and shapes, all (K, E)."""
    ratio = np.array([math.gamma(1 / s) / math.gamma(3 / s) for s in SHAPES])[shape]  # alpha^2 / v
    return round_scale(np.sqrt(np.maximum(variances, 1e-300) * ratio))


def round_scale(alpha: Floats) -> Integers:
    """Return scales on the grid; the least one for latents that are always zero."""
    return np.clip(np.rint(SCALES * np.log2(np.maximum(alpha, 1e-150))), -32_000, 32_000).astype(np.int64)


def add_one(counts: Floats) -> Integers:
    """Return counts as integers, at least 1."""
    return np.rint(counts).astype(np.int64) + 1
