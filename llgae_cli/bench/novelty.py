"""One-class detection: trained on one class of a task without labels, scored on all of its test rows, class by class.

Ours is the negative log-likelihood of `evaluation.density`. The peers are scikit-learn's, with its defaults; each gets
the stored values and the standardised ones, except the forest, which does not depend on the scale of a variable.
"""

import logging
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llgae_cli.bench.row import Row
from llgae_cli.errors import InputError
from llgae_cli.evaluation.density import fit_density
from llgae_cli.evaluation.encoding import CHUNK
from llgae_cli.evaluation.novelty import measure_detection
from llgae_cli.models import LLGAE
from llgae_cli.tasks import Samples, Task
from llgae_cli.training import ClosedForm

logger = logging.getLogger(__name__)

Array = NDArray[np.float32]
Scorer = Callable[[Array], NDArray[np.floating]]  # scores of stored rows (n, D), the higher the more novel
Fit = Callable[[Array, Array | None], Scorer]  # fitted to x / scale, for x (n, D); to x where the scale (D,) is None

# One setting for all classes, chosen by the AUROC on training images of five classes (see docs/novelty.md).
K, E, SEED = 4, 3, 28
UNIT = 1 / 255  # added to a standard deviation, as a share of the task's peak: one grey level
PCA_E = 20
TIMED_SECONDS = 1.0  # scoring is repeated until they have passed, and the quickest time counts
OURS = "llgae, nll"


@dataclass
class Method:
    """A detector: how it is fitted, whether to standardised rows; AUROC and seconds to score, one a class."""

    fit: Fit
    standardised: bool
    auroc: list[float]
    seconds: list[float]


def measure_novelty(task: Task) -> Iterator[Row]:
    """Compare the mean AUROC over the classes, and the seconds to score the test rows, with those of the peers."""
    if task.train.labels is None or task.test.labels is None:
        raise InputError(f"bench novelty: {task.name} has no labels")
    methods = _methods()
    labels, test_labels = task.train.labels.cpu(), task.test.labels.cpu()
    test = _stored(task.test)
    threads = torch.get_num_threads()
    from threadpoolctl import threadpool_limits

    try:
        torch.set_num_threads(1)
        with threadpool_limits(1):
            for label in labels.unique().tolist():
                normal = _stored(task.train.subset((labels == label).nonzero()[:, 0]))
                for name, method in methods.items():
                    _measure(method, normal, test, test_labels != label, task.peak * UNIT)
                    logger.info("class %d, %s: AUROC %.4f, %.3g s", label, name, method.auroc[-1], method.seconds[-1])
    finally:
        torch.set_num_threads(threads)
    ours = methods.pop(OURS)
    auroc, took = statistics.mean(ours.auroc), statistics.median(ours.seconds)
    yield Row("novelty", f"{OURS}, K = {K}, E = {E}: mean AUROC of {len(ours.auroc)} classes", auroc, "")
    yield Row("novelty", f"{OURS}: seconds to score {task.test.N} rows, median of the classes", took, "s")
    for name, method in methods.items():
        theirs, seconds = statistics.mean(method.auroc), statistics.median(method.seconds)
        yield Row("novelty", f"{name}: mean AUROC; ours", theirs, "", auroc, auroc / theirs)
        yield Row("novelty", f"{name}: seconds to score; ours", seconds, "s", took, seconds / took)


def _measure(method: Method, normal: Array, test: Array, novel: torch.Tensor, unit: float) -> None:
    """Fit a method to the normal rows, score the test rows, and add AUROC and seconds."""
    # Standardised: in units of the standard deviation plus one grey level. Without it a pixel that hardly ever varies
    # would outweigh all others.
    scale = normal.std(0) + np.float32(unit) if method.standardised else None
    score = method.fit(normal, scale)
    took: list[float] = []
    while sum(took) < TIMED_SECONDS:
        began = time.perf_counter()
        scores = score(test)
        took.append(time.perf_counter() - began)
    method.seconds.append(min(took))
    method.auroc.append(measure_detection(torch.from_numpy(np.asarray(scores)), novel)[0])


def _methods() -> dict[str, Method]:
    """Return ours and the peers by name. Raises InputError without scikit-learn."""
    try:
        from sklearn.ensemble import IsolationForest
        from sklearn.neighbors import LocalOutlierFactor
        from sklearn.svm import OneClassSVM
    except ImportError:
        raise InputError("the peers need scikit-learn: pip install 'llgae[bench]'") from None

    def fit_by(build: Callable[[], Any]) -> Fit:
        def fit(x: Array, scale: Array | None) -> Scorer:
            estimator = build().fit(_divide(x, scale))
            return lambda y: -estimator.score_samples(_divide(y, scale))

        return fit

    peers: dict[str, Fit] = {
        "IsolationForest": fit_by(lambda: IsolationForest(random_state=SEED)),
        "LocalOutlierFactor": fit_by(lambda: LocalOutlierFactor(novelty=True)),
        f"PCA residual, E = {PCA_E}": fit_pca_residual,
        "OneClassSVM": fit_by(OneClassSVM),
    }
    methods = {OURS: Method(fit_ours, True, [], [])}
    for name, fit in peers.items():
        methods[name] = Method(fit, False, [], [])
        if name != "IsolationForest":
            methods[f"{name}, standardised"] = Method(fit, True, [], [])
    return methods


def fit_ours(x: Array, scale: Array | None) -> Scorer:
    """Return the negative log-likelihood under the mixture fitted to x / scale, for x (n, D) and scale (D,)."""
    samples = Samples(_divide(x, scale), centring="none")
    k, e = min(K, max(1, samples.N // 50)), min(E, samples.D)  # fewer only in tests, where classes are small
    model = LLGAE(k, samples.D, e, beta=1.0, n_step=1)
    trainer = ClosedForm(model, samples, seed=SEED)
    trainer.initialise()
    while not trainer.finished:
        trainer.epoch()
    with torch.no_grad():
        codes = torch.cat([model.encode(rows).k for _, rows in samples.chunks(CHUNK)])
    density = fit_density(model, samples, codes)
    divisor = None if scale is None else torch.from_numpy(scale)

    def score(y: Array) -> NDArray[np.floating]:
        return density.negative_log_likelihood(torch.from_numpy(y), divisor).numpy()

    return score


def fit_pca_residual(x: Array, scale: Array | None) -> Scorer:
    """Return the squared residual of scikit-learn's PCA fitted to x / scale, for x (n, D) and scale (D,)."""
    from sklearn.decomposition import PCA

    pca = PCA(min(PCA_E, x.shape[1]), random_state=SEED).fit(_divide(x, scale))

    def score(y: Array) -> NDArray[np.floating]:
        y = _divide(y, scale)
        return ((y - pca.inverse_transform(pca.transform(y))) ** 2).sum(1)

    return score


def _divide(x: Array, scale: Array | None) -> Array:
    return x if scale is None else x / scale


def _stored(samples: Samples) -> Array:
    """Return the stored values as float32, (N, D)."""
    return samples.stored_array().reshape(samples.N, samples.D).astype(np.float32)
