"""LLGAE as scikit-learn estimators, trained in closed form: for arrays in memory, pipelines and grid searches.

Needs the extra `[sklearn]`. Imports in this package are absolute, so `sklearn` below is scikit-learn itself.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llgae_cli.threads import limited_threads, set_wait_policy

if "torch" not in sys.modules:  # later it would have no effect here, but one on child processes
    set_wait_policy()

import torch
from numpy.typing import NDArray
from torch import Tensor

from llgae_cli import models
from llgae_cli.errors import InputError
from llgae_cli.evaluation.density import Density
from llgae_cli.evaluation.novelty import describe_projections, fit_novelty_to_codes
from llgae_cli.factory import restore_subspaces
from llgae_cli.models import Code
from llgae_cli.storage.estimator import KEYS, fitted_attributes, save_estimator
from llgae_cli.tasks import Samples
from llgae_cli.training import ClosedForm

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, OutlierMixin, TransformerMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_array, check_random_state, check_scalar
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(f"scikit-learn 1.6 or later is needed; pip install 'llgae[sklearn]' ({error})") from error

__all__ = ["LLGAE", "LLGAEOutlierDetector"]
CHUNK = 2048
DTYPES = [np.float64, np.float32]
# Parameters that are a number or a word: the words, the type of the number, its least value.
NUMBER_OR_WORD: dict[str, tuple[tuple[str, ...], type, int]] = {
    "n_init": (("auto",), Integral, 1),
    "moves": (("auto",), Integral, 0),
    "candidates": (("auto", "off"), Integral, 1),
    "shrinkage": (("auto",), Real, 0),
}


# Not a ClusterMixin: scikit-learn's checks expect those to separate blobs, but with n_components = n_features every
# subspace holds all samples.
class LLGAE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Mixture of PCA: K affine subspaces of E dimensions, and the projection of each sample onto the nearest.

        minimise  sum_i |x_i - x_hat_i|^2,   x_hat = mu_k + U_k b,   b = U_k^T (x - mu_k),
                                             k     = argmin_k |x - mu_k - U_k U_k^T (x - mu_k)|^2

    The code of a sample is (k, b). The names of the sizes are those of the two special cases:
    `LLGAE(n_clusters=1, n_components=E)` is `PCA(n_components=E)`, and `LLGAE(n_clusters=K, n_components=0)` is
    `KMeans(n_clusters=K)`. Note that `n_components` is thus E, while in the rest of this package k is the component.

    Samples are used unchanged: unlike the command line, the estimator does not subtract each sample's own mean.
    Training is on the CPU, in float32 for wide float32 X, else in float64. X may be memory-mapped.

    Passes use as many threads as torch (`torch.set_num_threads`), but at most the number of cores for this process.
    Where other processes share the cores, set OMP_WAIT_POLICY=passive before anything imports torch, or import this
    module first, which does so.

    Args:
        n_clusters: K, how many subspaces; at most the number of samples.
        n_components: E, dimensions of each; 0 to the number of features.
        max_iter: maximum number of passes over the samples after the initialisation.
        tol: stop after a pass that lowers the objective by no more than this share of it.
        n_init: number of restarts, of which the best is used; "auto" is 4, and 1 beyond 16 clusters. Restarts use
            12,000 of the samples, or 100 for each cluster where that is more.
        moves: maximum number of split-merge moves of a restart, each of which removes one subspace and splits another;
            "auto" is 60, and 0 beyond 64 clusters. A restart stops after 12 moves without success in a row.
        candidates: number of neighbours of a sample's subspace that are scored for it in a pass, besides that one;
            "off" scores all, "auto" is 23 from 100 clusters on. Saves time at hundreds of clusters, and is approximate.
        shrinkage: strength of a prior that shrinks the scatter of each subspace toward its neighbours', in samples;
            "auto" chooses it on held-out samples (10 are needed). Useful where clusters have few samples each.
        random_state: an int, a RandomState or None, as in all of scikit-learn. torch's global generator is not used.

    Attributes:
        means_: mu, shape (n_clusters, n_features), in the unit of X.
        bases_: U, shape (n_clusters, n_features, n_components): orthonormal columns, most variance first, the entry
            of largest magnitude positive.
        labels_: k of each training sample, shape (n_samples,).
        mean_l2_: mean over training samples and features of (x - x_hat)^2, in squared units of X.
        n_iter_: number of passes.
        n_features_in_: number of features.
        feature_names_in_: their names, where X had any.

    Sources: CATSMILE-1022 (the model); see `training.closed_form` for the training.
    """

    def __init__(
        self,
        n_clusters: int = 8,
        n_components: int = 2,
        *,
        max_iter: int = 300,
        tol: float = 1e-4,
        n_init: int | Literal["auto"] = "auto",
        moves: int | Literal["auto"] = "auto",
        candidates: int | Literal["auto", "off"] = "off",
        shrinkage: float | Literal["auto"] = 0.0,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.n_clusters = n_clusters
        self.n_components = n_components
        self.max_iter = max_iter
        self.tol = tol
        self.n_init = n_init
        self.moves = moves
        self.candidates = candidates
        self.shrinkage = shrinkage
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "LLGAE":
        """Fit the subspaces to X (n_samples, n_features); y is not used.

        Warns (ConvergenceWarning) when max_iter ends the training, and when a cluster has no samples. Raises
        ValueError for NaN, infinities, values beyond 1e15 or all too small to square, fewer samples than clusters,
        fewer features than components, and parameters out of their range; TypeError for those of another type and for
        sparse X.
        """
        self._check_parameters()
        X = validate_data(self, X, dtype=DTYPES)
        n_samples, n_features = X.shape
        if self.n_clusters > n_samples:
            raise ValueError(f"n_samples={n_samples} should be >= n_clusters={self.n_clusters}.")
        if self.n_components > n_features:
            raise ValueError(f"n_components={self.n_components} must be between 0 and n_features={n_features}.")
        if self.shrinkage == "auto" and n_samples < 10:
            raise ValueError(f"shrinkage='auto' needs 10 samples to hold one out; n_samples={n_samples}.")

        samples = _samples(X)
        if 0 < max(X.max(), -X.min()) < 1e4 * float(np.finfo(X.dtype).tiny) ** 0.5:
            raise ValueError(f"X: all values are so small that their squares vanish in {X.dtype}; scale X.")
        model = _empty_model(int(self.n_clusters), n_features, int(self.n_components), X.dtype)
        trainer = ClosedForm(
            model,
            samples,
            seed=int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max)),
            restarts=self.n_init,
            moves=self.moves,
            tol=self.tol,
            candidates=self.candidates,
            shrinkage=self.shrinkage,
        )
        self.n_iter_ = 0
        with limited_threads():
            trainer.initialise()
            while self.n_iter_ < self.max_iter and not trainer.finished:
                trainer.epoch()
                self.n_iter_ += 1
        if not trainer.finished:
            self._warn(f"not converged after max_iter={self.max_iter} passes: raise max_iter or tol")

        self.means_: NDArray[Any] = model.mu.detach().numpy().copy()
        self.bases_: NDArray[Any] = model.W.detach().numpy().copy()
        self.labels_, squared = self._assign(samples)  # of the final subspaces, as in `predict`
        self.mean_l2_ = float(squared.mean()) / n_features
        with limited_threads():
            novelty = fit_novelty_to_codes(model, samples, *map(torch.from_numpy, (self.labels_, squared)))
        self._novelty: dict[str, NDArray[Any]] = {name: tensor.numpy() for name, tensor in novelty.stored().items()}
        used = len(np.unique(self.labels_))
        if used < self.n_clusters:
            self._warn(f"only {used} of n_clusters={self.n_clusters} hold samples: fewer may describe X as well")
        return self

    def transform(self, X: Any) -> NDArray[Any]:
        """Return the codes of X (n_samples, n_features), shape (n_samples, 1 + n_components).

        Column 0 is k, a whole number; the others are b = U_k^T (x - mu_k), coordinates in the unit of X within
        subspace k. The b of different subspaces are not related: the next step of a pipeline should treat column 0 as a
        category. `inverse_transform(transform(X))` is the reconstruction.
        """
        samples = self._new_samples(X)
        codes: NDArray[Any] = np.empty((samples.N, self._n_features_out), self.means_.dtype)
        for here, _, _, code in self._encode(samples):
            codes[here, 0] = code.k
            codes[here, 1:] = code.b
        return codes

    def inverse_transform(self, X: Any) -> NDArray[Any]:
        """Return x_hat = mu_k + U_k b, shape (n_samples, n_features), of codes as `transform` returns them.

        Raises ValueError where there are not 1 + n_components columns or the first is not one of 0 .. n_clusters - 1.
        """
        check_is_fitted(self)
        codes = check_array(X, dtype=self.means_.dtype)
        if codes.shape[1] != self._n_features_out:
            raise ValueError(f"X has {codes.shape[1]} columns; {self._n_features_out} are expected: k, and then b.")
        if not np.isin(codes[:, 0], np.arange(len(self.means_))).all():
            raise ValueError(f"The first column of X holds k, whole numbers from 0 to {len(self.means_) - 1}.")
        k, model = codes[:, 0].astype(np.int64), self._model()
        x_hat: NDArray[Any] = np.empty((len(codes), self.n_features_in_), self.means_.dtype)
        for low in range(0, len(codes), CHUNK):
            here = slice(low, low + CHUNK)
            with torch.no_grad():
                x_hat[here] = model.decode(Code(torch.tensor(k[here]), torch.tensor(codes[here, 1:])))
        return x_hat

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return the index of the nearest subspace for X (n_samples, n_features), shape (n_samples,)."""
        return self._assign(self._new_samples(X))[0]

    def fit_predict(self, X: Any, y: Any = None) -> NDArray[np.int64]:
        """Call `fit(X)` and return `labels_`."""
        return self.fit(X).labels_

    def score(self, X: Any, y: Any = None) -> float:
        """Return minus the mean L2 of X (n_samples, n_features), in squared units of X: higher is better, 0 is perfect.

        A larger n_components nearly always scores higher, on held-out samples too, because the code is longer. A larger
        n_clusters can over-fit, so a grid search over it has an optimum.
        """
        return -float(self._assign(self._new_samples(X))[1].mean()) / self.means_.shape[1]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator as a checkpoint, which `from_checkpoint`, `llgae_cli.load` and `llgae` read."""
        check_is_fitted(self)
        novelty = getattr(self, "_novelty", None)  # None: pickled by an earlier version
        extras = {} if novelty is None else describe_projections(novelty, self.means_, self.bases_)
        save_estimator(path, self.get_params(), vars(self), extras)

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str]) -> "LLGAE":
        """Return the fitted estimator in a checkpoint of `save`, or of `llgae train` (without `labels_`).

        Raises InputError for an unsound file, centred or scaled rows, and other models.
        """
        mu, U, checkpoint, config = restore_subspaces(Path(path))
        options = {name: getattr(config, key) for name, key in KEYS.items()} | {"random_state": config.seed}
        fitted = cls(*U.shape[::2], max_iter=config.epochs, **options)
        fitted.__dict__.update(fitted_attributes(checkpoint, mu, U))
        return fitted

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Return `llgae_k`, `llgae_b0`, `llgae_b1` ...; input_features is only compared with the names in `fit`."""
        super().get_feature_names_out(input_features)
        return np.array(["llgae_k", *(f"llgae_b{e}" for e in range(self._n_features_out - 1))], dtype=object)

    @property
    def _n_features_out(self) -> int:
        return 1 + self.bases_.shape[2]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _check_parameters(self) -> None:
        check_scalar(self.n_clusters, "n_clusters", Integral, min_val=1)
        check_scalar(self.n_components, "n_components", Integral, min_val=0)
        check_scalar(self.max_iter, "max_iter", Integral, min_val=1)
        check_scalar(self.tol, "tol", Real, min_val=0)
        for name, (words, kind, least) in NUMBER_OR_WORD.items():
            value = getattr(self, name)
            if not isinstance(value, str):
                check_scalar(value, name, kind, min_val=least)
            elif value not in words:
                raise ValueError(f"{name} == {value!r}, must be a number or {' or '.join(map(repr, words))}.")

    def _new_samples(self, X: Any) -> Samples:
        check_is_fitted(self)
        return _samples(validate_data(self, X, dtype=DTYPES, reset=False))

    def _model(self) -> models.LLGAE:
        # Built for each call: the fitted state is only arrays, which pickle and joblib share between processes.
        K, D, E = self.bases_.shape
        model = _empty_model(K, D, E, self.means_.dtype)
        model.load_state_dict({"mu": torch.tensor(self.means_), "W": torch.tensor(self.bases_)})
        return model

    @torch.no_grad()
    def _encode(self, samples: Samples) -> Iterator[tuple[slice, Tensor, models.LLGAE, Code]]:
        """Yield slices of the rows with their samples x (n, D), the model, and their codes."""
        model = self._model()
        for here, x in samples.chunks(CHUNK, dtype=model.mu.dtype):
            yield here, x, model, model.encode(x)

    @torch.no_grad()
    def _assign(self, samples: Samples) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the nearest subspaces k (n,), and |x - x_hat|^2 of each sample (n,)."""
        labels, squared = np.empty(samples.N, np.int64), np.empty(samples.N)
        for here, x, model, code in self._encode(samples):
            labels[here] = code.k
            squared[here] = model.residual(x, code).square_().sum(1)
        return labels, squared

    def _warn(self, message: str) -> None:
        warnings.warn(f"{type(self).__name__}: {message}", ConvergenceWarning, stacklevel=3)


class LLGAEOutlierDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Outlier and novelty detection by the likelihood of a mixture of probabilistic PCAs on the subspaces of `LLGAE`.

    A sample is an outlier where log p(x) is below `offset_`, a quantile over the training samples. The density and its
    formulas are those of `evaluation.density` and of the command `llgae score`.

    Args:
        n_clusters: K, how many subspaces.
        n_components: E, dimensions of each.
        contamination: share of the training samples below the threshold, above 0 and at most 0.5.
        max_iter, tol, n_init, moves, shrinkage, random_state: as for `LLGAE`.

    Attributes:
        weights_: pi, share of the training samples in each component, shape (n_clusters,).
        means_: m, shape (n_clusters, n_features), in the unit of X.
        axes_: A, shape (n_clusters, n_features, n_components): orthonormal columns, most variance first.
        variances_: lambda, variances along the axes, shape (n_clusters, n_components).
        noise_variances_: sigma^2, variance in each other direction, shape (n_clusters,).
        offset_: log p(x) at the threshold.
        n_iter_: number of passes.
        n_features_in_: number of features.
        feature_names_in_: their names, where X had any.
    """

    def __init__(
        self,
        n_clusters: int = 1,
        n_components: int = 1,
        *,
        contamination: float = 0.01,
        max_iter: int = 300,
        tol: float = 1e-4,
        n_init: int | Literal["auto"] = "auto",
        moves: int | Literal["auto"] = "auto",
        shrinkage: float | Literal["auto"] = 0.0,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.n_clusters = n_clusters
        self.n_components = n_components
        self.contamination = contamination
        self.max_iter = max_iter
        self.tol = tol
        self.n_init = n_init
        self.moves = moves
        self.shrinkage = shrinkage
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "LLGAEOutlierDetector":
        """Fit subspaces, density and threshold to X (n_samples, n_features); y is not used.

        Raises and warns as `LLGAE.fit`, and raises ValueError for a contamination out of its range.
        """
        check_scalar(self.contamination, "contamination", Real, min_val=0, max_val=0.5, include_boundaries="right")
        X = validate_data(self, X, dtype=DTYPES)
        options = {name: value for name, value in self.get_params().items() if name != "contamination"}
        subspaces = LLGAE(**options).fit(X)
        self.n_iter_, density = subspaces.n_iter_, subspaces._novelty
        self.weights_: NDArray[np.float64] = density["count"] / density["count"].sum()
        self.means_, self.axes_ = density["mean"], density["axes"]
        self.variances_, self.noise_variances_ = density["variance"], density["noise"]
        self.offset_ = float(np.quantile(self._log_likelihood(X), self.contamination))
        return self

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return log p(x) of X (n_samples, n_features) in nat, shape (n_samples,): the lower, the more novel."""
        check_is_fitted(self)
        return self._log_likelihood(validate_data(self, X, dtype=DTYPES, reset=False))

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return log p(x) - offset_ of X (n_samples, n_features), shape (n_samples,): negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return -1 for outliers and 1 for other samples of X (n_samples, n_features), shape (n_samples,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def _log_likelihood(self, X: NDArray[Any]) -> NDArray[np.float64]:
        parts = map(torch.tensor, (self.weights_, self.means_, self.axes_, self.variances_, self.noise_variances_))
        density, log_p = Density(*parts), np.empty(len(X))
        with limited_threads():
            for here, x in _samples(X).chunks(CHUNK, dtype=density.mean.dtype):
                log_p[here] = -density.negative_log_likelihood(x).numpy()
        return log_p


def _samples(X: NDArray[Any]) -> Samples:
    """Return X as samples, without centring. Raises ValueError where squares would exceed the range of float32."""
    samples = Samples(X, centring="none", origin="X")
    try:
        samples.check_finite()
    except InputError as error:
        raise ValueError(str(error)) from None
    return samples


def _empty_model(K: int, D: int, E: int, dtype: Any) -> models.LLGAE:
    """Return a model of zeros in the gauge W = U: with beta = 1, one ascent step is exact (`inference.gauge`)."""
    return models.LLGAE(K, D, E, beta=1.0, n_step=1).to(torch.from_numpy(np.empty(0, dtype)).dtype)
