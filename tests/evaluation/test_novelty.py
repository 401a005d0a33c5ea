"""Novelty scores against dense computations, their thresholds, and AUROC and AP against scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.metrics import average_precision_score, roc_auc_score

from llgae_cli.errors import InputError
from llgae_cli.evaluation import density as density_module
from llgae_cli.evaluation.density import Density, fit_density
from llgae_cli.evaluation.novelty import (
    QUANTILES,
    SCORES,
    Novelty,
    fit_novelty,
    measure_detection,
    read_novelty,
)
from llgae_cli.models import LLGAE
from llgae_cli.models.shift import Shift
from llgae_cli.tasks import Samples

pytestmark = pytest.mark.numeric


def make_rows(n: int, seed: int, far: float = 0.0) -> torch.Tensor:
    """Rows of three planes in six dimensions with a little noise; `far` moves all of them."""
    g = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(99)
    bases, means = (torch.randn(3, *size, generator=fixed, dtype=torch.float64) for size in ((2, 6), (6,)))
    k = torch.randint(3, (n,), generator=g)
    b = torch.randn(n, 2, generator=g, dtype=torch.float64)
    noise = 0.1 * torch.randn(n, 6, generator=g, dtype=torch.float64)
    return far + 4 * means[k] + torch.einsum("ne,ned->nd", b, bases[k]) + noise


def make_model(x: torch.Tensor, K: int = 3, E: int = 2, n_step: int = 3) -> LLGAE:
    """A model that is not orthonormal, nor trained: offsets are rows, W is random."""
    g = torch.Generator().manual_seed(5)
    model = LLGAE(K, x.shape[1], E, beta=0.1, n_step=n_step).double()
    model.load_state_dict(
        {"mu": x[torch.randperm(len(x), generator=g)[:K]], "W": torch.randn(K, x.shape[1], E, generator=g).double()}
    )
    return model


@pytest.fixture
def fitted() -> tuple[torch.Tensor, LLGAE, Novelty]:
    x = make_rows(500, 0)
    model = make_model(x)
    return x, model, fit_novelty(model, Samples(x.numpy(), centring="none"))


def covariances(density: Density) -> np.ndarray:
    """S_k, (K, D, D), written out."""
    A, D = density.axes.double(), density.axes.shape[1]
    inside = A @ torch.diag_embed(density.variance) @ A.mT
    return (inside + density.noise[:, None, None] * (torch.eye(D, dtype=torch.float64) - A @ A.mT)).numpy()


def test_the_density_is_a_mixture_of_dense_gaussians(fitted: tuple[torch.Tensor, LLGAE, Novelty]) -> None:
    _, _, novelty = fitted
    density, new = novelty.density, make_rows(60, 1)
    share = (density.count / density.count.sum()).numpy()
    each = [
        multivariate_normal(mean, S).logpdf(new.numpy())
        for mean, S in zip(density.mean.numpy(), covariances(density), strict=True)
    ]
    expected = -logsumexp(np.stack(each, 1), axis=1, b=share)
    np.testing.assert_allclose(density.negative_log_likelihood(new).numpy(), expected, rtol=1e-9)


def test_likelihoods_do_not_depend_on_blocks_and_groups(
    fitted: tuple[torch.Tensor, LLGAE, Novelty], monkeypatch: pytest.MonkeyPatch
) -> None:
    density, new = fitted[2].density, make_rows(60, 1)
    whole = density.negative_log_likelihood(new)
    for name, value in {"BLOCK_ROWS": 7, "BLOCK_VALUES": 1, "CHUNK_VALUES": 1}.items():
        monkeypatch.setattr(density_module, name, value)
    np.testing.assert_allclose(density.negative_log_likelihood(new), whole, rtol=1e-12)
    assert len(density.negative_log_likelihood(new[:0])) == 0


def test_a_likelihood_of_scaled_rows_is_that_of_the_quotients(fitted: tuple[torch.Tensor, LLGAE, Novelty]) -> None:
    density, new = fitted[2].density, make_rows(60, 1)
    scale = torch.arange(1, new.shape[1] + 1).double()
    near = density.mean[0] * scale  # its distance cancels, and is computed again
    rows = torch.cat([new, near[None], 1e5 * near[None]])
    expected = density.negative_log_likelihood(rows / scale)
    np.testing.assert_allclose(density.negative_log_likelihood(rows, scale), expected, rtol=1e-9)


def test_components_without_rows_and_rows_far_away_have_a_likelihood() -> None:
    """A component without rows adds nothing; of rows so far away that every density is 0, -log p is still a number."""
    x = make_rows(500, 0)
    model = make_model(x, K=2)
    both = fit_density(model, Samples(x.numpy(), centring="none"), torch.zeros(500, dtype=torch.int64))
    only = Density(*(value[:1] for value in (both.count, both.mean, both.axes, both.variance, both.noise)))
    rows = torch.cat([x[:5], 1e6 + x[:5]])
    assert bool(both.negative_log_likelihood(rows).isfinite().all())
    np.testing.assert_allclose(both.negative_log_likelihood(rows), only.negative_log_likelihood(rows), rtol=1e-12)


def test_the_moments_are_those_of_each_components_rows() -> None:
    x = make_rows(500, 0)
    model = make_model(x)
    k = model.encode(x).k
    density = fit_density(model, Samples(x.numpy(), centring="none"), k, prior=0)
    Q = torch.linalg.qr(model.W)[0]
    for j in range(3):
        own = x[k == j]
        centred = own - own.mean(0)
        z = centred @ Q[j]
        assert density.count[j] == len(own)
        torch.testing.assert_close(density.mean[j], own.mean(0))
        torch.testing.assert_close(density.variance[j].flip(0), torch.linalg.eigvalsh(z.T @ z / len(own)))
        outside = (centred - z @ Q[j].T).square().sum() / len(own) / 4
        torch.testing.assert_close(density.noise[j], outside)


def test_t2_is_the_mahalanobis_distance_of_the_latents(fitted: tuple[torch.Tensor, LLGAE, Novelty]) -> None:
    x, model, _ = fitted
    code = model.encode(x)
    density = fit_density(model, Samples(x.numpy(), centring="none"), code.k, prior=0)
    t2 = density.t2(x, code.k)
    for j in range(3):
        b = code.b[code.k == j]
        centred, C = b - b.mean(0), torch.cov(b.T, correction=0)
        torch.testing.assert_close(t2[code.k == j], (centred @ torch.linalg.inv(C) * centred).sum(1))


def test_spe_is_the_models_own_residual(fitted: tuple[torch.Tensor, LLGAE, Novelty]) -> None:
    _, model, novelty = fitted
    new = make_rows(60, 1)
    ((_, scores),) = novelty.score(Samples(new.numpy(), centring="none"))
    torch.testing.assert_close(scores.spe, (new - model.decode(model.encode(new))).square().sum(1).detach())


def test_thresholds_are_quantiles_of_the_training_scores(fitted: tuple[torch.Tensor, LLGAE, Novelty]) -> None:
    x, _, novelty = fitted
    ((_, scores),) = novelty.score(Samples(x.numpy(), centring="none"))
    for name in SCORES:
        expected = np.quantile(getattr(scores, name).numpy(), QUANTILES)  # of scores in float32 and in float64
        np.testing.assert_allclose([novelty.threshold(name, q) for q in QUANTILES], expected, rtol=1e-5)
    with pytest.raises(InputError, match=r"0\.9, 0\.95, 0\.99, 0\.999"):
        novelty.threshold("nll", 0.98)


def test_data_far_from_the_origin_keep_its_digits_in_float32() -> None:
    x, new, far = make_rows(500, 0), make_rows(60, 1), 300.0
    near = make_model(x)
    moved = LLGAE(3, 6, 2, beta=0.1, n_step=3)
    moved.load_state_dict({"mu": (near.mu + far).float(), "W": near.W.float()})
    scores = [
        next(
            fit_novelty(model, Samples((x + shift).numpy(), centring="none")).score(
                Samples((new + shift).numpy(), centring="none")
            )
        )[1]
        for model, shift in ((near, 0.0), (moved, far))
    ]
    torch.testing.assert_close(scores[0].nll, scores[1].nll, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("E", [0, 2, 6])
def test_degenerate_components_have_a_finite_density(E: int) -> None:
    x = make_rows(40, 0)
    x[:, 5] = 1.0  # no noise in one direction
    x[:20] = x[0]  # a component of equal rows
    model = make_model(x, K=6, E=E, n_step=1)
    model.mu.data[0] = x[0]
    model.mu.data[5] = 1e6  # without rows
    novelty = fit_novelty(model, Samples(x.numpy(), centring="none"))
    ((_, scores),) = novelty.score(Samples(x.numpy(), centring="none"))
    assert all(bool(torch.isfinite(getattr(scores, name)).all()) for name in SCORES)


def test_a_checkpoint_keeps_the_novelty(fitted: tuple[torch.Tensor, LLGAE, Novelty]) -> None:
    x, model, novelty = fitted
    path = Path("a.pkl")
    read = read_novelty({"novelty": novelty.stored()}, model, path)
    assert read is not None and read.thresholds == novelty.thresholds
    assert torch.equal(read.density.negative_log_likelihood(x), novelty.density.negative_log_likelihood(x))
    assert read_novelty({}, model, path) is None
    for name, wrong in (("axes", torch.zeros(2)), ("noise", torch.zeros(3)), ("count", "many")):
        with pytest.raises(InputError, match=r"a\.pkl: its novelty"):
            read_novelty({"novelty": {**novelty.stored(), name: wrong}}, model, path)


def test_a_model_that_is_more_than_subspaces_is_refused() -> None:
    with pytest.raises(InputError, match="only llgae, pca and kmeans"):
        fit_novelty(Shift(LLGAE(2, 16, 1), (4, 4), 1), Samples(np.zeros((3, 16), np.float32), centring="none"))


def test_auroc_and_average_precision_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    for values in (rng.normal(size=300), rng.integers(5, size=300).astype(float)):
        novel = rng.random(300) < 0.3
        auroc, precision = measure_detection(torch.from_numpy(values), torch.from_numpy(novel))
        np.testing.assert_allclose(auroc, roc_auc_score(novel, values), rtol=1e-12)
        np.testing.assert_allclose(precision, average_precision_score(novel, values), rtol=1e-12)
    assert all(np.isnan(measure_detection(torch.ones(3), torch.ones(3, dtype=torch.bool))))
