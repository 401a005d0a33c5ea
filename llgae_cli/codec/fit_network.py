"""Fitting a codec to a model with a decoder network: coordinates of the latents, densities and frequencies.

A quantiser with one step is right for coordinates z in which equal steps cost equal error. With J = dg / db, and the
mean H_k of J^T J over training codes of component k,

    b = centre_k + T_k z,    T_k = H_k^(-1/2) R_k,

so that |dx|^2 is about |dz|^2. centre_k is the mean of b, and the columns of R_k are the principal axes of H_k^(1/2) b,
the largest first: the coordinates are not correlated. A model for a rate has learnt a step for each b_e (see
`models.latent_rate`), under which the error is higher; the size of these steps gives the model's own step.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from llgae_cli.codec.activity import fit_activity
from llgae_cli.codec.density import Integers
from llgae_cli.codec.exact import ExactDecoder, Floats, Level, Step, group_rows
from llgae_cli.codec.model import CodecModel
from llgae_cli.codec.moments import Moments, add_one, choose_step, fit_grid, read_rows
from llgae_cli.codec.network import FixedNetwork
from llgae_cli.codec.network_encoder import NetworkEncoder
from llgae_cli.codec.network_start import Start
from llgae_cli.models import GAE, Code, LatentRate
from llgae_cli.models.networks import ConvDecoder
from llgae_cli.tasks import Samples

ROWS = 6000  # training rows that are used: BFGS takes some milliseconds each
ACTIVITY_ROWS = 2048
JACOBIANS, JACOBIAN_VALUES = 24, 1 << 20  # codes of a component, at most; values of J at a time
FLOOR = 1e-4  # of the eigenvalues of H_k, over the largest
LARGEST_U = 1.9  # of the entries of U_k, which fixed point holds


@dataclass(frozen=True, eq=False)
class Coordinates:
    """b = centre_k + T_k z, T (K, E, E) and centre (K, E); `constant` (K,) is the mean latent of the constant row."""

    T: Floats
    centre: Floats
    constant: Floats


def fit_network_codec(model: GAE, samples: Samples, step: float | None = None) -> CodecModel:
    """Return the codec of a model with a network and an affine start, from its training samples.

    `step` is what it was trained for. None: that at which the last latents are worth their bits.
    """
    n = min(samples.N, ROWS)
    some = samples if n == samples.N and samples.held is None else samples.gather(torch.arange(n) * samples.N // n)
    centred = samples.centring == "sample"
    H, centre = _measure_curvature(model, some, centred)
    if step is None and model.rate is not None:
        step = _measure_step(model.rate, H)
    coordinates = Coordinates(_invert_roots(H), centre, np.zeros(model.K))
    mu, U = _make_bases(model, coordinates, centred)
    grid, start = fit_grid(some, [mu]), Start.pack(model)

    K, _, E = U.shape
    blank = Moments(K, E)
    provisional = _make_decoder(model, coordinates, centred, blank)
    # Without R: densities of latents that pay for their bits would make small latents smaller still.
    encoder = NetworkEncoder(provisional, np.ones(K, np.int64), grid, start, step=None)
    placed = [grid.round(rows) for _, rows in read_rows(some)]
    measured = [encoder.measure_latents(y[fits]) for y, fits in placed]
    k, z, squared = (np.concatenate(column) for column in zip(*measured, strict=True))
    moments = Moments(K, E)
    moments.add(k, z)
    coordinates, z = _turn(coordinates, moments, k, z, model.E)
    moments = Moments(K, E)
    moments.add(k, z)
    if step is None:
        variances = moments.powers[-1] / np.maximum(moments.count, 1)[:, None]
        step = choose_step([variances[:, : model.E]], float(squared.mean()) / some.D, [mu])
    codec = CodecModel(
        _make_decoder(model, coordinates, centred, moments),
        (add_one(moments.count),),
        None,
        grid,
        Step.nearest(step),
        samples.scaling,
        start,
    )
    return fit_activity(codec, some, ACTIVITY_ROWS)


@torch.no_grad()
def _measure_curvature(model: GAE, samples: Samples, centred: bool) -> tuple[Floats, Floats]:
    """Return the mean of J^T J over codes of each component, (K, E, E), and the mean of b there, (K, E).

    `centred`: of J less its part along the constant row, which has a latent of its own.
    """
    at = torch.arange(min(samples.N, 2 * JACOBIANS * model.K))
    assert model.affine is not None
    start = Start(model.affine, model.guide, float(model.decoder.unit))
    k, latents = start.encode(samples.rows(at * samples.N // len(at)).to(model.device))
    H, centre = np.zeros((model.K, model.E, model.E)), np.zeros((model.K, model.E))
    for j in range(model.K):
        own = latents[k == j].float()
        if len(own) == 0:
            own = torch.zeros(1, model.E)
        centre[j] = own.cpu().double().mean(0).numpy()
        own = own[:JACOBIANS]
        for b in own.split(max(1, JACOBIAN_VALUES // (model.D * model.E))):
            J = model.jacobian(Code(torch.full((len(b),), j), b)).cpu().double()
            if centred:
                J -= J.mean(1, keepdim=True)
            H[j] += (J.mT @ J).sum(0).numpy() / len(own)
    return H, centre


def _invert_roots(H: Floats) -> Floats:
    """Return H_k^(-1/2), (K, E, E); small eigenvalues of H_k count as FLOOR of the largest."""
    values, axes = np.linalg.eigh(H)
    values = np.maximum(values, np.maximum(FLOOR * values[:, -1:], 1e-30))
    T: Floats = (axes / np.sqrt(values)[:, None, :]) @ axes.transpose(0, 2, 1)
    return T


def _measure_step(rate: LatentRate, H: Floats) -> float:
    """Return what a step that a model for a rate has learnt changes in x, the geometric mean.

    Of the latents whose spread is above their step: the steps of others grow until these are constants.
    """
    log_step, log_spread = (each.detach().cpu().double().numpy() for each in (rate.log_step, rate.log_spread))
    lengths = log_step + np.log(np.maximum(np.diagonal(H, axis1=1, axis2=2), 1e-30)) / 2
    coded = log_spread > log_step
    return float(np.exp((lengths[coded] if coded.any() else lengths).mean()))


def _turn(coordinates: Coordinates, moments: Moments, k: Integers, z: Floats, E: int) -> tuple[Coordinates, Floats]:
    """Return coordinates with a zero mean of z, along its principal axes, and z (n, E or E + 1) in them."""
    T, centre, constant = coordinates.T.copy(), coordinates.centre.copy(), coordinates.constant.copy()
    z, covariance = z.copy(), moments.covariance()[:, :E, :E]
    for j, own in group_rows(k, len(T)):
        mean = moments.sum[j] / moments.count[j]
        R = np.linalg.eigh(covariance[j])[1][:, ::-1]
        centre[j] += T[j] @ mean[:E]
        T[j] = T[j] @ R
        z[own] -= mean
        z[own, :E] = z[own, :E] @ R
        constant[j] += mean[E:].sum()
    return Coordinates(T, centre, constant), z


def _make_bases(model: GAE, coordinates: Coordinates, centred: bool) -> tuple[Floats, Floats]:
    """Return mu (K, D) and U (K, D, E) of the decoder's affine part; with the constant row as the last latent."""
    pieces = model.decoder.pieces
    if pieces is None:
        mu, W = np.zeros((model.K, model.D)), np.zeros((model.K, model.D, model.E))
    else:
        mu, W = (parameter.detach().cpu().double().numpy() for parameter in (pieces.mu, pieces.W))
    mu, U = mu + (W @ coordinates.centre[:, :, None])[:, :, 0], W @ coordinates.T
    if centred:
        mu, U = mu - mu.mean(1, keepdims=True), U - U.mean(1, keepdims=True)
        mu = mu + coordinates.constant[:, None] * model.D**-0.5
        U = np.concatenate([U, np.full((model.K, model.D, 1), model.D**-0.5)], 2)
    return mu, U


def _make_decoder(model: GAE, coordinates: Coordinates, centred: bool, moments: Moments) -> ExactDecoder:
    """Return the decoder in fixed point, with the densities that the moments give."""
    mu, U = _make_bases(model, coordinates, centred)
    T = coordinates.T
    excess = np.maximum(np.abs(U).max(1, initial=0.0)[:, : model.E] / LARGEST_U, 1.0)  # of latents that hardly count
    if excess.max(initial=1.0) > 1.0:
        T, U = T / excess[:, None, :], U.copy()
        U[:, :, : model.E] /= excess[:, None, :]
    network = model.decoder.network
    assert network is not None
    sides = (*network.shape, network.colours) if isinstance(network, ConvDecoder) else ()
    parameters = {name: tensor.cpu().double().numpy() for name, tensor in network.state_dict().items()}
    fixed = FixedNetwork.round(parameters, sides, float(model.decoder.unit), T, coordinates.centre)
    level = Level.round(mu, U, *moments.fit_densities())
    return ExactDecoder((replace(level, network=fixed),))
