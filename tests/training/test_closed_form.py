"""The two trainers: what they reach, what never rises, and that every way to run one gives the same result."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor
from training_helper import run  # tests/training_helper.py

from llgae_cli.errors import RunError
from llgae_cli.evaluation import metrics
from llgae_cli.models import LLGAE
from llgae_cli.tasks import SUBSPACES_E, SUBSPACES_K, SUBSPACES_OPTIMUM, Samples, Task, load_task
from llgae_cli.training import ClosedForm, Gradient
from llgae_cli.training import closed_form as closed_form_module
from llgae_cli.training.components import Components, orthonormalise
from llgae_cli.training.statistics import collect_statistics, update_components

pytestmark = pytest.mark.numeric
DOUBLE = torch.float64


@pytest.fixture(scope="module")
def subspaces() -> Task:
    return load_task("subspaces", Path("unused"))


def cloud(n: int = 400, D: int = 12, seed: int = 0) -> np.ndarray:
    """Samples without any cluster, of falling variance along random directions: the hard case for K > 1."""
    generator = np.random.default_rng(seed)
    rotation = np.linalg.qr(generator.normal(size=(D, D)))[0]
    return generator.normal(size=(n, D)) * 2.0 ** -np.arange(D) @ rotation + generator.normal(size=D)


def samples(array: np.ndarray) -> Samples:
    return Samples(array, centring="none")


def closed_form(data: Samples, K: int, E: int, dtype: torch.dtype = DOUBLE, **options: Any) -> ClosedForm:
    model = LLGAE(K, data.D, E, **{key: options.pop(key) for key in ("alpha", "beta") if key in options}).to(dtype)
    return ClosedForm(model, data, **{"dtype": dtype, "seed": 3, "restarts": 1, "moves": 0, "tol": 0.0, **options})


def gradient(data: Samples, K: int, E: int, dtype: torch.dtype = torch.float32, **options: Any) -> Gradient:
    model = LLGAE(K, data.D, E).to(dtype)
    return Gradient(model, data, **{"seed": 3, "optimizer": "rmsprop", "lr": 1e-3, "batch_size": 50, **options})


def from_centres(trainer: ClosedForm, centres: np.ndarray) -> None:
    E = trainer.model.E
    U = torch.randn(*centres.shape, E, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    trainer.components = Components(torch.tensor(centres), orthonormalise(U))


# ---- What training reaches


@pytest.mark.parametrize("E", [1, 3, 12])
def test_one_component_is_scikit_learns_pca(E: int) -> None:
    X = cloud()
    trainer = closed_form(samples(X), 1, E)
    run(trainer)
    pca = PCA(E).fit(X)
    U = trainer.components.U[0].numpy()
    np.testing.assert_allclose(U @ U.T, pca.components_.T @ pca.components_, atol=1e-5)
    np.testing.assert_allclose(trainer.model.mu[0].detach(), pca.mean_, atol=1e-10)
    expected = np.square(X - pca.inverse_transform(pca.transform(X))).mean()
    assert metrics.mean_l2(trainer.model.float(), samples(X)) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_no_latent_dimension_is_scikit_learns_kmeans_pass_for_pass() -> None:
    X = np.random.default_rng(1).normal(size=(500, 4))
    centres, K = X[:7], 7
    trainer = closed_form(samples(X), K, 0)
    from_centres(trainer, centres)
    for i in range(1, 4):
        objective = trainer.epoch()["train_mean_l2"] * X.size
        oracle = KMeans(K, init=centres, n_init=1, max_iter=i, tol=0, algorithm="lloyd").fit(X)
        np.testing.assert_allclose(trainer.components.mu, oracle.cluster_centers_, atol=1e-10)
        assert objective == pytest.approx(oracle.inertia_, rel=1e-10)


def test_no_latent_dimension_converges_to_scikit_learns_kmeans() -> None:
    X = np.random.default_rng(2).normal(size=(500, 4))
    trainer = closed_form(samples(X), 7, 0)
    from_centres(trainer, X[:7])
    while not trainer.finished:
        record = trainer.epoch()
    oracle = KMeans(7, init=X[:7], n_init=1, max_iter=1000, tol=0, algorithm="lloyd").fit(X)
    assert record["train_mean_l2"] * X.size == pytest.approx(oracle.inertia_, rel=1e-10)
    np.testing.assert_array_equal(trainer.model.encode(torch.tensor(X)).k, oracle.labels_)


def test_a_converged_mixture_is_the_pca_of_each_of_its_own_components() -> None:
    X = cloud(600, 6)
    trainer = closed_form(samples(X), 3, 2)
    run(trainer, 2000)
    k = trainer.model.encode(torch.tensor(X)).k.numpy()
    expected = 0.0
    for j in range(3):
        pca = PCA(2).fit(X[k == j])
        expected += np.square(X[k == j] - pca.inverse_transform(pca.transform(X[k == j]))).sum()
        U = trainer.components.U[j].numpy()
        np.testing.assert_allclose(U @ U.T, pca.components_.T @ pca.components_, atol=1e-4)
    assert trainer.epoch()["train_mean_l2"] * X.size == pytest.approx(expected, rel=1e-8)


def test_subspaces_is_solved_to_its_known_optimum(subspaces: Task) -> None:
    trainer = closed_form(
        subspaces.train, SUBSPACES_K, SUBSPACES_E, torch.float32, restarts="auto", moves="auto", tol=1e-4
    )
    run(trainer)
    evaluation = metrics.measure(trainer.model, subspaces.test, subspaces.peak).metrics
    assert evaluation.mean_l2 == pytest.approx(SUBSPACES_OPTIMUM, rel=0.03)
    assert evaluation.empty == 0 and evaluation.perplexity == pytest.approx(SUBSPACES_K, rel=0.01)
    # One component a class, and none for two: every label's samples share a code of their own.
    code = trainer.model.encode(subspaces.test.rows(slice(None)))
    pairs = {(int(k), int(label)) for k, label in zip(code.k, subspaces.test.labels, strict=True)}
    assert len(pairs) == SUBSPACES_K


@pytest.mark.slow
def test_the_gradient_trainer_converges_to_the_optimum_of_one_component(subspaces: Task) -> None:
    data = subspaces.train.part(0, 1000)
    best = run(closed_form(data, 1, 3, torch.float32))[-1]
    results = run(gradient(data, 1, 3, lr=0.1, optimizer="adam"), 25)
    assert best * 0.999 < results[-1] < best * 1.05 < results[0]


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam", "sgd"])
def test_every_optimiser_lowers_the_loss(subspaces: Task, optimizer: str) -> None:
    data = subspaces.train.part(0, 1000)
    record = run(gradient(data, 4, 3, optimizer=optimizer, lr=1e-3), 4)
    assert record[-1] < record[0]


# ---- What never rises


@pytest.mark.parametrize("K, E", [(1, 3), (5, 2), (8, 0), (3, 12)])
def test_a_pass_never_raises_the_objective(K: int, E: int) -> None:
    X = torch.tensor(cloud())
    U = torch.randn(K, 12, E, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    components = Components(X[:K], orthonormalise(U))
    statistics = collect_statistics([X], components)
    for _ in range(25):
        components = update_components(components, statistics)
        before, statistics = statistics.objective, collect_statistics([X], components)
        assert statistics.objective <= before * (1 + 1e-12) + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_the_trainers_objective_never_rises_and_is_the_models_own(dtype: torch.dtype) -> None:
    data = samples(cloud())
    trainer = closed_form(data, 5, 2, dtype)
    trainer.initialise()
    last = math.inf
    for _ in range(30):
        objective = trainer.epoch()["train_mean_l2"]
        assert objective <= last
        if dtype == DOUBLE:
            residual = torch.tensor(cloud()) - trainer.model.decode(trainer.model.encode(torch.tensor(cloud())))
            assert objective == pytest.approx(float(residual.square().mean().detach()), rel=1e-9)
        else:
            assert objective == pytest.approx(metrics.mean_l2(trainer.model, data), rel=1e-3)
        last = objective


def test_a_pass_that_gains_nothing_is_undone_and_ends_the_run() -> None:
    trainer = closed_form(samples(cloud()), 3, 2)
    run(trainer, 5000)
    assert trainer.finished
    kept = trainer.model.W.detach().clone()
    trainer.epoch()
    assert torch.equal(trainer.model.W, kept)


# ---- Dangers


def test_empty_components_are_repaired_without_raising_the_objective() -> None:
    X = cloud(300, 6)
    trainer = closed_form(samples(X), 6, 1)
    centres = X[:6].copy()
    centres[2:] += 1e3  # four components that no sample chooses
    from_centres(trainer, centres)
    first = collect_statistics([torch.tensor(X)], trainer.components)
    assert (first.count == 0).sum() == 4
    last, record = first.objective / 6, {}
    for _ in range(20):
        record = trainer.epoch()
        assert record["train_mean_l2"] <= last
        last = record["train_mean_l2"]
    assert record["repaired"] >= 4 and record["empty"] == 0


DEGENERATE = {
    "identical rows": np.full((50, 6), 7.0),
    "zeros": np.zeros((50, 6)),
    "two distinct rows": np.repeat(np.random.default_rng(0).normal(size=(2, 6)), 25, 0),
    "rank one": np.outer(np.arange(50.0), np.arange(1.0, 7.0)),
    "three rows": np.arange(18.0).reshape(3, 6) ** 2,
    "tiny": 1e-20 * np.random.default_rng(0).normal(size=(50, 6)),
    "huge": 1e14 * np.random.default_rng(0).normal(size=(50, 6)),
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("K, E", [(1, 2), (3, 0), (3, 2), (3, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_degenerate_data_gives_a_finite_model_with_orthonormal_bases(
    name: str, K: int, E: int, dtype: torch.dtype
) -> None:
    X = DEGENERATE[name].astype(np.float32)
    trainer = ClosedForm(LLGAE(K, 6, E), samples(X), seed=3, restarts=2, moves=2, tol=0.0, dtype=dtype)
    run(trainer, 10)
    U = trainer.components.U
    torch.testing.assert_close(U.mT @ U, torch.eye(E, dtype=dtype).expand(K, E, E), atol=1e-5, rtol=0)
    reached = metrics.mean_l2(trainer.model, samples(X))
    assert 0 <= reached <= X.var(0).mean() * 1.01 + 1e-10  # never worse than the mean


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_an_offset_common_to_all_samples_costs_no_digits(offset: float) -> None:
    X = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32) + np.float32(offset)
    trainer = closed_form(Samples(X, None, "none"), 3, 2, torch.float32)
    reported = run(trainer, 5)[-1]
    assert reported == pytest.approx(metrics.mean_l2(trainer.model, Samples(X, None, "none")), rel=1e-2)


def test_a_diverged_training_reports_epoch_and_step() -> None:
    trainer = gradient(samples(cloud().astype(np.float32)), 3, 2, lr=1e9)
    with pytest.raises(RunError, match=r"loss became (nan|inf) in epoch 1, step \d of 8: lower lr or beta"):
        run(trainer, 3)


# ---- One result, however it is run


@pytest.mark.parametrize("size", [1, 7, 100, 399, 400, 1000])
def test_chunks_of_any_size_agree(size: int) -> None:
    X = torch.tensor(cloud())
    components = Components(X[:4], orthonormalise(torch.tensor(cloud(48, 2, 5)).reshape(4, 12, 2)))
    whole, parts = collect_statistics([X], components), collect_statistics(X.split(size), components)
    for one, other in zip(whole.tensors(), parts.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_training_in_chunks_agrees_with_training_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for rows in (1000, 17):
        monkeypatch.setattr(closed_form_module, "chunk_rows", lambda K, D, rows=rows: rows)
        results.append(
            run(closed_form(samples(cloud()), 4, 2), 10)[-1]
        )  # rounding may decide whether one more pass gains
    assert results[0] == pytest.approx(results[1], rel=1e-9)


def test_chunks_stay_within_bounds() -> None:
    assert closed_form_module.chunk_rows(11, 784) == closed_form_module.chunk_rows(11, 200) == 2048
    assert closed_form_module.chunk_rows(11, 100) == 4096
    assert closed_form_module.chunk_rows(1, 2) == closed_form_module.chunk_rows(11, 50) == 8192
    assert closed_form_module.chunk_rows(1000, 784) == 4000
    assert closed_form_module.chunk_rows(10_000, 784) < 8192
    assert closed_form_module.chunk_rows(10_000, 100_000) == 256


def trainers(data: Samples, seed: int) -> Iterator[ClosedForm | Gradient]:
    yield closed_form(data, 4, 2, torch.float32, seed=seed, restarts=2, moves=2)
    yield gradient(data, 4, 2, seed=seed)
    yield gradient(data, 4, 2, seed=seed, optimizer="adam")


def weights(trainer: ClosedForm | Gradient) -> list[Tensor]:
    return [parameter.detach() for parameter in trainer.model.parameters()]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_one_seed_gives_the_same_bits_and_another_seed_others(which: int) -> None:
    data = samples(cloud().astype(np.float32))
    first, again, other = (list(trainers(data, seed))[which] for seed in (3, 3, 4))
    records = [run(trainer, 3) for trainer in (first, again, other)]
    assert records[0] == records[1] != records[2]
    assert all(map(torch.equal, weights(first), weights(again)))
    assert not any(map(torch.equal, weights(first), weights(other)))


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_resumed_run_equals_one_that_was_not_interrupted_bit_for_bit(which: int, epochs: int) -> None:
    data = samples(cloud().astype(np.float32))
    whole_run, resumed = list(trainers(data, 3))[which], list(trainers(data, 3))[which]
    run(whole_run, epochs)
    state = copy.deepcopy((whole_run.model.state_dict(), whole_run.state_dict()))
    expected = [whole_run.epoch() for _ in range(3)]
    resumed.model.load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    assert [resumed.epoch() for _ in range(3)] == expected
    assert all(map(torch.equal, weights(whole_run), weights(resumed)))
    assert resumed.finished == whole_run.finished


def test_a_resumed_repair_draws_the_same_rows() -> None:
    X = cloud(300, 6)
    first, second = closed_form(samples(X), 6, 1), closed_form(samples(X), 6, 1)
    centres = X[:6].copy()
    centres[3:] += 1e3
    from_centres(first, centres)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert first.epoch() == second.epoch() and first.repaired == second.repaired == 3
    assert torch.equal(first.components.mu, second.components.mu)


def test_the_seed_gives_the_order_of_samples_and_each_epoch_has_its_own() -> None:
    data = samples(np.arange(12.0, dtype=np.float32).reshape(6, 2))
    trainer = gradient(data, 1, 0, batch_size=1)
    trainer.initialise()
    recorded: list[list[int]] = []
    whole = data.rows(slice(None))

    def loss(x: Tensor) -> Tensor:
        recorded[-1].append(int((whole == x).all(1).nonzero()))
        return LLGAE.loss(trainer.model, x)

    trainer.model.loss = loss  # type: ignore[method-assign]
    for _ in range(3):
        recorded.append([])
        trainer.epoch()
    assert all(sorted(order) == list(range(6)) for order in recorded) and len({tuple(order) for order in recorded}) > 1


# ---- The gauge: closed-form models under the source's own inference


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("beta", [0.01, 0.5])
def test_a_closed_form_model_has_one_mean_l2_under_every_inference(subspaces: Task, beta: float, alpha: float) -> None:
    trainer = closed_form(subspaces.train.part(0, 1500), 4, 3, torch.float32, alpha=alpha, beta=beta)
    run(trainer, 3)
    results = {}
    for inference in ("loop", "collapse", "least-squares"):
        for T in (1, 5, 40):
            model = LLGAE(4, subspaces.train.D, 3, beta=beta, n_step=T, alpha=alpha, inference=inference)
            model.load_state_dict(trainer.model.state_dict())
            results[inference, T] = metrics.mean_l2(model, subspaces.test)
    assert list(results.values()) == pytest.approx([results["loop", 1]] * len(results), rel=1e-6)


def test_a_gaussian_prior_shrinks_the_latents_by_its_share() -> None:
    X, beta = torch.tensor(cloud()), 0.1
    trainer = closed_form(samples(cloud()), 1, 3, alpha=1.0, beta=beta)
    run(trainer)
    U, centred = trainer.components.U[0], X - X.mean(0)
    latent = centred @ U
    expected = (centred - latent @ U.T).square().mean() + beta**2 * latent.square().sum() / X.numel()
    torch.testing.assert_close(trainer.model.loss(X).detach(), expected)


@pytest.mark.parametrize(
    ("D", "K", "E", "dtype"),
    [(16, 32, 3, DOUBLE), (17, 32, 3, torch.float32), (16, 33, 3, torch.float32), (8, 1, 0, DOUBLE)],
)
def test_narrow_rows_are_computed_in_float64(D: int, K: int, E: int, dtype: torch.dtype) -> None:
    data, model = samples(np.ones((50, D), np.float32)), LLGAE(K, D, E)
    assert ClosedForm(model, data, seed=3).components.mu.dtype == dtype
    assert ClosedForm(model, data, seed=3, dtype=torch.float32).components.mu.dtype == torch.float32
    assert ClosedForm(model, data, seed=3, target=lambda _: lambda x: x).components.mu.dtype == torch.float32
    assert model.mu.dtype == torch.float32


def test_a_run_that_was_computed_in_float32_is_resumed_in_float32() -> None:
    data = samples(cloud(2000, 8, 1).astype(np.float32))
    whole = closed_form(data, 4, 2, torch.float32)
    run(whole, 2)
    state = copy.deepcopy((whole.model.state_dict(), whole.state_dict()))
    resumed = ClosedForm(LLGAE(4, 8, 2), data, seed=3, restarts=1, moves=0, tol=0.0)
    assert resumed.components.mu.dtype == DOUBLE
    resumed.model.load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    assert [resumed.epoch() for _ in range(3)] == [whole.epoch() for _ in range(3)]
