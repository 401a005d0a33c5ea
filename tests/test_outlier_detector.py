"""The outlier detector: scikit-learn's own checks, and scikit-learn's PCA and GaussianMixture as the oracles."""

from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.utils.estimator_checks import parametrize_with_checks

from llgae_cli.sklearn import LLGAEOutlierDetector

pytestmark = pytest.mark.numeric


def quick(K: int, E: int, **options: Any) -> LLGAEOutlierDetector:
    return LLGAEOutlierDetector(K, E, **{"n_init": 1, "moves": 0, "random_state": 0, **options})


def curved(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3)) @ rng.normal(size=(3, 6)) + 0.3 * rng.normal(size=(n, 6)) + 5


@parametrize_with_checks([quick(1, 1), quick(2, 0), quick(1, 1, contamination=0.2)])
def test_scikit_learns_own_checks(estimator: LLGAEOutlierDetector, check: Any) -> None:
    check(estimator)


def test_one_component_is_scikit_learns_probabilistic_pca() -> None:
    X, new = curved(400, 0), curved(50, 1)
    ours = quick(1, 3).fit(X)
    pca = PCA(3, svd_solver="full").fit(X)
    # PCA divides by n - 1, the maximum of the likelihood by n.
    n = len(X)
    mean, covariance = pca.mean_, pca.get_covariance() * (n - 1) / n
    centred = new - mean
    form = np.einsum("nd,nd->n", centred, np.linalg.solve(covariance, centred.T).T)
    expected = -0.5 * (6 * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + form)
    np.testing.assert_allclose(ours.score_samples(new), expected, rtol=1e-6)


def test_all_dimensions_are_a_full_gaussian() -> None:
    X, new = curved(300, 0), curved(50, 1)
    oracle = GaussianMixture(1, reg_covar=0).fit(X)
    np.testing.assert_allclose(quick(1, 6).fit(X).score_samples(new), oracle.score_samples(new), rtol=1e-6)


def test_the_threshold_is_the_contamination_and_far_samples_are_outliers() -> None:
    X = curved(500, 0)
    detector = quick(2, 2, contamination=0.1).fit(X)
    assert (detector.predict(X) == -1).sum() == 50
    assert (detector.predict(X + 100) == -1).all()
    np.testing.assert_array_equal(detector.decision_function(X) < 0, detector.predict(X) == -1)


@pytest.mark.parametrize("contamination", [0, 0.6, "some"])
def test_a_contamination_out_of_range_is_an_error(contamination: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="contamination"):
        quick(1, 1, contamination=contamination).fit(curved(50, 0))
