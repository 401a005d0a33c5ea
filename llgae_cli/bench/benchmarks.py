"""The benchmarks: each returns rows of one figure, what it is held against, and the ratio."""

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from llgae_cli.bench import peers
from llgae_cli.bench.steady import pass_seconds_of_processes
from llgae_cli.bench.timing import median_seconds, peak_memory, seconds, sgemm_rate
from llgae_cli.errors import InputError
from llgae_cli.evaluation import mean_l2
from llgae_cli.models import LLGAE
from llgae_cli.tasks import Samples, Task
from llgae_cli.training import ClosedForm, Gradient
from llgae_cli.training.components import Components, orthonormal
from llgae_cli.training.initialisation import principal_coordinates, seeded
from llgae_cli.training.shortlists import COORDINATES
from llgae_cli.training.statistics import Statistics, improved

logger = logging.getLogger(__name__)

K, E, SEED = 11, 20, 28
TARGET = 730.0  # a test mean L2 that converged Lloyd loops reach with few seeds, on Fashion-MNIST
QUICK = {"restarts": 1, "moves": 2, "passes": 1}  # enough to pass the target
LLOYD_TOL = 1e-4  # the loop's own convergence: a round that gains less than this share ends it
Fit = Callable[[peers.Array], Callable[[peers.Array], float]]


@dataclass(frozen=True)
class Row:
    """One figure. `ratio` is value / against where there is something to hold it against; sizes and times in SI."""

    bench: str
    what: str
    value: float
    unit: str
    against: float | None = None
    ratio: float | None = None
    at: float | None = None  # the abscissa, where the bench is a curve


def random_components(K: int, D: int, E: int, like: torch.Tensor) -> Components:
    """Components of no meaning, for timing."""
    generator = torch.Generator().manual_seed(SEED)
    U = orthonormal(torch.randn(K, D, E, generator=generator)).to(like)
    return Components(torch.randn(K, D, generator=generator).to(like), U)


def one_pass(samples: Samples, components: Components) -> Callable[[], Statistics]:
    """One training iteration's pass over the samples, ready to be timed."""
    return partial(a_trainer(samples, *components.U.shape).survey, components)


def a_trainer(samples: Samples, k: int, d: int, e: int, candidates: str = "off") -> ClosedForm:
    """A closed-form trainer of a model that has not been started."""
    return ClosedForm(LLGAE(k, d, e).to(samples.device), samples, seed=SEED, candidates=candidates)


def operations(N: int, D: int, K: int, E: int) -> float:
    """2 N D K E for choosing the component and 2 N D E for the winners' update."""
    return 2.0 * N * D * E * (K + 1)


def iteration(task: Task) -> Iterator[Row]:
    """A training iteration against the machine's matrix product."""
    go = one_pass(task.train, random_components(K, task.train.D, E, task.train.rows(slice(1))))
    needed = operations(task.train.N, task.train.D, K, E)
    # In pairs, because a shared machine's rate drifts from second to second; each pass after another, as in training.
    pairs = []
    for _ in range(11):
        floor = needed / sgemm_rate(task.train.device)
        go()
        pairs.append((floor, seconds(go)))
    floor, took = (statistics.median(side) for side in zip(*pairs, strict=True))
    share = statistics.median(floor / took for floor, took in pairs)
    yield Row("iteration", f"one pass, K = {K}, E = {E}, N = {task.train.N}; at the sgemm rate", took, "s", floor)
    yield Row("iteration", "share of the sgemm rate reached, median of 11 pairs", share, "", 1.0, share)


def steps(task: Task) -> Iterator[Row]:
    """Independence of T: the inference and a gradient epoch's batches at T = 50 against T = 1."""
    samples = task.train.part(0, min(task.train.N, 28_000))
    models = {}
    for T in (1, 50):
        model = LLGAE(K, samples.D, E, n_step=T).to(samples.device)
        Gradient(model, samples, seed=SEED, optimizer="rmsprop", lr=1e-3, batch_size=280).start()
        models[T] = partial(mean_l2, model, samples)
    models[1]()
    pairs = [(seconds(models[50]), seconds(models[1])) for _ in range(11)]
    fifty, one = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(fifty / one for fifty, one in pairs)
    yield Row("steps", "encode and decode, T = 50; T = 1; median of 11 pairs", fifty, "s", one, ratio)


def gradient(task: Task) -> Iterator[Row]:
    """An epoch of the source's settings against the plain loop with autograd over all components."""
    for_epoch = {}
    for way, batches in (("collapse", 60), ("loop", 2), ("broadcast", 1)):
        samples = task.train.part(0, min(task.train.N, 280 * batches))
        model = LLGAE(K, samples.D, E, inference="loop" if way == "loop" else "collapse").to(samples.device)
        trainer = Gradient(model, samples, seed=SEED, optimizer="rmsprop", lr=1e-3, batch_size=280)
        trainer.start()
        x = samples.rows(slice(None))
        work = partial(broadcast_loss_and_gradient, model, x) if way == "broadcast" else trainer.epoch
        for_epoch[way] = median_seconds(work, 3) * task.train.N / samples.N
    ours = for_epoch["collapse"]
    for way, what in (("loop", "batched products"), ("broadcast", "broadcasting and sums")):
        against = for_epoch[way]
        text = f"an epoch, batches of 280, T = 5; plain loop with autograd over all components, by {what}"
        yield Row("gradient", text, ours, "s", against, against / ours)


def broadcast_loss_and_gradient(model: LLGAE, x: torch.Tensor) -> None:
    """The recursion as it is first written down: everything broadcast to (n, K, D, E), autograd through all of it."""
    mu, W = model.mu, model.W
    b = x.new_zeros(len(x), model.K, model.E)
    for _ in range(model.n_step):
        residual = x[:, None] - mu - (W * b[:, :, None, :]).sum(3)
        b = b + model.beta * (W * residual[:, :, :, None]).sum(2)
    squared = (x[:, None] - mu - (W * b[:, :, None, :]).sum(3)).square().mean(2)
    squared.min(1).values.mean().backward()


def growth(task: Task) -> Iterator[Row]:
    """Seconds an iteration as K and E grow, and as N grows in an .npy of uint8 that is streamed."""
    like = task.train.rows(slice(1))
    few = task.train.part(0, min(task.train.N, 20_000))
    for k in (1, 3, 11, 30, 100):
        took = median_seconds(one_pass(few, random_components(k, few.D, E, like)), 3)
        yield Row("growth over K", f"K = {k}, E = {E}, N = {few.N}", took, "s", at=k)
    for e in (0, 5, 10, 20, 40):
        took = median_seconds(one_pass(few, random_components(K, few.D, e, like)), 3)
        yield Row("growth over E", f"E = {e}, K = {K}, N = {few.N}", took, "s", at=e)
    components = random_components(K, 784, E, like)
    baseline = peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        for n in (10_000, 100_000, 1_000_000, 2_000_000):
            path = Path(folder) / f"{n}.npy"
            _write_random_uint8(path, n, 784)
            samples = Samples(path)
            took = median_seconds(one_pass(samples, components), 5 if n <= 100_000 else 1)
            yield Row("growth over N", f"N = {n}, uint8 .npy, K = {K}, E = {E}", took, "s", at=n)
            path.unlink()
    yield Row("growth over N", "memory above the start, at most", peak_memory() - baseline, "B")


def _write_random_uint8(path: Path, n: int, d: int) -> None:
    rng = np.random.default_rng(SEED)
    with open(path, "wb") as file:  # not through a map, whose pages would count as this process's memory
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (n, d)})
        for low in range(0, n, 10_000):
            file.write(rng.integers(0, 256, (min(10_000, n - low), d), dtype=np.uint8).tobytes())


def candidates(task: Task) -> Iterator[Row]:
    """K = 1000: iterations with short lists, from random cells, and the last one again as a full pass."""
    train, generator = task.train, torch.Generator().manual_seed(SEED)
    x = train.rows(torch.randperm(train.N, generator=generator)[:20_000].sort().values)
    trainer = a_trainer(train, 1000, train.D, E, candidates="auto")
    trainer.coordinates = principal_coordinates(x, COORDINATES, generator)
    components = seeded(x, 1000, E, generator)
    logger.info("candidates: five iterations")
    for _ in range(5):
        components = improved(components, trainer.survey(components))
    listed, full = partial(trainer.survey, components), one_pass(train, components)
    near, exact = listed().objective / train.D, full().objective / train.D
    pairs = [(seconds(listed), seconds(full)) for _ in range(3)]
    took, against = (statistics.median(side) for side in zip(*pairs, strict=True))
    yield Row("candidates", "an iteration at K = 1000, E = 20; the full pass", took, "s", against, against / took)
    yield Row(
        "candidates", "train mean L2 with short lists, after five iterations; exact", near, "", exact, near / exact
    )


def against_peers(task: Task) -> Iterator[Row]:
    """Time to a mean L2, against scikit-learn; same data in memory, one thread each."""
    try:
        from sklearn.cluster import KMeans, MiniBatchKMeans
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise InputError("the peers need scikit-learn: pip install 'llgae[bench]'") from None
    x, test = task.train.rows(slice(None)).cpu().numpy(), task.test.rows(slice(None)).cpu().numpy()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with threadpool_limits(1):
            fits = [fit_quickly(task, **QUICK) for _ in range(3)]
            ours_took, ours = statistics.median(took for took, _ in fits), fits[0][1]
            text = f"ours, {QUICK['restarts']} start and {QUICK['moves']} moves: seconds, median of 3"
            yield Row("peers", text, ours_took, "s")
            yield Row("peers", f"ours: test mean L2; {TARGET:g}", ours, "", TARGET, ours / TARGET)
            fit = peers.clustered_pca(MiniBatchKMeans(K, random_state=SEED), E)
            least = {"restarts": 1, "moves": 0, "passes": 0}
            pairs = [(fit_quickly(task, **least), seconds_and_score(fit, x, test)) for _ in range(5)]
            took, quick = (statistics.median(pair[side][0] for pair in pairs) for side in (0, 1))
            ratio = statistics.median(their[0] / our[0] for our, their in pairs)
            name = "MiniBatchKMeans + PCA; ours, 1 start and no further pass"
            yield Row("peers", f"{name}: seconds, median of 5 pairs", quick, "s", took, ratio)
            yield Row("peers", f"{name}: test mean L2", pairs[0][1][1], "", pairs[0][0][1])
            rivals = {
                "KMeans + PCA": peers.clustered_pca(KMeans(K, random_state=SEED), E),
                f"Lloyd loop of PCAs until a round gains less than {LLOYD_TOL:g}": peers.lloyd_vqpca(
                    K, E, LLOYD_TOL, SEED
                ),
            }
            for name, fit in rivals.items():
                logger.info("fitting %s", name)
                took, reached = seconds_and_score(fit, x, test)
                yield Row("peers", f"{name}: seconds; ours", took, "s", ours_took, took / ours_took)
                yield Row("peers", f"{name}: test mean L2; ours", reached, "", ours)
    finally:
        torch.set_num_threads(threads)


def seconds_and_score(fit: Fit, x: peers.Array, test: peers.Array) -> tuple[float, float]:
    """Seconds of a peer's fit to x, and its test mean L2."""
    began = time.perf_counter()
    score = fit(x)
    return time.perf_counter() - began, score(test)


def fit_quickly(task: Task, restarts: int, moves: int, passes: int) -> tuple[float, float]:
    """Seconds of a fit from nothing, and its test mean L2."""
    began = time.perf_counter()
    model = LLGAE(K, task.train.D, E).to(task.train.device)
    trainer = ClosedForm(model, task.train, seed=SEED, restarts=restarts, moves=moves)
    trainer.start()
    for _ in range(passes):
        trainer.epoch()
    took = time.perf_counter() - began
    return took, mean_l2(model, task.test)


def steady(task: Task) -> Iterator[Row]:
    """One pass in fresh processes, on a quiet machine and beside one busy process; each process's median of passes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        np.save(path, task.train.stored_rows().cpu().numpy())
        quiet = pass_seconds_of_processes(path, K, E, task.train.centring, busy=False)
        logger.info("steady: now beside a busy process")
        busy = pass_seconds_of_processes(path, K, E, task.train.centring, busy=True)
    middle, n = statistics.median(quiet), len(quiet)
    yield Row("steady", f"a pass, K = {K}, E = {E}: median of {n} fresh processes", middle, "s")
    yield Row("steady", f"the slowest of {n} processes; the median", max(quiet), "s", middle, max(quiet) / middle)
    text = f"the slowest of {n} processes beside a busy one; the quiet median"
    yield Row("steady", text, max(busy), "s", middle, max(busy) / middle)


BENCHES: dict[str, Callable[[Task], Iterator[Row]]] = {
    "iteration": iteration,
    "steps": steps,
    "gradient": gradient,
    "growth": growth,
    "candidates": candidates,
    "peers": against_peers,
    "steady": steady,
}


def run_benches(names: list[str], task: Task) -> Iterator[Row]:
    """The rows of the named benchmarks, as they are measured."""
    for name in names:
        logger.info("measuring %s", name)
        yield from BENCHES[name](task)
