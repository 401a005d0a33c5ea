"""Novelty scores of rows: squared residual, distance within the component, and negative log-likelihood.

An affine model is read as a mixture of K probabilistic PCAs. For component k with the orthonormal basis A_k (D, E) of
its subspace, in the principal axes of the training rows that it codes, and their mean m_k (D,),

    p(x)  = sum_k pi_k N(x; m_k, S_k),    S_k = A_k diag(lambda_k) A_k^T + sigma_k^2 (I - A_k A_k^T)
    z_k   = A_k^T (x - m_k)
    Q_k   = |x - m_k|^2 - |z_k|^2                                  squared distance from the subspace through m_k
    -2 log N(x; m_k, S_k) = D log 2 pi + sum_e log lambda_ke + (D - E) log sigma_k^2
                            + sum_e z_ke^2 / lambda_ke + Q_k / sigma_k^2

pi_k is the share of the training rows in component k, lambda_k (E,) and sigma_k^2 are their mean squares along the axes
and, a dimension, outside them: the maximum of the likelihood for given subspaces and given components of the rows.

A component with few rows has variances that are too small along directions fitted to these rows. So each variance is
averaged with the mean over all components, as if `PRIOR` further rows had that mean:

    lambda_ke <- (n_k lambda_ke + PRIOR mean_k lambda_ke) / (n_k + PRIOR),    sigma_k^2 likewise

Sources: Tipping and Bishop, Mixtures of probabilistic principal component analysers, Neural Computation 11 (1999);
Jackson and Mudholkar, Control procedures for residuals associated with principal component analysis, Technometrics 21
(1979), for Q and T^2.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from llgae_cli import distributed
from llgae_cli.config import Config
from llgae_cli.errors import InputError, printable
from llgae_cli.evaluation.encoding import CHUNK
from llgae_cli.evaluation.latents import Latents
from llgae_cli.evaluation.metrics import Measured, measure
from llgae_cli.factory import describe_loading, restore
from llgae_cli.models import LLGAE, Model
from llgae_cli.storage import Checkpoint
from llgae_cli.tasks import Samples, load_task, take_part
from llgae_cli.threads import limit_threads

Score = Literal["nll", "spe", "t2"]
SCORES: tuple[Score, ...] = ("nll", "spe", "t2")
QUANTILES = (0.9, 0.95, 0.99, 0.999)
logger = logging.getLogger(__name__)

PRIOR = 1.0  # rows
FLOOR = 1e-10  # least variance, as a share of the mean variance of the data in a dimension
THRESHOLD_ROWS = 1 << 15  # training rows whose scores give the thresholds, at most
CANCELLED = 1e-2  # a squared distance below this share of the squares it is a difference of is computed again
GROUP_VALUES = 1 << 20  # values of z at a time: 4 MB, which a cache holds
KEYS = ("count", "mean", "axes", "variance", "noise", "quantiles")  # tensors in a checkpoint


@dataclass(frozen=True, eq=False)
class Density:
    """A mixture of probabilistic PCAs (see the module).

    count     training rows of each component, (K,) float64; pi = count / sum(count)
    mean      m, (K, D)
    axes      A, (K, D, E): orthonormal columns, most variance first
    variance  lambda, (K, E) float64, above zero
    noise     sigma^2, (K,) float64, above zero; not used where E = D
    """

    count: Tensor
    mean: Tensor
    axes: Tensor
    variance: Tensor
    noise: Tensor

    @torch.no_grad()
    def negative_log_likelihood(self, x: Tensor) -> Tensor:
        """Return -log p(x) of each row of x (n, D), in nat, shape (n,) float64.

        Products are in the type of x; a squared distance that is a small difference of large squares is computed again
        from x - m_k, and what is summed over components is float64.
        """
        K, D, E = self.axes.shape
        share = self.count / self.count.sum()
        constant = D * math.log(2 * math.pi) + self.variance.log().sum(1) + (D - E) * self.noise.log()
        origin = (share.to(self.mean) @ self.mean).to(x)
        x, mean, axes = x - origin, self.mean.to(x) - origin, self.axes.to(x)
        squares = x.square().sum(1, keepdim=True)
        log_p = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
        size = max(1, GROUP_VALUES // max(1, len(x) * (E + 1)))
        for low in range(0, K, size):
            here = slice(low, low + size)
            z, distance = _project(x, squares, mean[here], axes[here])
            form = (z.square() / self.variance[here].to(x)).sum(2, dtype=torch.float64)
            if D > E:
                form += distance / self.noise[here]
            log_each = share[here].log() - (constant[here] + form) / 2
            log_p = torch.logaddexp(log_p, torch.logsumexp(log_each, 1))
        return -log_p

    @torch.no_grad()
    def t2(self, x: Tensor, k: Tensor) -> Tensor:
        """Return Hotelling's T^2 = sum_e z_ke^2 / lambda_ke of each row of x (n, D) in component k (n,), (n,) float64.

        It is the squared Mahalanobis distance of the latents b from their mean in the component: an invertible linear
        map leads from z to b, and does not change it.
        """
        t2 = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for j, rows in _by_component(k, len(self.count)):
            z = ((x[rows] - self.mean[j].to(x)) @ self.axes[j].to(x)).double()
            t2[rows] = (z.square() / self.variance[j]).sum(1)
        return t2

    def latents(self, mu: Tensor, U: Tensor) -> Latents:
        """Return the statistics of codes b = U_k^T (x - mu_k), for mu (K, D) and orthonormal U (K, D, E).

        The columns of U_k span the axes of component k. Covariances have the density's shrinkage.
        """
        U, axes = U.double(), self.axes.double()
        mean = torch.einsum("kde,kd->ke", U, self.mean.double() - mu.double())
        B = U.mT @ axes  # (K, E, E)
        return Latents(self.count.float(), mean.float(), (B * self.variance[:, None, :] @ B.mT).float())

    def to(self, device: torch.device) -> "Density":
        """Return the density with its tensors on a device."""
        return Density(*(tensor.to(device) for tensor in vars(self).values()))


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of n rows, the higher the more novel.

    k    component of the row's code, (n,) int64
    spe  |x - x_hat|^2, the squared prediction error or Q statistic, (n,) float64, in squared units of x
    t2   Hotelling's T^2 of the latents in component k, (n,) float64
    nll  -log p(x), (n,) float64, in nat
    """

    k: Tensor
    spe: Tensor
    t2: Tensor
    nll: Tensor


@dataclass(frozen=True, eq=False)
class Novelty:
    """Scores rows by a trained affine model, its density and its thresholds.

    thresholds  for each score its quantiles over the training rows, at QUANTILES
    """

    model: LLGAE
    density: Density
    thresholds: Mapping[Score, tuple[float, ...]]

    def score(self, samples: Samples) -> Iterator[tuple[slice, Scores]]:
        """Yield the scores of all samples in order, chunk by chunk: (slice of the rows, scores)."""
        model, density = self.model, self.density
        for rows, x in samples.chunks(CHUNK, dtype=model.mu.dtype):
            with torch.no_grad():
                code = model.encode(x)
                spe = model.residual(x, code).square_().sum(1).double()
            yield rows, Scores(code.k, spe, density.t2(x, code.k), density.negative_log_likelihood(x))

    def threshold(self, score: Score, quantile: float) -> float:
        """Return the quantile of a score over the training rows. Raises InputError for one that is not kept."""
        if quantile not in QUANTILES:
            allowed = ", ".join(map(str, QUANTILES))
            raise InputError(f"quantile {quantile:g}: thresholds are kept for {allowed}")
        return self.thresholds[score][QUANTILES.index(quantile)]

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint keeps; `read_novelty` reads them."""
        quantiles = torch.tensor([self.thresholds[score] for score in SCORES], dtype=torch.float64)
        return {**vars(self.density), "quantiles": quantiles}


def affine_part(model: Model) -> LLGAE:
    """Return the model's affine subspaces. Raises InputError for a model that is more than those."""
    affine = model.as_llgae()
    if affine is None:
        name = type(model).__name__.lower()
        raise InputError(f"score: the model is of class {name}; only llgae, pca and kmeans have a density")
    return affine


@torch.no_grad()
def fit_density(model: LLGAE, samples: Samples, k: Tensor, prior: float = PRIOR) -> Density:
    """Return the density of the samples under the model's subspaces, in one pass over them.

    `k` (N,) are the components of the samples' codes, `prior` is the strength of the shrinkage of variances in rows
    (see the module). Sums are float64, about mu_k. Under torchrun all processes call it.
    """
    K, D, E = model.W.shape
    device, double = model.mu.device, torch.float64
    Q = torch.linalg.qr(model.W.detach().double())[0].to(model.mu)  # (K, D, E)
    count, outside = torch.zeros(K, dtype=double, device=device), torch.zeros(K, dtype=double, device=device)
    first, first_outside = count.new_zeros(K, E), count.new_zeros(K, D)
    second = count.new_zeros(K, E, E)
    chunks = (samples.chunks(CHUNK, model.mu.dtype, here.start, here.stop) for here in take_part(samples).ranges)
    for here, x in chain.from_iterable(chunks):
        for j, rows in _by_component(k[here].to(device).long(), K):
            r = x[rows] - model.mu[j]
            z = r @ Q[j]
            r.addmm_(z, Q[j].T, alpha=-1)
            count[j] += len(rows)
            first[j] += z.sum(0, dtype=double)
            second[j] += z.T @ z
            first_outside[j] += r.sum(0, dtype=double)
            outside[j] += r.square().sum(1).sum(dtype=double)
    distributed.sum_([count, outside, first, first_outside, second])
    n = count.clamp(min=1)
    centre, centre_outside = first / n[:, None], first_outside / n[:, None]
    covariance = second / n[:, None, None] - centre[:, :, None] * centre[:, None, :]
    variance, V = torch.linalg.eigh(covariance)
    variance, V = variance.flip(-1).clamp(min=0), V.flip(-1)
    noise = (outside / n - centre_outside.square().sum(1)).clamp(min=0) / max(1, D - E)
    floor = _floor(count, variance, noise, D)
    axes = Q.double() @ V
    mean = model.mu.double() + (Q.double() @ centre[:, :, None])[:, :, 0] + centre_outside
    return Density(
        count,
        mean.to(model.mu),
        axes.to(model.mu),
        _shrink(variance, count, prior).clamp(min=floor),
        _shrink(noise[:, None], count, prior)[:, 0].clamp(min=floor),
    )


def fit_novelty(model: Model, samples: Samples, measured: Measured | None = None) -> Novelty:
    """Return what scores rows, fitted to the training samples: one pass for the density and one for thresholds.

    `measured` is a result of `measure` for the same samples; without it, that is one pass more. Thresholds are
    quantiles of the scores of at most THRESHOLD_ROWS rows, evenly spaced. Raises InputError as `affine_part`.
    """
    affine = affine_part(model)
    measured = measure(affine, samples, peak=1.0) if measured is None else measured
    return fit_novelty_to_codes(affine, samples, measured.k, measured.squared)


@torch.no_grad()
def fit_novelty_to_codes(affine: LLGAE, samples: Samples, k: Tensor, squared: Tensor) -> Novelty:
    """Return `fit_novelty` of samples whose component k (N,) and squared residual |x - x_hat|^2 (N,) are known."""
    density = fit_density(affine, samples, k)
    step = -(-samples.N // THRESHOLD_ROWS)
    few, k = samples.gather(slice(None, None, step)), k[::step].to(samples.device).long()
    values = {"spe": squared[::step].double(), "nll": torch.empty(few.N, dtype=torch.float64)}
    values["t2"] = values["nll"].clone()
    for here, x in few.chunks(CHUNK, dtype=affine.mu.dtype):
        values["nll"][here] = density.negative_log_likelihood(x).cpu()
        values["t2"][here] = density.t2(x, k[here]).cpu()
    at = torch.tensor(QUANTILES, dtype=torch.float64)
    return Novelty(affine, density, {score: tuple(_quantiles(values[score], at).tolist()) for score in SCORES})


def describe_projections(novelty: Mapping[str, NDArray[Any]], mu: NDArray[Any], U: NDArray[Any]) -> dict[str, Any]:
    """Return the extras of a checkpoint whose codes are b = U_k^T (x - mu_k), of mu (K, D) and orthonormal U (K, D, E).

    `novelty`: the tensors of `Novelty.stored` as arrays. The statistics of the codes are those of its density.
    """
    stored = {name: torch.tensor(array) for name, array in novelty.items()}
    density = Density(*(stored[name] for name in KEYS if name != "quantiles"))
    return {"novelty": stored, **density.latents(torch.tensor(mu), torch.tensor(U)).stored()}


def read_novelty(extras: dict[str, Any], model: Model, path: Path) -> Novelty | None:
    """Return the novelty in a checkpoint's `extras`; None where the file has none, as those of earlier versions.

    Raises InputError where it does not fit the model.
    """
    stored = extras.get("novelty")
    if stored is None:
        return None
    affine = affine_part(model)
    K, D, E = affine.W.shape
    sizes = ((K,), (K, D), (K, D, E), (K, E), (K,), (len(SCORES), len(QUANTILES)))
    for name, size in zip(KEYS, sizes, strict=True):
        value = stored.get(name) if isinstance(stored, dict) else None
        if not (isinstance(value, Tensor) and value.shape == size and bool(torch.isfinite(value).all())):
            raise InputError(f"{printable(path.name, 200)}: its novelty lacks a finite {name} of shape {size}")
    count, mean, axes, variance, noise, quantiles = (stored[name] for name in KEYS)
    if float(count.min()) < 0 or not float(count.sum()) > 0 or not bool((variance > 0).all() and (noise > 0).all()):
        raise InputError(f"{printable(path.name, 200)}: its novelty has a count or a variance that is not above zero")
    density = Density(count.double(), mean.to(affine.mu), axes.to(affine.mu), variance.double(), noise.double())
    return Novelty(affine, density, dict(zip(SCORES, map(tuple, quantiles.tolist()), strict=True)))


def load_novelty(path: Path, data_dir: Path | None = None) -> tuple[Novelty, Config, Checkpoint]:
    """Return what scores rows by the checkpoint at `path`, with its config and the checkpoint itself.

    A file that has no novelty, one of an earlier version or of an unfinished run, gets it from the training split of
    its own task. Raises InputError where that is missing, and for a model without a density.
    """
    model, checkpoint, config = restore(path)
    affine_part(model)
    limit_threads()
    novelty = read_novelty(checkpoint.extras, model, path)
    if novelty is not None:
        return novelty, config, checkpoint
    logger.info("%s has no density: fitting it to the training split of %s", printable(path.name, 200), config.task)
    task = load_task(config.task, data_dir or config.data_dir, **describe_loading(config, checkpoint))
    if task.train.D != model.D:
        raise InputError(f"{printable(config.task)}: samples of {task.train.D} values; the model's have {model.D}")
    if task.fingerprint != checkpoint.data.get("fingerprint"):
        logger.warning("%s: the data is not what the checkpoint was trained on: its fingerprint differs", path.name)
    return fit_novelty(model, task.hold_out(config.validation, config.seed)[0]), config, checkpoint


def measure_detection(scores: Tensor, novel: Tensor) -> tuple[float, float]:
    """Return AUROC and average precision of scores (n,) for novel (n,), bool: the higher score, the more novel.

        AUROC = P(score of a novel row > score of another) + P(equal) / 2
        AP    = sum_i (R_i - R_{i-1}) P_i    over falling thresholds, with precision P and recall R

    Equal scores share a threshold. NaN where no row or every row is novel.
    """
    positives = int(novel.sum())
    negatives = len(novel) - positives
    if positives == 0 or negatives == 0:
        return math.nan, math.nan
    values, inverse = torch.unique(scores, return_inverse=True)
    hits = torch.bincount(inverse[novel], minlength=len(values)).double().flip(0)  # from the highest score down
    misses = torch.bincount(inverse[~novel], minlength=len(values)).double().flip(0)
    found, false = hits.cumsum(0), misses.cumsum(0)
    auroc = float((misses * (found - hits / 2)).sum()) / positives / negatives
    precision = float((hits * found / (found + false)).sum()) / positives
    return auroc, precision


def _project(x: Tensor, squares: Tensor, mean: Tensor, axes: Tensor) -> tuple[Tensor, Tensor]:
    """Return z (n, K, E) and Q (n, K) float64 of x (n, D) with `squares` |x|^2 (n, 1), as the module defines them."""
    K, D, E = axes.shape
    z = (x @ axes.permute(1, 0, 2).reshape(D, K * E)).view(len(x), K, E)
    z -= (mean[:, None, :] @ axes)[:, 0]
    square_means = mean.square().sum(1)
    distance = (squares + square_means - 2 * (x @ mean.T)).double() - z.square().sum(2, dtype=torch.float64)
    cancelled = distance < CANCELLED * (squares + square_means)
    for j in cancelled.any(0).nonzero()[:, 0].tolist():
        rows = cancelled[:, j].nonzero()[:, 0]
        r = x[rows] - mean[j]
        z[rows, j] = own = r @ axes[j]
        distance[rows, j] = r.addmm_(own, axes[j].T, alpha=-1).square().sum(1, dtype=torch.float64)
    return z, distance


def _by_component(k: Tensor, K: int) -> Iterator[tuple[int, Tensor]]:
    """Yield each component j in use, with the indices of its rows in k (n,)."""
    parts = torch.argsort(k, stable=True).split(torch.bincount(k, minlength=K).tolist())
    yield from ((j, rows) for j, rows in enumerate(parts) if len(rows))


def _shrink(variance: Tensor, count: Tensor, prior: float) -> Tensor:
    """Return variances (K, m) averaged with their mean over all rows, as if `prior` further rows had that mean."""
    mean = (count[:, None] * variance).sum(0) / count.sum()
    weight = (prior / (count + prior))[:, None] if prior > 0 else count.new_zeros(len(count), 1)
    return variance + weight * (mean - variance)


def _floor(count: Tensor, variance: Tensor, noise: Tensor, D: int) -> float:
    """Return the least variance: a share of the mean in a dimension, so that data on a subspace has a density."""
    E = variance.shape[1]
    mean = float((count * (variance.sum(1) + (D - E) * noise)).sum() / count.sum()) / D
    return max(FLOOR * mean, torch.finfo(torch.float32).tiny)


def _quantiles(values: Tensor, at: Tensor) -> Tensor:
    """Return quantiles with linear interpolation; `torch.quantile` refuses more than 2^24 values."""
    ordered = values.sort().values
    where = at * (len(ordered) - 1)
    low, high = ordered[where.floor().long()], ordered[where.ceil().long()]
    return low + (where - where.floor()) * (high - low)
