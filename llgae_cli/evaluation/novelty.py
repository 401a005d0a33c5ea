"""Novelty scores of rows: squared residual, distance within the component, and negative log-likelihood.

The likelihood is that of `evaluation.density`. The squared residual Q and T^2 are those of Jackson and Mudholkar,
Control procedures for residuals associated with principal component analysis, Technometrics 21 (1979).
"""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from llgae_cli.config import Config
from llgae_cli.errors import InputError, printable
from llgae_cli.evaluation.density import Density, fit_density
from llgae_cli.evaluation.encoding import CHUNK
from llgae_cli.evaluation.metrics import Measured, measure
from llgae_cli.factory import describe_loading, restore
from llgae_cli.models import LLGAE, Model
from llgae_cli.storage import Checkpoint
from llgae_cli.tasks import Samples, load_task
from llgae_cli.threads import limit_threads

Score = Literal["nll", "spe", "t2"]
SCORES: tuple[Score, ...] = ("nll", "spe", "t2")
QUANTILES = (0.9, 0.95, 0.99, 0.999)
logger = logging.getLogger(__name__)

THRESHOLD_ROWS = 1 << 15  # training rows whose scores give the thresholds, at most
KEYS = ("count", "mean", "axes", "variance", "noise", "quantiles")  # tensors in a checkpoint


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


def _quantiles(values: Tensor, at: Tensor) -> Tensor:
    """Return quantiles with linear interpolation; `torch.quantile` refuses more than 2^24 values."""
    ordered = values.sort().values
    where = at * (len(ordered) - 1)
    low, high = ordered[where.floor().long()], ordered[where.ceil().long()]
    return low + (where - where.floor()) * (high - low)
