"""Against the field's own way of fitting mixtures of PCA to tables: VQPCA on states of autoigniting mixtures.

The states are made here with Cantera and its mechanisms (extra `bench`): constant-pressure reactors of hydrogen
(h2o2.yaml, 9 species) and methane (gri30.yaml, 52 species) in air over initial temperatures, pressures and equivalence
ratios. A row is the temperature and the mass fractions at a step of the integrator, without argon; columns are
standardised.

The peer is VQPCA as in the packages PCAfold and VQPCA_Suite: k-means for a start, then a PCA in each cluster and each
row to the cluster that reconstructs it best, until no row moves. It is written on scikit-learn. Where PCAfold is
installed, its own VQPCA is a peer too, with one seed.

Sources: Kambhatla and Leen, Dimension reduction by local principal component analysis, Neural Computation 9 (1997);
Parente, Sutherland, Tognotti and Smith, Identification of low-dimensional manifolds in turbulent flames, Proc.
Combustion Institute 32 (2009).
"""

import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llgae_cli.bench.row import Row
from llgae_cli.errors import InputError
from llgae_cli.evaluation import mean_l2
from llgae_cli.models import LLGAE
from llgae_cli.storage.atomic import write_atomically
from llgae_cli.tasks import Samples
from llgae_cli.tasks.scaling import fit_scaling
from llgae_cli.training import ClosedForm
from llgae_cli.training.components import Components

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

MIXTURES = {"hydrogen": ("h2o2.yaml", "H2"), "methane": ("gri30.yaml", "CH4")}
AIR = "O2:1, N2:3.76"
TEMPERATURES = tuple(np.linspace(1000, 1600, 7))  # K
PRESSURES = (1.0, 5.0, 20.0)  # atm
RATIOS = (0.5, 0.75, 1.0, 1.5, 2.0)
ROWS = 100_000
LONGEST = 10.0  # seconds of reactor time
SETTINGS = ((8, 2), (16, 4))  # (K, E)
SEEDS = range(5)
PEER_ROUNDS = 300  # of the peer, at most
# The peer has one start, and runs until no row moves.
OURS: dict[str, dict[str, Any]] = {
    "quick": {"restarts": 1, "moves": 12, "tol": 3e-3},
    "full": {"restarts": "auto", "moves": "auto", "tol": 1e-6},
}


@dataclass
class Fit:
    """Result of the peer: offsets mu (K, D) and bases U (K, D, E), mean squared error a value, rounds, CPU seconds."""

    mu: Array
    U: Array
    error: float
    rounds: int
    seconds: float


def measure_tables() -> Iterator[Row]:
    """Compare errors and CPU seconds with VQPCA's at equal K and E, on the same rows."""
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with threadpool_limits(1):
            for name in MIXTURES:
                states = load_states(name)
                x = fit_scaling(Samples(states), "std").apply(states)
                for k, e in SETTINGS:
                    yield from compare(name, x, k, e)
    finally:
        torch.set_num_threads(threads)


def compare(mixture: str, x: Array, k: int, e: int) -> Iterator[Row]:
    """Yield what both reach on x (N, D) with k components of e dimensions."""
    where = f"{mixture}, {len(x)} x {x.shape[1]}, K = {k}, E = {e}"
    samples = Samples(x, centring="none")
    peers = {"VQPCA": [fit_vqpca(x, k, e, seed) for seed in SEEDS]}
    try:
        peers["PCAfold"] = [fit_pcafold(x, k, e, SEEDS[0])]
    except ImportError as problem:
        logger.info("%s: without PCAfold (%s)", where, problem)
    single = Samples(x.astype(np.float32), centring="none")
    ours = {name: [fit_ours(single, k, e, seed, options) for seed in SEEDS] for name, options in OURS.items()}
    for peer, fits in peers.items():
        theirs, seconds = (statistics.median(getattr(fit, i) for fit in fits) for i in ("error", "seconds"))
        logger.info("%s: %s took %s rounds", where, peer, [fit.rounds for fit in fits])
        seeds = f"{len(fits)} seeds" if len(fits) > 1 else "one seed"
        for name, each in ours.items():
            error, took = (statistics.median(fit[i] for fit in each) for i in (0, 1))
            what = f"{where}: {peer}'s error, {seeds}; ours, {name}, medians of {len(each)} seeds"
            yield Row("tables", what, theirs, "", error, theirs / error)
            yield Row("tables", f"{where}: {peer}'s seconds; ours, {name}", seconds, "s", took, seconds / took)
        continued = max(continue_fit(samples, fit) / fit.error for fit in fits)
        yield Row("tables", f"{where}: our passes from {peer}'s result, error by its own, largest", continued, "")


def fit_vqpca(x: Array, k: int, e: int, seed: int) -> Fit:
    """Return VQPCA's fit to x (N, D): k clusters, each with a PCA of e dimensions."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    began = time.process_time()
    labels = KMeans(k, n_init=1, random_state=seed).fit_predict(x)
    rounds = 0
    while rounds < PEER_ROUNDS:
        rounds += 1
        used = [j for j in range(k) if (labels == j).sum() > e]
        pcas = [PCA(e).fit(x[labels == j]) for j in used]
        errors = np.stack([((x - p.inverse_transform(p.transform(x))) ** 2).sum(1) for p in pcas], 1)
        before, labels = labels, np.asarray(used)[errors.argmin(1)]
        if np.array_equal(labels, before):
            break
    took = time.process_time() - began
    mu, U = np.stack([p.mean_ for p in pcas]), np.stack([p.components_.T for p in pcas])
    return Fit(mu, U, float(errors.min(1).sum()) / x.size, rounds, took)


def fit_pcafold(x: Array, k: int, e: int, seed: int) -> Fit:
    """Return the fit of PCAfold's VQPCA to x (n, D), from the centroids of `fit_vqpca`'s first clusters.

    Raises ImportError where PCAfold, or a package that it needs, is not installed.
    """
    from PCAfold import VQPCA
    from sklearn.cluster import KMeans

    began = time.process_time()
    start = KMeans(k, n_init=1, random_state=seed).fit_predict(x)
    fitted = VQPCA(x, k, e, scaling="none", idx_init=start, max_iter=PEER_ROUNDS, random_state=seed)
    took = time.process_time() - began
    clusters = [x[fitted.idx == j] for j in np.unique(fitted.idx)]
    mu = np.stack([rows.mean(0) for rows in clusters])
    U = np.stack([np.linalg.eigh(np.cov(rows.T))[1][:, ::-1][:, :e] for rows in clusters])
    error = sum((((rows - m) - (rows - m) @ V @ V.T) ** 2).sum() for rows, m, V in zip(clusters, mu, U, strict=True))
    return Fit(mu, U, float(error) / x.size, fitted.collected_idx.shape[1], took)


def fit_ours(samples: Samples, k: int, e: int, seed: int, options: dict[str, Any]) -> tuple[float, float]:
    """Return the mean L2 of our fit from our start, and its CPU seconds."""
    began = time.process_time()
    model = LLGAE(k, samples.D, e, beta=1.0, n_step=1)
    trainer = ClosedForm(model, samples, seed=seed, **options)
    trainer.initialise()
    while not trainer.finished:
        trainer.epoch()
    took = time.process_time() - began
    return mean_l2(model, samples), took


def continue_fit(samples: Samples, peer: Fit) -> float:
    """Return the mean L2 after our passes in float64 from the peer's result."""
    model = LLGAE(*peer.U.shape, beta=1.0, n_step=1).double()
    trainer = ClosedForm(model, samples, seed=0, tol=1e-8)
    mu, U = torch.from_numpy(peer.mu), torch.from_numpy(np.ascontiguousarray(peer.U))
    trainer.set_components(Components(mu, U), torch.eye(U.shape[2], dtype=U.dtype).repeat(len(U), 1, 1))
    while not trainer.finished:
        record = trainer.epoch()
    return record["train_mean_l2"]


def load_states(name: str) -> Array:
    """Return the states of a mixture, (ROWS, D), made at the first call and kept in the system's temporary folder."""
    path = Path(tempfile.gettempdir()) / f"llgae-autoignition-{name}-{ROWS}-{len(TEMPERATURES)}.npy"
    try:
        return np.load(path)
    except (OSError, ValueError):
        pass
    states = make_states(*MIXTURES[name])
    chosen = states[np.linspace(0, len(states) - 1, min(ROWS, len(states))).round().astype(np.int64)]
    with write_atomically(path, durable=False) as temporary, open(temporary, "wb") as file:
        np.save(file, chosen)
    return chosen


def make_states(mechanism: str, fuel: str) -> Array:
    """Return temperature and mass fractions along autoignition, one row a step of the integrator, (n, D).

    Raises InputError without Cantera.
    """
    try:
        import cantera
    except ImportError:
        raise InputError("bench tables needs Cantera: pip install 'llgae[bench]'") from None
    gas: Any = cantera.Solution(mechanism)
    kept = [i for i, species in enumerate(gas.species_names) if species != "AR"]
    rows = []
    for temperature, pressure, ratio in product(TEMPERATURES, PRESSURES, RATIOS):
        gas.TP = temperature, pressure * cantera.one_atm
        gas.set_equivalence_ratio(ratio, fuel, AIR)
        reactor = cantera.IdealGasConstPressureReactor(gas, clone=False)
        network = cantera.ReactorNet([reactor])
        network.max_steps = 100_000
        while network.time < LONGEST:
            network.step()
            rows.append([reactor.T, *reactor.phase.Y[kept]])
    return np.array(rows)
