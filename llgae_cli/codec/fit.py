"""Fitting a codec to a trained model: principal axes, densities of the latents and frequencies, from training rows.

Each latent gets a generalised Gaussian density exp(-|z / alpha|^s). For a given s the most likely scale is

    alpha^s = s mean |z|^s,      with the log-likelihood a row  ln(s / (2 alpha Gamma(1/s))) - 1/s,

so moments of a few powers are all that a pass collects. s is chosen for the e-th latent of all components together, and
alpha for each, where SMOOTHING rows distributed as in the other components are added to its own.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llgae_cli.codec.activity import fit_activity
from llgae_cli.codec.density import SHAPES, Integers
from llgae_cli.codec.encoder import LOG2_THETA
from llgae_cli.codec.exact import SCALES, ExactDecoder, Floats, Level, Step, group_rows
from llgae_cli.codec.grid import Grid
from llgae_cli.codec.model import CodecModel
from llgae_cli.errors import InputError
from llgae_cli.models import LLGAE, Model, Residual, Shift
from llgae_cli.tasks import Samples
from llgae_cli.training import Quantisation

ROWS, ROWS_EACH = 20_000, 300  # training rows that are used: so many, or so many a component
CHUNK = 2048
SMOOTHING = 10.0
TYPICAL = SHAPES.index(1.5)

Assigned = tuple[Floats, Integers, Integers | None]  # rows (n, D), components k (n, L), shifts s (n,)


@dataclass(frozen=True, eq=False)
class Bases:
    """Offsets mu (K, D) and orthonormal bases U (K, D, E) of one level, for rows as they are stored."""

    mu: Floats
    U: Floats


def fit_codec(model: Model, samples: Samples, quantisation: Quantisation | None = None) -> CodecModel | None:
    """Return the codec of a model from its training samples; None where its decoder is not affine by component.

    `quantisation` is what it was trained for. None: the step is that at which the last latents are worth their bits.
    """
    levels, places = _parts(model)
    if not levels:
        return None
    n = min(samples.N, ROWS if quantisation else max(ROWS, ROWS_EACH * model.K))
    some = samples if n == samples.N and samples.held is None else samples.gather(torch.arange(n) * samples.N // n)
    centred = samples.centring == "sample"
    bases = [_make_bases(level, centred, i == 0) for i, level in enumerate(levels)]
    moments = [_Moments(base) for base in bases]
    if quantisation is None or centred:
        squared = 0.0
        for rows, k, _ in _encode(model, some, places):
            latents, rest = _project(bases, rows, k)
            for own, j, z in zip(moments, k.T, latents, strict=True):
                own.add(j, z)
            squared += float((rest * rest).sum())
        bases = [_rotate(base, own) for base, own in zip(bases, moments, strict=True)]
        variances_of = [own.rotated_variances() for own in moments]
        counts = [own.count for own in moments]
        step = quantisation.step if quantisation else _natural_step(variances_of, squared / (n * some.D), bases)
    else:
        step, v, p = quantisation
        variances_of, counts = [v.double().cpu().numpy()], [p.double().cpu().numpy() * samples.N]
    grid = _fit_grid(some, bases, places is not None)
    first = Step.nearest(step)
    shapes = [np.full(v.shape, TYPICAL) for v in variances_of]
    provisional = CodecModel(
        _decoder(bases, shapes, [_scales_of(*pair) for pair in zip(variances_of, shapes, strict=True)], places),
        tuple(_whole(own) for own in counts),
        None if places is None else np.ones((model.K, len(places)), np.int64),
        grid,
        first,
    )
    moments = [_Moments(base) for base in bases]
    shifts = None if places is None else np.zeros((model.K, len(places)), np.int64)
    for rows, k, s in _assign(model, some, places, provisional):
        for own, j, z in zip(moments, k.T, _project(bases, rows, k)[0], strict=True):
            own.add(j, z)
        if shifts is not None and s is not None:
            np.add.at(shifts, (k[:, 0], s), 1)
    densities = [own.fit_densities() for own in moments]
    if quantisation and not centred:  # from all training rows
        shape = densities[0][0]
        densities = [(shape, _scales_of(variances_of[0], shape))]
    return fit_activity(
        CodecModel(
            _decoder(bases, [shape for shape, _ in densities], [scale for _, scale in densities], places),
            tuple(_whole(own) for own in counts) if quantisation else tuple(_whole(own.count) for own in moments),
            shifts,
            grid,
            first,
            samples.scaling,
        ),
        some,
    )


def store_codec(model: CodecModel | None) -> dict[str, Tensor]:
    """Return the codec under the name that a checkpoint's `extras` have; nothing for None."""
    return {} if model is None else {"codec": torch.frombuffer(bytearray(model.pack()), dtype=torch.uint8)}


def _parts(model: Model) -> tuple[list[LLGAE], Integers | None]:
    """Return the levels of a model and the places of its shifts; no levels where the decoder is not affine."""
    if isinstance(model, Residual):
        return list(model.levels), None
    if isinstance(model, Shift):
        return [model.affine], model.places.cpu().numpy()
    affine = model.as_llgae()
    return ([] if affine is None else [affine]), None


def _make_bases(level: LLGAE, centred: bool, is_first: bool) -> Bases:
    """Return offsets and orthonormal bases; for centred samples with the constant row as the last latent."""
    mu, W = level.mu.detach().cpu().double().numpy(), level.W.detach().cpu().double().numpy()
    if centred:
        mu, W = mu - mu.mean(1, keepdims=True), W - W.mean(1, keepdims=True)
    length = np.sqrt((W * W).sum(1, keepdims=True))
    U = W / np.where(length > 0, length, 1.0)
    G = U.transpose(0, 2, 1) @ U
    if G.size and np.abs(G - np.eye(G.shape[1])).max() > 1e-4:
        U = np.linalg.svd(W, full_matrices=False)[0]
    if centred and is_first:
        K, D, _ = U.shape
        U = np.concatenate([U, np.full((K, D, 1), D**-0.5)], 2)
    return Bases(mu, U)


def _rows(samples: Samples) -> Iterator[tuple[slice, Floats]]:
    """Yield rows as float64, scaled but not centred, chunk by chunk."""
    for low in range(0, samples.N, CHUNK):
        here = slice(low, min(low + CHUNK, samples.N))
        rows = samples.stored_array(here).astype(np.float64)
        yield here, rows if samples.scaling is None else samples.scaling.apply(rows)


@torch.no_grad()
def _encode(model: Model, samples: Samples, places: Integers | None) -> Iterator[Assigned]:
    """Yield rows without their shift, components (n, L) and shifts (n,) as the model itself encodes them."""
    for here, rows in _rows(samples):
        code = model.encode(samples.rows(here))
        k = code.k[:, None].cpu()
        if places is None:
            more = code.s
            yield rows, (k if more is None else torch.cat([k, more.cpu()], 1)).numpy(), None
        else:
            assert isinstance(model, Shift)
            s = model.shift_index(code).cpu().numpy()
            yield np.take_along_axis(rows, np.argsort(places, 1, kind="stable")[s], 1), k.numpy(), s


def _assign(model: Model, samples: Samples, places: Integers | None, provisional: CodecModel) -> Iterator[Assigned]:
    """Yield as `_encode` does; components of a model with one level and no shift are those of the least score."""
    if places is not None or len(provisional.decoder.levels) > 1:
        yield from _encode(model, samples, places)
        return
    prepared = provisional.encoder.prepare(provisional.step, 0)
    for _, rows in _rows(samples):
        y, fits = provisional.grid.round(rows)
        yield rows[fits], prepared[0].measure(torch.from_numpy(y[fits])).candidates[:, :1].numpy(), None


def _project(bases: list[Bases], rows: Floats, k: Integers) -> tuple[list[Floats], Floats]:
    """Return the latents z (n, E) of each level, each for what the levels before it leave, and what all leave."""
    rest, latents = rows.copy(), []
    for base, own in zip(bases, k.T, strict=True):
        z = np.empty((len(rows), base.U.shape[2]))
        for j, at in group_rows(own, len(base.mu)):
            rest[at] -= base.mu[j]
            z[at] = rest[at] @ base.U[j]
            rest[at] -= z[at] @ base.U[j].T
        latents.append(z)
    return latents, rest


class _Moments:
    """Sums over rows, by component: count, z, z z^T and |z|^s for each s of SHAPES."""

    def __init__(self, base: Bases):
        K, _, E = base.U.shape
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
        return shape.astype(np.int64), _round_scale(np.take_along_axis(alpha, shape[None], 0)[0])


def _rotate(base: Bases, moments: _Moments) -> Bases:
    """Return the same subspaces with the mean latents in the offsets, and along the principal axes of the latents."""
    mean = moments.sum / np.maximum(moments.count, 1)[:, None]
    _, R = np.linalg.eigh(moments.covariance())
    return Bases(base.mu + (base.U @ mean[:, :, None])[:, :, 0], base.U @ R[:, :, ::-1])


def _fit_grid(samples: Samples, bases: list[Bases], constant: bool) -> Grid:
    """Return a grid around the mean of the rows that holds rows and offsets; with shifts, around a constant row."""
    total, squared = np.zeros(samples.D), 0.0
    for _, rows in _rows(samples):
        total += rows.sum(0)
    origin = total / samples.N
    if constant:
        origin = np.full_like(origin, origin.mean())
    for _, rows in _rows(samples):
        squared = max(squared, float(((rows - origin) ** 2).sum(1).max()))
    for i, base in enumerate(bases):
        squared = max(squared, float(((base.mu - (origin if i == 0 else 0.0)) ** 2).sum(1).max()))
    if not math.isfinite(squared):
        raise InputError("values too large to be coded")
    return Grid.fit(origin, math.sqrt(squared))


def _natural_step(variances: list[Floats], mean_l2: float, bases: list[Bases]) -> float:
    """Return the step at which theta is the variance of the last latents: smaller ones would be worth more latents.

    Theta is at least the mean L2 of what no latent codes, and the square of 2^-16 times the largest offset, so that a
    model without latents or without error has a step too.
    """
    last = [float(np.median(v[:, -1])) for v in variances if v.shape[1]]
    offset = max(float(np.abs(base.mu).max()) for base in bases)
    theta = max(min(last, default=0.0), mean_l2, (offset * 2.0**-16) ** 2, 1e-24)
    return math.sqrt(theta / 2 ** (LOG2_THETA / 65536))


def _scales_of(variances: Floats, shape: Integers) -> Integers:
    """Return the scales on the grid of latents with these variances and shapes, all (K, E)."""
    ratio = np.array([math.gamma(1 / s) / math.gamma(3 / s) for s in SHAPES])[shape]  # alpha^2 / v
    return _round_scale(np.sqrt(np.maximum(variances, 1e-300) * ratio))


def _round_scale(alpha: Floats) -> Integers:
    """Return scales on the grid; the least one for latents that are always zero."""
    return np.clip(np.rint(SCALES * np.log2(np.maximum(alpha, 1e-150))), -32_000, 32_000).astype(np.int64)


def _whole(counts: Floats) -> Integers:
    return np.rint(counts).astype(np.int64) + 1


def _decoder(
    bases: list[Bases], shapes: list[Integers], scales: list[Integers], places: Integers | None
) -> ExactDecoder:
    parts = zip(bases, shapes, scales, strict=True)
    return ExactDecoder(tuple(Level.round(base.mu, base.U, shape, scale) for base, shape, scale in parts), places)
