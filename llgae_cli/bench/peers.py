"""What a user would reach for otherwise, written as those users write it: scikit-learn's own clusters and PCAs."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def clustered_pca(cluster: Any, E: int) -> Callable[[Array], Callable[[Array], float]]:
    """Cluster, then one PCA in each cluster; a test sample goes to the subspace that rebuilds it best."""

    def fit(x: Array) -> Callable[[Array], float]:
        labels = cluster.fit_predict(x)
        return _mean_l2_of([_pca(x[labels == k], E) for k in np.unique(labels)])

    return fit


def lloyd_vqpca(K: int, E: int, tol: float, seed: int) -> Callable[[Array], Callable[[Array], float]]:
    """Assign to the PCA that rebuilds a sample best, refit all PCAs; until a round gains less than the share `tol`."""

    def fit(x: Array) -> Callable[[Array], float]:
        rng = np.random.default_rng(seed)
        centres = x[rng.choice(len(x), K, replace=False)]
        labels = np.argmin((centres**2).sum(1) - 2 * x @ centres.T, 1)
        before = np.inf
        while True:
            pcas = [_pca(x[labels == k], E) for k in range(K) if (labels == k).sum() > E]
            errors = _errors(pcas, x)
            labels, objective = errors.argmin(1), float(errors.min(1).mean())
            if before - objective <= tol * objective:
                return _mean_l2_of(pcas)
            before = objective

    return fit


def _pca(x: Array, E: int) -> Any:
    from sklearn.decomposition import PCA

    return PCA(min(E, len(x))).fit(x)


def _errors(pcas: list[Any], x: Array) -> Array:
    return np.stack([((x - p.inverse_transform(p.transform(x))) ** 2).sum(1) for p in pcas], 1)


def _mean_l2_of(pcas: list[Any]) -> Callable[[Array], float]:
    return lambda x: float(_errors(pcas, x).min(1).mean()) / x.shape[1]
