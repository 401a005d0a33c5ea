"""The estimator: scikit-learn's own checks of its contract, and scikit-learn's PCA and KMeans as the oracles."""

import pickle
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import (
    check_clusterer_compute_labels_predict,
    check_clustering,
    parametrize_with_checks,
)

import llgae_cli
from llgae_cli import experiment, models, storage
from llgae_cli.config import read_config
from llgae_cli.models import Code
from llgae_cli.sklearn import LLGAE, LLGAEOutlierDetector
from llgae_cli.tasks import Samples
from llgae_cli.training import ClosedForm

pytestmark = pytest.mark.numeric


def quick(K: int, E: int, **options: Any) -> LLGAE:
    return LLGAE(K, E, **{"n_init": 1, "moves": 0, "random_state": 0, **options})


def planes(n: int = 300, seed: int = 0) -> np.ndarray:
    """Noisy samples of three planes in eight features."""
    rng = np.random.default_rng(seed)
    k = rng.integers(3, size=n)
    bases, means = rng.normal(size=(3, 2, 8)), 3 * rng.normal(size=(3, 8))
    return means[k] + np.einsum("ne,ned->nd", rng.normal(size=(n, 2)), bases[k]) + 0.1 * rng.normal(size=(n, 8))


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    return data.data[:600], data.target[:600]


# ---- scikit-learn's own checks


@parametrize_with_checks([quick(3, 0), quick(2, 1), quick(1, 2), quick(2, 1, shrinkage=2.0, candidates=1)])
def test_scikit_learns_own_checks(estimator: LLGAE, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("E", [0, 1])
def test_scikit_learns_checks_of_a_clusterer(E: int) -> None:
    several = {"n_init": 4, "moves": 20}  # with one restart, the result would depend on the seed
    check_clustering("LLGAE", quick(3, E, **several))
    check_clusterer_compute_labels_predict("LLGAE", quick(3, E, **several))


# ---- What it computes


def test_one_cluster_is_pca(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X = digits[0]
    ours, pca = quick(1, 5).fit(X), PCA(5, svd_solver="full").fit(X)
    U = ours.bases_[0]
    np.testing.assert_allclose(U @ U.T, pca.components_.T @ pca.components_, atol=1e-8)
    np.testing.assert_allclose(ours.means_[0], pca.mean_, atol=1e-10)
    rebuilt = pca.inverse_transform(pca.transform(X))
    np.testing.assert_allclose(ours.inverse_transform(ours.transform(X)), rebuilt, atol=1e-7)
    assert ours.score(X) == pytest.approx(-np.square(X - rebuilt).mean())
    # Order of variance too: latents agree up to sign.
    np.testing.assert_allclose(np.abs(ours.transform(X)[:, 1:]), np.abs(pca.transform(X)), atol=1e-6)


def test_no_components_is_kmeans(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X = digits[0]
    ours = LLGAE(10, 0, tol=0, random_state=0).fit(X)
    lloyd = KMeans(10, init=ours.means_, n_init=1, tol=0).fit(X)
    np.testing.assert_array_equal(lloyd.labels_, ours.labels_)  # a fixed point of k-means
    np.testing.assert_allclose(lloyd.cluster_centers_, ours.means_, atol=1e-9)
    assert ours.mean_l2_ * X.size == pytest.approx(lloyd.inertia_)
    assert ours.mean_l2_ * X.size <= 1.005 * KMeans(10, n_init=10, random_state=0).fit(X).inertia_


def test_planes_are_found() -> None:
    X = planes()
    ours = LLGAE(3, 2, random_state=0).fit(X)
    assert ours.mean_l2_ < 0.1**2  # the noise's variance; 6 of 8 features' worth of it remain
    fresh = planes(seed=0)[:50]
    np.testing.assert_array_equal(ours.predict(fresh), ours.labels_[:50])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("E", [0, 2])
def test_code_reconstruction_and_score_are_the_formulas(dtype: type, E: int) -> None:
    X = planes(3000).astype(dtype)  # more than a chunk
    ours = quick(4, E).fit(X)
    mu, U = ours.means_.astype(float), ours.bases_.astype(float)
    np.testing.assert_allclose(U.mT @ U, np.broadcast_to(np.eye(E), (4, E, E)), atol=1e-5)
    c = np.einsum("nkd,kde->nke", X[:, None] - mu, U)
    x_hat = mu + np.einsum("nke,kde->nkd", c, U)
    k = np.square(X[:, None] - x_hat).sum(2).argmin(1)
    rows = np.arange(len(X))
    np.testing.assert_array_equal(ours.predict(X), k)
    np.testing.assert_array_equal(ours.labels_, k)
    codes = ours.transform(X)
    assert codes.dtype == ours.means_.dtype == dtype and codes.shape == (3000, 1 + E)
    np.testing.assert_array_equal(codes[:, 0], k)
    np.testing.assert_allclose(codes[:, 1:], c[rows, k], atol=1e-4)
    np.testing.assert_allclose(ours.inverse_transform(codes), x_hat[rows, k], atol=1e-4)
    score = -np.square(X - x_hat[rows, k]).mean()
    assert ours.score(X) == pytest.approx(score, rel=1e-4)
    assert ours.mean_l2_ == pytest.approx(-score, rel=1e-4)


def test_the_model_of_the_command_line_gives_the_same_reconstruction(tmp_path: Path) -> None:
    X = planes(400).astype(np.float32)
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "c.yaml").write_text(
        f"task: npy:{tmp_path}/x.npy\ncentring: none\nK: 3\nembed-dim: 2\nfigures: false\ncheckpoint-dir: {tmp_path}\n"
    )
    config = read_config([tmp_path / "c.yaml"])
    outcome = experiment.train(config)
    assert outcome.checkpoint is not None
    theirs = models.LLGAE(3, 8, 2, beta=config.beta, n_step=config.n_step)
    theirs.load_state_dict(storage.load(outcome.checkpoint).state)
    code = theirs.encode(torch.tensor(X))

    ours = quick(3, 2).fit(X)
    ours.means_ = theirs.mu.detach().numpy()
    ours.bases_ = theirs.W.detach().numpy() * config.beta**0.5  # the gauge of `inference.gauge`
    codes = ours.transform(X)
    np.testing.assert_array_equal(codes[:, 0], code.k)
    np.testing.assert_allclose(codes[:, 1:], code.b / config.beta**0.5, atol=1e-4)
    np.testing.assert_allclose(ours.inverse_transform(codes), theirs.decode(Code(*code)).detach(), atol=1e-4)


# ---- Together with scikit-learn


def test_a_pipeline_ends_in_a_classifier(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    code = ColumnTransformer([("k", OneHotEncoder(handle_unknown="ignore"), [0])], remainder=StandardScaler())
    pipeline = make_pipeline(StandardScaler(), quick(8, 3, n_init=4, moves=20), code, LogisticRegression(max_iter=500))
    pipeline.fit(X[:400], y[:400])
    assert pipeline.score(X[400:], y[400:]) > 0.6
    assert list(pipeline[:2].get_feature_names_out()) == ["llgae_k", "llgae_b0", "llgae_b1", "llgae_b2"]
    rebuilt = pipeline[:2].inverse_transform(pipeline[:2].transform(X))
    assert rebuilt.shape == X.shape and np.square(X - rebuilt).mean() < np.square(X - X.mean(0)).mean()


def test_grid_search_selects_the_best_held_out_score() -> None:
    X = planes()
    search = GridSearchCV(quick(1, 1, n_init=4), {"n_clusters": [1, 3], "n_components": [0, 1, 2]}, cv=3).fit(X)
    assert search.best_params_ == {"n_clusters": 3, "n_components": 2}
    folds = [search.cv_results_[f"split{i}_test_score"][search.best_index_] for i in range(3)]
    assert search.best_score_ == pytest.approx(np.mean(folds)) and search.best_score_ > -(0.2**2)


def test_same_seed_same_result_and_no_global_state_changes() -> None:
    X, before = planes(), (torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled())
    kept, drawn = X.copy(), np.random.get_state()[1].copy()
    one, two = LLGAE(3, 2, random_state=5).fit(X), LLGAE(3, 2, random_state=5).fit(X)
    np.testing.assert_array_equal(one.means_, two.means_)
    np.testing.assert_array_equal(one.bases_, two.bases_)
    third = LLGAE(3, 2, random_state=np.random.RandomState(5)).fit(X)
    np.testing.assert_array_equal(one.bases_, third.bases_)
    np.testing.assert_array_equal(X, kept)
    np.testing.assert_array_equal(np.random.get_state()[1], drawn)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == before[1:]


def test_a_fitted_estimator_consists_of_arrays_and_can_be_pickled(tmp_path: Path) -> None:
    X = planes()
    ours = quick(3, 2).fit(X)
    assert not any(isinstance(value, torch.Tensor | torch.nn.Module) for value in vars(ours).values())
    joblib.dump(ours, tmp_path / "e.joblib")
    mapped = joblib.load(tmp_path / "e.joblib", mmap_mode="r")  # read-only arrays, as joblib's workers get them
    for other in (pickle.loads(pickle.dumps(ours)), mapped):
        np.testing.assert_array_equal(other.transform(X), ours.transform(X))
    with pytest.raises(NotFittedError):
        clone(ours).inverse_transform(np.zeros((1, 3)))


def test_pandas_out() -> None:
    pandas = pytest.importorskip("pandas")
    X = planes()
    ours = quick(3, 1).set_output(transform="pandas")
    codes = ours.fit_transform(pandas.DataFrame(X, columns=list("abcdefgh")))
    assert list(codes.columns) == ["llgae_k", "llgae_b0"]
    assert list(ours.feature_names_in_) == list("abcdefgh")
    assert ours.inverse_transform(codes).shape == X.shape


def test_every_parameter_reaches_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: dict[str, Any] = {}

    def spy(model: models.LLGAE, samples: Samples, **options: Any) -> ClosedForm:
        recorded.update(options, K=model.K, E=model.E)
        return ClosedForm(model, samples, **options)

    monkeypatch.setattr("llgae_cli.sklearn.ClosedForm", spy)
    ours = LLGAE(3, 2, tol=0.5, n_init=2, moves=1, candidates=2, shrinkage=3.0, random_state=0).fit(planes())
    seed = recorded.pop("seed")
    assert recorded == {"K": 3, "E": 2, "tol": 0.5, "restarts": 2, "moves": 1, "candidates": 2, "shrinkage": 3.0}
    ours.set_params(random_state=1).fit(planes())
    assert recorded["seed"] != seed


# ---- What it refuses, and what it warns of


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clusters": 301}, r"n_samples=300 should be >= n_clusters=301"),
        ({"n_components": 9}, r"n_components=9 must be between 0 and n_features=8"),
        ({"n_clusters": 0}, "n_clusters == 0, must be >= 1"),
        ({"n_components": -1}, "n_components == -1, must be >= 0"),
        ({"max_iter": 0}, "max_iter == 0"),
        ({"tol": -1.0}, "tol == -1"),
        ({"n_init": "often"}, "n_init == 'often', must be a number or 'auto'"),
        ({"candidates": "all"}, "candidates == 'all', must be a number or 'auto' or 'off'"),
    ],
)
def test_parameters_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LLGAE(**options).fit(planes())


def test_parameters_of_another_type_are_named() -> None:
    with pytest.raises(TypeError, match="n_clusters must be an instance of int"):
        LLGAE(n_clusters=2.5).fit(planes())  # type: ignore[arg-type]


def test_data_that_cannot_be_right_is_refused() -> None:
    X = planes()
    with pytest.raises(TypeError, match="Sparse data"):
        quick(2, 1).fit(csr_array(X))
    with pytest.raises(ValueError, match="row 7 holds 1e\\+20, beyond"):
        quick(2, 1).fit(np.where(np.arange(300)[:, None] == 7, 1e20, X))
    with pytest.raises(ValueError, match="squares vanish in float32"):
        quick(2, 1).fit((X * 1e-25).astype(np.float32))
    with pytest.raises(ValueError, match="n_samples=9"):
        quick(2, 1, shrinkage="auto").fit(X[:9])
    ours = quick(2, 1).fit(X)
    with pytest.raises(ValueError, match="NaN"):
        ours.predict(np.full((1, 8), np.nan))
    with pytest.raises(ValueError, match="3 columns; 2 are expected"):
        ours.inverse_transform(np.zeros((1, 3)))
    for k in (2, -1, 0.5, 1e300):
        with pytest.raises(ValueError, match="whole numbers from 0 to 1"):
            ours.inverse_transform([[k, 0.0]])


def test_an_early_end_and_empty_clusters_are_warned_of() -> None:
    X = np.random.default_rng(0).normal(size=(2000, 10))
    with pytest.warns(ConvergenceWarning, match="not converged after max_iter=1 passes"):
        assert quick(3, 1, max_iter=1, tol=0, random_state=1).fit(X).n_iter_ == 1
    with pytest.warns(ConvergenceWarning, match="only 2 of n_clusters=4 hold samples"):
        quick(4, 0).fit(np.repeat(X[:2], 20, 0))


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_a_perfect_fit_ends_in_float32_too(offset: float) -> None:
    """Only rounding is left of the objective, which must not cause further passes."""
    X = (np.random.default_rng(0).normal(size=(200, 30)) + offset).astype(np.float32)
    ours = quick(200, 0).fit(X)
    assert 0 <= ours.mean_l2_ <= (np.finfo(np.float32).eps * np.abs(X).max()) ** 2
    assert ours.n_iter_ < 5


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "llgae_cli.sklearn")
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(ImportError, match=r"pip install 'llgae\[sklearn\]'"):
        import llgae_cli.sklearn  # noqa: F401


# ---- checkpoints


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_saved_estimator_comes_back(tmp_path: Path, dtype: type) -> None:
    X = planes().astype(dtype)
    fitted = quick(3, 2).fit(X)
    fitted.save(tmp_path / "x.pkl")
    again = LLGAE.from_checkpoint(tmp_path / "x.pkl")
    assert again.get_params() == {**fitted.get_params(), "tol": pytest.approx(fitted.tol)}
    np.testing.assert_array_equal(again.labels_, fitted.labels_)
    np.testing.assert_allclose(again.transform(X), fitted.transform(X), rtol=1e-5, atol=1e-5)
    assert again.transform(X).dtype == dtype and again.mean_l2_ == fitted.mean_l2_
    x_hat = fitted.inverse_transform(fitted.transform(X))
    np.testing.assert_allclose(llgae_cli.load(tmp_path / "x.pkl").reconstruct(X), x_hat, rtol=1e-3, atol=1e-3)


def test_a_saved_estimator_draws_samples_and_scores_rows(tmp_path: Path) -> None:
    X = planes()
    fitted = quick(3, 2).fit(X)
    fitted.save(tmp_path / "x.pkl")
    LLGAE.from_checkpoint(tmp_path / "x.pkl").save(tmp_path / "again.pkl")
    for name in ("x.pkl", "again.pkl"):
        model = llgae_cli.load(tmp_path / name)
        drawn = model.sample(4000, seed=0)
        assert (np.abs(drawn.mean(0) - X.mean(0)) < 0.1 * X.std(0)).all()
        np.testing.assert_allclose(drawn.std(0), X.std(0), rtol=0.1)
        np.testing.assert_array_equal(np.unique(model.encode(drawn).k), np.unique(fitted.labels_))
        assert model.score_samples(X + 10 * X.std(0)).max() < np.median(model.score_samples(X))
    detector = LLGAEOutlierDetector(3, 2, n_init=1, moves=0, random_state=0).fit(X)
    np.testing.assert_allclose(model.score_samples(X), detector.score_samples(X), rtol=1e-3, atol=1e-2)


def test_a_trained_checkpoint_is_an_estimator_where_rows_are_unchanged(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", planes())
    keys = {"task": f"npy:{tmp_path / 'x.npy'}", "K": 3, "embed-dim": 2, "restarts": 1, "checkpoint-dir": tmp_path}
    result = llgae_cli.train({**keys, "centring": "none", "scaling": "none"})
    X = planes().astype(np.float32)
    estimator = LLGAE.from_checkpoint(result.checkpoint)
    x_hat = estimator.inverse_transform(estimator.transform(X))
    np.testing.assert_allclose(x_hat, result.model.reconstruct(X), rtol=1e-3, atol=1e-3)
    with pytest.raises(llgae_cli.InputError, match="centred or scaled"):
        LLGAE.from_checkpoint(llgae_cli.train(keys).checkpoint)
