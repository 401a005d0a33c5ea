"""Fitting a codec to a trained model: principal axes, densities of the latents and frequencies, from training rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llgae_cli.codec.activity import fit_activity
from llgae_cli.codec.density import SHAPES, Integers
from llgae_cli.codec.exact import ExactDecoder, Floats, Level, Step, group_rows
from llgae_cli.codec.fit_network import fit_network_codec
from llgae_cli.codec.model import CodecModel
from llgae_cli.codec.moments import Moments, add_one, choose_step, fit_grid, read_rows, scales_of
from llgae_cli.models import GAE, LLGAE, Model, Residual, Shift
from llgae_cli.tasks import Samples
from llgae_cli.training import Quantisation

ROWS, ROWS_EACH = 20_000, 300  # training rows that are used: so many, or so many a component
TYPICAL = SHAPES.index(1.5)

Assigned = tuple[Floats, Integers, Integers | None]  # rows (n, D), components k (n, L), shifts s (n,)


@dataclass(frozen=True, eq=False)
class Bases:
    """Offsets mu (K, D) and orthonormal bases U (K, D, E) of one level, for rows as they are stored."""

    mu: Floats
    U: Floats


def fit_codec(model: Model, samples: Samples, quantisation: Quantisation | None = None) -> CodecModel | None:
    """Return the codec of a model from its training samples.

    None where its decoder is not affine by component, except for a network that has an affine start.
    `quantisation` is what it was trained for. None: the step is that at which the last latents are worth their bits.
    """
    if has_network_start(model):
        assert isinstance(model, GAE)
        return fit_network_codec(model, samples, None if quantisation is None else quantisation.step)
    levels, places = _parts(model)
    if not levels:
        return None
    n = min(samples.N, ROWS if quantisation else max(ROWS, ROWS_EACH * model.K))
    some = samples if n == samples.N and samples.held is None else samples.gather(torch.arange(n) * samples.N // n)
    centred = samples.centring == "sample"
    bases = [_make_bases(level, centred, i == 0) for i, level in enumerate(levels)]
    moments = [Moments(len(base.mu), base.U.shape[2]) for base in bases]
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
        offsets = [base.mu for base in bases]
        step = quantisation.step if quantisation else choose_step(variances_of, squared / (n * some.D), offsets)
    else:
        step, v, p = quantisation
        variances_of, counts = [v.double().cpu().numpy()], [p.double().cpu().numpy() * samples.N]
    grid = fit_grid(some, [base.mu for base in bases], places is not None)
    first = Step.nearest(step)
    shapes = [np.full(v.shape, TYPICAL) for v in variances_of]
    provisional = CodecModel(
        _decoder(bases, shapes, [scales_of(*pair) for pair in zip(variances_of, shapes, strict=True)], places),
        tuple(add_one(own) for own in counts),
        None if places is None else np.ones((model.K, len(places)), np.int64),
        grid,
        first,
    )
    moments = [Moments(len(base.mu), base.U.shape[2]) for base in bases]
    shifts = None if places is None else np.zeros((model.K, len(places)), np.int64)
    for rows, k, s in _assign(model, some, places, provisional):
        for own, j, z in zip(moments, k.T, _project(bases, rows, k)[0], strict=True):
            own.add(j, z)
        if shifts is not None and s is not None:
            np.add.at(shifts, (k[:, 0], s), 1)
    densities = [own.fit_densities() for own in moments]
    if quantisation and not centred:  # from all training rows
        shape = densities[0][0]
        densities = [(shape, scales_of(variances_of[0], shape))]
    return fit_activity(
        CodecModel(
            _decoder(bases, [shape for shape, _ in densities], [scale for _, scale in densities], places),
            tuple(add_one(own) for own in counts) if quantisation else tuple(add_one(own.count) for own in moments),
            shifts,
            grid,
            first,
            samples.scaling,
        ),
        some,
    )


def has_network_start(model: Model) -> bool:
    """Return whether a model has latents, a decoder network, and an affine model where the search for a code begins."""
    return isinstance(model, GAE) and model.affine is not None and model.decoder.network is not None and model.E > 0


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


@torch.no_grad()
def _encode(model: Model, samples: Samples, places: Integers | None) -> Iterator[Assigned]:
    """Yield rows without their shift, components (n, L) and shifts (n,) as the model itself encodes them."""
    for here, rows in read_rows(samples):
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
    for _, rows in read_rows(samples):
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


def _rotate(base: Bases, moments: Moments) -> Bases:
    """Return the same subspaces with the mean latents in the offsets, and along the principal axes of the latents."""
    mean = moments.sum / np.maximum(moments.count, 1)[:, None]
    _, R = np.linalg.eigh(moments.covariance())
    return Bases(base.mu + (base.U @ mean[:, :, None])[:, :, 0], base.U @ R[:, :, ::-1])


def _decoder(
    bases: list[Bases], shapes: list[Integers], scales: list[Integers], places: Integers | None
) -> ExactDecoder:
    parts = zip(bases, shapes, scales, strict=True)
    return ExactDecoder(tuple(Level.round(base.mu, base.U, shape, scale) for base, shape, scale in parts), places)
