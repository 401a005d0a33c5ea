"""The benchmarks: each yields rows with a figure, the figure that it is compared with, and their ratio."""

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from llgae_cli.bench import peers
from llgae_cli.bench.bounds import measure_bounds
from llgae_cli.bench.novelty import measure_novelty
from llgae_cli.bench.rate import measure_rate
from llgae_cli.bench.row import Row
from llgae_cli.bench.steady import pass_seconds_of_processes
from llgae_cli.bench.tables import measure_tables
from llgae_cli.bench.timing import median_seconds, peak_memory, seconds, sgemm_rate
from llgae_cli.errors import InputError
from llgae_cli.evaluation import mean_l2
from llgae_cli.models import LLGAE
from llgae_cli.tasks import Samples, Task
from llgae_cli.training import ClosedForm, Gradient
from llgae_cli.training.components import Components, orthonormalise
from llgae_cli.training.initialisation import principal_coordinates, seed_components
from llgae_cli.training.shortlists import COORDINATES
from llgae_cli.training.statistics import Statistics, update_components

logger = logging.getLogger(__name__)

K, E, SEED = 11, 20, 28
TARGET = 730.0  # test mean L2 on Fashion-MNIST that converged Lloyd loops reach for few seeds
QUICK = {"restarts": 1, "moves": 2, "passes": 1}  # enough to pass the target
LLOYD_TOL = 1e-4  # the Lloyd loop ends after a round that gains less than this share
Fit = Callable[[peers.Array], Callable[[peers.Array], float]]


def random_components(K: int, D: int, E: int, like: torch.Tensor) -> Components:
    """Return random components, for timing."""
    generator = torch.Generator().manual_seed(SEED)
    U = orthonormalise(torch.randn(K, D, E, generator=generator)).to(like)
    return Components(torch.randn(K, D, generator=generator).to(like), U)


def pass_over(samples: Samples, components: Components) -> Callable[[], Statistics]:
    """Return a function that runs one training pass over the samples."""
    return partial(make_trainer(samples, *components.U.shape).collect_statistics, components)


def make_trainer(samples: Samples, k: int, d: int, e: int, candidates: str = "off") -> ClosedForm:
    """Return a closed-form trainer that is not initialised."""
    return ClosedForm(LLGAE(k, d, e).to(samples.device), samples, seed=SEED, candidates=candidates)


def measure_iteration(task: Task) -> Iterator[Row]:
    """Compare a training iteration with the machine's matrix product."""
    run = pass_over(task.train, random_components(K, task.train.D, E, task.train.rows(slice(1))))
    needed = 2.0 * task.train.N * task.train.D * E * (K + 1)  # operations: K to assign the samples, 1 for the update
    # In pairs, because the speed of a shared machine drifts; each measured pass follows another one, as in training.
    pairs = []
    for _ in range(11):
        floor = needed / sgemm_rate(task.train.device)
        run()
        pairs.append((floor, seconds(run)))
    floor, took = (statistics.median(side) for side in zip(*pairs, strict=True))
    share = statistics.median(floor / took for floor, took in pairs)
    yield Row("iteration", f"one pass, K = {K}, E = {E}, N = {task.train.N}; at the sgemm rate", took, "s", floor)
    yield Row("iteration", "share of the sgemm rate reached, median of 11 pairs", share, "", 1.0, share)


def measure_steps(task: Task) -> Iterator[Row]:
    """Compare encoding and decoding at T = 50 with T = 1: the number of steps should cost no time."""
    samples = task.train.part(0, min(task.train.N, 28_000))
    models = {}
    for T in (1, 50):
        model = LLGAE(K, samples.D, E, n_step=T).to(samples.device)
        Gradient(model, samples, seed=SEED, optimizer="rmsprop", lr=1e-3, batch_size=280).initialise()
        models[T] = partial(mean_l2, model, samples)
    models[1]()
    pairs = [(seconds(models[50]), seconds(models[1])) for _ in range(11)]
    fifty, one = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(fifty / one for fifty, one in pairs)
    yield Row("steps", "encode and decode, T = 50; T = 1; median of 11 pairs", fifty, "s", one, ratio)


def measure_gradient(task: Task) -> Iterator[Row]:
    """Compare an epoch at the source document's settings with the plain loop, by autograd over all components."""
    epoch_seconds = {}
    for method, batches in (("collapse", 60), ("loop", 2), ("broadcast", 1)):
        samples = task.train.part(0, min(task.train.N, 280 * batches))
        model = LLGAE(K, samples.D, E, inference="loop" if method == "loop" else "collapse").to(samples.device)
        trainer = Gradient(model, samples, seed=SEED, optimizer="rmsprop", lr=1e-3, batch_size=280)
        trainer.initialise()
        x = samples.rows(slice(None))
        work = partial(broadcast_loss_and_gradient, model, x) if method == "broadcast" else trainer.epoch
        epoch_seconds[method] = median_seconds(work, 3) * task.train.N / samples.N
    ours = epoch_seconds["collapse"]
    for method, what in (("loop", "batched products"), ("broadcast", "broadcasting and sums")):
        against = epoch_seconds[method]
        text = f"an epoch, batches of 280, T = 5; plain loop with autograd over all components, by {what}"
        yield Row("gradient", text, ours, "s", against, against / ours)


def broadcast_loss_and_gradient(model: LLGAE, x: torch.Tensor) -> None:
    """Run the recursion in its simplest form: all products broadcast to (n, K, D, E), with autograd through them."""
    mu, W = model.mu, model.W
    b = x.new_zeros(len(x), model.K, model.E)
    for _ in range(model.n_step):
        residual = x[:, None] - mu - (W * b[:, :, None, :]).sum(3)
        b = b + model.beta * (W * residual[:, :, :, None]).sum(2)
    squared = (x[:, None] - mu - (W * b[:, :, None, :]).sum(3)).square().mean(2)
    squared.min(1).values.mean().backward()


def measure_growth(task: Task) -> Iterator[Row]:
    """Measure the seconds of an iteration as K, E and N grow; N in an .npy file of uint8 that is streamed."""
    like = task.train.rows(slice(1))
    few = task.train.part(0, min(task.train.N, 20_000))
    for k in (1, 3, 11, 30, 100):
        took = median_seconds(pass_over(few, random_components(k, few.D, E, like)), 3)
        yield Row("growth over K", f"K = {k}, E = {E}, N = {few.N}", took, "s", at=k)
    for e in (0, 5, 10, 20, 40):
        took = median_seconds(pass_over(few, random_components(K, few.D, e, like)), 3)
        yield Row("growth over E", f"E = {e}, K = {K}, N = {few.N}", took, "s", at=e)
    components = random_components(K, 784, E, like)
    baseline = peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        for n in (10_000, 100_000, 1_000_000, 2_000_000):
            path = Path(folder) / f"{n}.npy"
            write_random_uint8(path, n, 784)
            samples = Samples(path)
            took = median_seconds(pass_over(samples, components), 5 if n <= 100_000 else 1)
            yield Row("growth over N", f"N = {n}, uint8 .npy, K = {K}, E = {E}", took, "s", at=n)
            path.unlink()
    yield Row("growth over N", "memory above the start, at most", peak_memory() - baseline, "B")


def write_random_uint8(path: Path, n: int, d: int) -> None:
    """Write an .npy file of random bytes of shape (n, d)."""
    rng = np.random.default_rng(SEED)
    with open(path, "wb") as file:  # not through a memory map, which would count as memory of this process
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (n, d)})
        for low in range(0, n, 10_000):
            file.write(rng.integers(0, 256, (min(10_000, n - low), d), dtype=np.uint8).tobytes())


def measure_candidates(task: Task) -> Iterator[Row]:
    """Compare, at K = 1000, an iteration by shortlists with a full one, after five iterations from random cells."""
    train, generator = task.train, torch.Generator().manual_seed(SEED)
    x = train.rows(torch.randperm(train.N, generator=generator)[:20_000].sort().values)
    trainer = make_trainer(train, 1000, train.D, E, candidates="auto")
    trainer.coordinates = principal_coordinates(x, COORDINATES, generator)
    components = seed_components(x, 1000, E, generator)
    logger.info("candidates: five iterations")
    for _ in range(5):
        components = update_components(components, trainer.collect_statistics(components))
    listed, full = partial(trainer.collect_statistics, components), pass_over(train, components)
    near, exact = listed().objective / train.D, full().objective / train.D
    pairs = [(seconds(listed), seconds(full)) for _ in range(3)]
    took, against = (statistics.median(side) for side in zip(*pairs, strict=True))
    yield Row("candidates", "an iteration at K = 1000, E = 20; the full pass", took, "s", against, against / took)
    text = "train mean L2 with shortlists, after five iterations; exact"
    yield Row("candidates", text, near, "", exact, near / exact)


def measure_peers(task: Task) -> Iterator[Row]:
    """Compare the time to a mean L2 with that of scikit-learn's estimators: the same data in memory, one thread."""
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
            text = f"ours, {QUICK['restarts']} restart and {QUICK['moves']} moves: seconds, median of 3"
            yield Row("peers", text, ours_took, "s")
            yield Row("peers", f"ours: test mean L2; {TARGET:g}", ours, "", TARGET, ours / TARGET)
            fit = peers.clustered_pca(MiniBatchKMeans(K, random_state=SEED), E)
            least = {"restarts": 1, "moves": 0, "passes": 0}
            pairs = [(fit_quickly(task, **least), seconds_and_score(fit, x, test)) for _ in range(5)]
            took, quick = (statistics.median(pair[side][0] for pair in pairs) for side in (0, 1))
            ratio = statistics.median(their[0] / our[0] for our, their in pairs)
            name = "MiniBatchKMeans + PCA; ours, 1 restart and no further pass"
            yield Row("peers", f"{name}: seconds, median of 5 pairs", quick, "s", took, ratio)
            yield Row("peers", f"{name}: test mean L2", pairs[0][1][1], "", pairs[0][0][1])
            lloyd = f"Lloyd loop of PCAs until a round gains less than {LLOYD_TOL:g}"
            rivals = {
                "KMeans + PCA": peers.clustered_pca(KMeans(K, random_state=SEED), E),
                lloyd: peers.lloyd_vqpca(K, E, LLOYD_TOL, SEED),
            }
            for name, fit in rivals.items():
                logger.info("fitting %s", name)
                took, reached = seconds_and_score(fit, x, test)
                yield Row("peers", f"{name}: seconds; ours", took, "s", ours_took, took / ours_took)
                yield Row("peers", f"{name}: test mean L2; ours", reached, "", ours)
    finally:
        torch.set_num_threads(threads)


def seconds_and_score(fit: Fit, x: peers.Array, test: peers.Array) -> tuple[float, float]:
    """Return the seconds of a peer's fit to x, and its test mean L2."""
    began = time.perf_counter()
    score = fit(x)
    return time.perf_counter() - began, score(test)


def fit_quickly(task: Task, restarts: int, moves: int, passes: int) -> tuple[float, float]:
    """Return the seconds of a fit, initialisation included, and its test mean L2."""
    began = time.perf_counter()
    model = LLGAE(K, task.train.D, E).to(task.train.device)
    trainer = ClosedForm(model, task.train, seed=SEED, restarts=restarts, moves=moves)
    trainer.initialise()
    for _ in range(passes):
        trainer.epoch()
    took = time.perf_counter() - began
    return took, mean_l2(model, task.test)


def measure_steady(task: Task) -> Iterator[Row]:
    """Measure a pass in new processes, on an idle machine and next to a busy process: the median of each process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        np.save(path, task.train.stored_rows().cpu().numpy())
        quiet = pass_seconds_of_processes(path, K, E, task.train.centring, busy=False)
        logger.info("steady: next to a busy process")
        busy = pass_seconds_of_processes(path, K, E, task.train.centring, busy=True)
    middle, n = statistics.median(quiet), len(quiet)
    yield Row("steady", f"a pass, K = {K}, E = {E}: median of {n} new processes", middle, "s")
    yield Row("steady", f"the slowest of {n} processes; the median", max(quiet), "s", middle, max(quiet) / middle)
    text = f"the slowest of {n} processes next to a busy one; the median on an idle machine"
    yield Row("steady", text, max(busy), "s", middle, max(busy) / middle)


ON_TASK: dict[str, Callable[[Task], Iterator[Row]]] = {
    "iteration": measure_iteration,
    "steps": measure_steps,
    "gradient": measure_gradient,
    "growth": measure_growth,
    "candidates": measure_candidates,
    "peers": measure_peers,
    "steady": measure_steady,
    "rate": measure_rate,
    "novelty": measure_novelty,
}
ON_OWN_DATA: dict[str, Callable[[], Iterator[Row]]] = {"tables": measure_tables, "bounds": measure_bounds}
BENCHES = (*ON_TASK, *ON_OWN_DATA)
COMPARISONS = ("rate", "novelty", "tables", "bounds")  # of results more than of speed; each trains many models


def run_benches(names: list[str], task: Task | None, checkpoints: Sequence[Path] = ()) -> Iterator[Row]:
    """Yield the rows of the named benchmarks, one by one as they are measured.

    `task` is for those of ON_TASK, and may be None without them. `rate` also codes with the codecs of `checkpoints`.
    """
    on_task = ON_TASK | {"rate": partial(measure_rate, checkpoints=checkpoints)}
    for name in names:
        logger.info("measuring %s", name)
        if name in ON_OWN_DATA:
            yield from ON_OWN_DATA[name]()
        else:
            assert task is not None
            yield from on_task[name](task)
