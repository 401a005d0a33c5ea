"""A first look at a data set: its columns, and the K and E that a quick fit on held-out rows proposes."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from llgae_cli.evaluation.metrics import mean_l2
from llgae_cli.models import LLGAE
from llgae_cli.tasks import Samples
from llgae_cli.training import ClosedForm

ROWS = 20_000  # most that are looked at
K_TRIED = (1, 2, 4, 8, 16, 32)
E_TRIED = (1, 2, 3, 5, 8, 12, 20)
SECONDS = 15.0  # no fit is begun later
TOLERANCE, SHARE = 0.1, 0.001  # of the best s^2, and of the total variance: less does not pay for a larger model
HELD_OUT = 5  # every fifth row
PASSES = 30  # most of one fit
TOL = 1e-3
ROWS_PER_COMPONENT = 40


@dataclass(frozen=True)
class Survey:
    """What the first look finds in evenly spaced training rows.

    samples     these rows, prepared as the training rows are
    spread      standard deviation of each column in its own units, (D,)
    constant    indices of the columns with one value
    duplicates  number of rows that repeat another
    """

    samples: Samples
    spread: np.ndarray
    constant: tuple[int, ...]
    duplicates: int


@dataclass(frozen=True)
class Trial:
    """One fit: held-out mean L2 in the units of the fit, and s^2 = mean L2 * D / (D - E)."""

    K: int
    E: int
    mean_l2: float
    variance: float


@dataclass(frozen=True)
class Proposal:
    """The chosen K and E, all trials in order, and whether the time ran out before the grid was done."""

    K: int
    E: int
    trials: tuple[Trial, ...]
    complete: bool


def survey(train: Samples) -> Survey:
    """Look at up to 20,000 evenly spaced rows of the training samples."""
    some = train.subset(np.unique(np.linspace(0, train.N - 1, min(train.N, ROWS)).astype(np.int64)))
    rows = some.stored_array().astype(np.float64)  # (n, D)
    constant = np.flatnonzero((rows == rows[0]).all(axis=0))
    duplicates = len(rows) - len(np.unique(rows, axis=0))
    return Survey(some, rows.std(axis=0), tuple(constant.tolist()), duplicates)


def propose(samples: Samples, seed: int = 28, seconds: float = SECONDS) -> Proposal:
    """Fit a grid of K and E to four fifths of the samples, measure the others, and choose.

    The residual variance s^2 = |x - x_hat|^2 / (D - E), averaged over held-out rows, falls with E only while another
    latent explains more than noise; the error itself always falls. Of the trials with s^2 within 10 % of the smallest,
    or within 0.1 % of the total variance of it, the one with the smallest E and then the smallest K is chosen. After
    `seconds` no further fit is begun.
    """
    held = np.arange(samples.N) % HELD_OUT == HELD_OUT - 1
    train, test = samples.subset(np.flatnonzero(~held)), samples.subset(np.flatnonzero(held))
    D, total = samples.D, float(samples.rows(slice(None)).double().var(0, correction=0).mean())
    largest = max(1, train.N // ROWS_PER_COMPONENT)
    grid = [(K, E) for E in E_TRIED if E < D for K in K_TRIED if largest >= K] or [(1, 0)]
    trials: list[Trial] = []
    began = time.monotonic()
    for K, E in grid:
        if trials and time.monotonic() - began > seconds:
            break
        error = mean_l2(_fit(train, K, E, seed), test)
        trials.append(Trial(K, E, error, error * D / (D - E)))
    least = min(trial.variance for trial in trials)
    bound = least + max(TOLERANCE * least, SHARE * total)
    best = min((trial for trial in trials if trial.variance <= bound), key=lambda trial: (trial.E, trial.K))
    return Proposal(best.K, best.E, tuple(trials), len(trials) == len(grid))


def _fit(train: Samples, K: int, E: int, seed: int) -> LLGAE:
    torch.manual_seed(seed)
    model = LLGAE(K, train.D, E, beta=1.0, n_step=1)
    trainer = ClosedForm(model, train, seed=seed, restarts=1, moves=0, tol=TOL)
    trainer.initialise()
    for _ in range(PASSES):
        if trainer.finished:
            break
        trainer.epoch()
    return model
