"""The methods to compare with: clusters and PCAs of scikit-learn, as its users combine them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def clustered_pca(cluster: Any, E: int) -> Callable[[Array], Callable[[Array], float]]:
    """Return a fit of one PCA in each cluster; test samples are assigned to the PCA with the least residual."""

    def fit(x: Array) -> Callable[[Array], float]:
        labels = cluster.fit_predict(x)
        return _mean_l2_of([_pca(x[labels == k], E) for k in np.unique(labels)])

    return fit


def lloyd_vqpca(K: int, E: int, tol: float, seed: int) -> Callable[[Array], Callable[[Array], float]]:
    """Return a fit that alternates assignment and PCAs until a round gains less than the share `tol`."""

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
