"""The trainer for a bit rate: what J is, what never rises, what it becomes in limits, and that runs are one result."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor
from training_helper import run  # tests/training_helper.py

from llgae_cli.config import parse_config
from llgae_cli.errors import InputError
from llgae_cli.evaluation import metrics
from llgae_cli.factory import build_model, build_trainer
from llgae_cli.models import LLGAE
from llgae_cli.tasks import Samples
from llgae_cli.training import ClosedForm, RateClosedForm
from llgae_cli.training import rate as rate_module
from llgae_cli.training.components import orthonormalise
from llgae_cli.training.expected_rate import TRADE_OFF, expect_bits, solve_step, step_to_theta
from llgae_cli.training.mixture import (
    Mixture,
    MixtureScorer,
    MixtureStatistics,
    choose_strength,
    split_components,
    update_mixture,
)
from llgae_cli.training.scoring import Workspace

pytestmark = pytest.mark.numeric
DOUBLE = torch.float64


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def clusters(K: int = 4, n: int = 100, D: int = 8, spread: float = 20.0) -> np.ndarray:
    """K normal clusters of n rows, each with variances that fall along axes of its own."""
    rows = [
        spread * draw(k, D)
        + draw(10 + k, n, D) * (3.0 * 0.6 ** torch.arange(D)) @ torch.linalg.qr(draw(20 + k, D, D))[0]
        for k in range(K)
    ]
    return torch.cat(rows)[torch.randperm(K * n, generator=torch.Generator().manual_seed(0))].numpy()


def build(array: np.ndarray, K: int, E: int, dtype: torch.dtype = DOUBLE, **options: Any) -> RateClosedForm:
    data = Samples(array, centring="none")
    return RateClosedForm(LLGAE(K, data.D, E).to(dtype), data, **{"seed": 3, "tol": 0.0, **options})


def random_mixture(K: int, d: int, E: int) -> Mixture:
    v = (3 * draw(3, K, E)).square().sort(1, descending=True).values
    return Mixture(5 * draw(1, K, d), orthonormalise(draw(2, K, d, E)), v, torch.softmax(draw(4, K), 0))


def compute_costs(y: Tensor, m: Mixture, theta: float) -> Tensor:
    """J of every row in every component, (n, K), term by term as the module's docstring has it."""
    columns = []
    for mu, U, v, p in zip(m.mu, m.U, m.v, m.p, strict=True):
        r = y - mu
        z = r @ U
        coded = v > theta
        latents = torch.where(coded, theta * z.square() / v + theta * (v / theta).log(), z.square()).sum(1)
        outside = r.square().sum(1) - z.square().sum(1)
        columns.append(outside + latents - 2 * math.log(2) * theta * p.log2())
    return torch.stack(columns, 1)


def measure(y: Tensor, m: Mixture, k: Tensor) -> MixtureStatistics:
    statistics = MixtureStatistics.zeros(m, scatter=True)
    for part, own in zip(y.split(37), k.split(37), strict=True):
        statistics.add_rows(m, part, own)
    return statistics


# ---- The cost


@pytest.mark.parametrize("theta", [1e-3, 2.0, 1e3])
@pytest.mark.parametrize(("K", "E"), [(1, 3), (30, 4), (5, 6), (7, 0)])
def test_scores_and_statistics_are_those_of_the_formula(K: int, E: int, theta: float) -> None:
    m, y = random_mixture(K, 6, E), 5 * draw(5, 300, 6)
    costs = compute_costs(y, m, theta)
    k = MixtureScorer(m, theta, Workspace()).assign(y)
    assert torch.equal(k, costs.argmin(1))
    statistics = measure(y, m, k)
    expected = torch.zeros(K, dtype=DOUBLE).index_add_(0, k, costs.min(1).values)
    torch.testing.assert_close(statistics.costs(m, theta), expected)
    residual = y - m.mu[k]
    residual = residual - (m.U[k] @ (m.U[k].mT @ residual[:, :, None]))[:, :, 0]
    torch.testing.assert_close(statistics.distortions().sum(), residual.square().sum())


def test_a_component_of_share_0_is_never_chosen() -> None:
    m, y = random_mixture(5, 6, 2), 5 * draw(5, 300, 6)
    m.p[2] = 0
    for theta in (0.0, 1.0):
        assert 2 not in MixtureScorer(m, theta, Workspace()).assign(y)


def test_moving_the_offsets_changes_the_statistics_as_a_new_pass_would() -> None:
    m, y = random_mixture(4, 6, 3), 5 * draw(5, 300, 6)
    k = MixtureScorer(m, 1.0, Workspace()).assign(y)
    delta = draw(6, 4, 6)
    moved = measure(y, m, k)
    moved.recentre(delta)
    again = measure(y, Mixture(m.mu + delta, m.U, m.v, m.p), k)
    for name in ("count", "shift", "scatter", "squared"):
        torch.testing.assert_close(getattr(moved, name), getattr(again, name), rtol=1e-9, atol=1e-9)


# ---- What never rises


@pytest.mark.parametrize(("K", "E", "step"), [(1, 3, 2.0), (5, 2, 3.0), (4, 8, 0.1), (6, 4, 8.0), (5, 0, 4.0)])
def test_j_never_rises_at_a_fixed_step_without_shrinkage(K: int, E: int, step: float) -> None:
    """A pass and an update, by hand: without the trainer's undoing of updates that gain nothing."""
    y, theta = torch.tensor(clusters()), step_to_theta(step)
    m = Mixture(
        y[:K].clone(), orthonormalise(draw(2, K, 8, E)), torch.zeros(K, E, dtype=DOUBLE), torch.full((K,), 1 / K)
    )
    last = math.inf
    for _ in range(40):
        k = MixtureScorer(m, theta, Workspace()).assign(y)
        statistics = measure(y, m, k)
        objective = float(statistics.costs(m, theta).sum())
        assert objective <= last * (1 + 1e-12)
        m, last = update_mixture(m, statistics), objective


def test_the_trainers_objective_never_rises_and_ends() -> None:
    trainer = build(clusters(), 6, 4, step=1.0)
    trainer.initialise()
    objectives = [trainer.objective]
    while not trainer.finished:
        trainer.epoch()
        objectives.append(trainer.objective)
        assert len(objectives) < 500
    assert objectives == sorted(objectives, reverse=True) and objectives[-1] < objectives[0]
    kept = trainer.model.W.detach().clone()
    trainer.epoch()
    torch.testing.assert_close(trainer.model.W.detach(), kept, rtol=1e-5, atol=1e-5)


# ---- Limits


@pytest.mark.parametrize("E", [1, 3, 8])
def test_one_component_is_scikit_learns_pca(E: int) -> None:
    X = clusters(1, 400)
    trainer = build(X, 1, E, step=1e-3)
    record = run(trainer)
    pca = PCA(E).fit(X)
    W = (trainer.model.W[0].detach() * trainer.model.beta**0.5).numpy()
    np.testing.assert_allclose(np.abs(W.T @ pca.components_.T), np.eye(E), atol=1e-4)
    np.testing.assert_allclose(trainer.model.mu[0].detach(), pca.mean_, atol=1e-9)
    np.testing.assert_allclose(trainer.mixture.v[0], pca.explained_variance_ * (399 / 400), rtol=1e-6)
    assert record[-1] == pytest.approx(
        np.square(X - pca.inverse_transform(pca.transform(X))).mean(), rel=1e-6, abs=1e-9
    )


def test_a_step_above_all_variances_is_scikit_learns_kmeans() -> None:
    """Clusters of one size, far apart against the price of a bit, which is above the variance of any latent."""
    X = clusters(5, 80, spread=100.0)
    trainer = build(X, 5, 3, step=20.0)
    run(trainer)
    assert float(trainer.mixture.v.max()) < trainer.theta
    oracle = KMeans(5, n_init=5, random_state=0).fit(X)
    mine, theirs = trainer.model.mu.detach().numpy(), oracle.cluster_centers_
    np.testing.assert_allclose(mine[np.lexsort(mine.T)], theirs[np.lexsort(theirs.T)], rtol=1e-9)


@pytest.mark.parametrize("step", [0.1, 1.0, 3.0, 10.0])
def test_reverse_water_filling_gives_the_textbooks_rate_and_distortion(step: float) -> None:
    """J of one normal component is D + lambda R with D = sum min(theta, v), R = sum 1/2 log2^+(v / theta)."""
    X = clusters(1, 500)
    trainer = build(X, 1, 8, step=step)
    run(trainer)
    v, theta = np.linalg.eigvalsh(np.cov(X.T, bias=True)), trainer.theta
    distortion, rate = np.minimum(v, theta).sum(), 0.5 * np.log2(np.maximum(v / theta, 1)).sum()
    assert trainer.objective == pytest.approx(distortion + TRADE_OFF * step**2 * rate, rel=1e-9)


def test_without_a_price_the_objective_is_that_of_the_trainer_for_the_residual() -> None:
    X = clusters(4, 100, spread=50.0)
    rated, plain = build(X, 4, 2, step=1e-4), ClosedForm(LLGAE(4, 8, 2).to(DOUBLE), Samples(X, centring="none"), seed=3)
    assert run(rated)[-1] == pytest.approx(run(plain)[-1], rel=1e-3)


# ---- The rate


def normalise_bits(sigma: float) -> float:
    m = Mixture(torch.zeros(1, 1), torch.ones(1, 1, 1), torch.full((1, 1), sigma**2, dtype=DOUBLE), torch.ones(1))
    return expect_bits(m, 1.0)


def test_the_bits_of_a_latent_tend_to_its_differential_entropy() -> None:
    s = 1.5
    for sigma in (40.0, 1e3, 1e6):
        alpha = sigma * math.sqrt(math.gamma(1 / s) / math.gamma(3 / s))
        entropy = 1 / (s * math.log(2)) + math.log2(2 * alpha * math.gamma(1 / s) / s)
        assert normalise_bits(sigma) == pytest.approx(entropy, abs=0.02)
    bits = [normalise_bits(2.0**i) for i in range(-8, 12)]
    assert bits[0] == 0 and bits == sorted(bits)
    assert 0.5 < normalise_bits(1.0) < 2.1


def test_components_cost_the_entropy_of_their_choice() -> None:
    m = random_mixture(5, 6, 0)
    assert expect_bits(m, 1.0) == pytest.approx(-float((m.p * m.p.log2()).sum()))
    m.p = torch.tensor([0.5, 0.5, 0, 0, 0])
    assert expect_bits(m, 1.0) == pytest.approx(1.0)


@pytest.mark.parametrize("bits", [3.0, 10.0, 100.0])
def test_the_solved_step_meets_the_rate(bits: float) -> None:
    m = random_mixture(5, 6, 4)
    assert expect_bits(m, solve_step(m, bits)) == pytest.approx(bits, abs=1e-6)
    trainer = build(clusters(), 4, 6, bits=bits)
    run(trainer, 5)
    assert expect_bits(trainer.mixture, trainer.step) == pytest.approx(bits, abs=1e-6)
    assert trainer.state_dict()["step"] == trainer.step


def test_more_bits_need_a_smaller_step() -> None:
    steps = [solve_step(random_mixture(3, 6, 4), bits) for bits in (4.0, 8.0, 40.0)]
    assert steps == sorted(steps, reverse=True) and len(set(steps)) == 3


def test_no_latents_need_no_step_below_the_smallest() -> None:
    trainer = build(clusters(), 4, 0, bits=50.0)
    run(trainer, 10)
    assert 0 < trainer.step < 1e-6 and math.isfinite(trainer.objective)


# ---- Dangers


def test_components_without_rows_are_replaced_by_halves_of_others() -> None:
    X = clusters(4)
    trainer = build(X, 4, 2, step=1.0)
    trainer.initialise()
    trainer.mixture.mu[1:] += 1e4
    trainer.statistics = None
    first, last = trainer.epoch(), {}
    for _ in range(20):
        last = trainer.epoch()
    assert first["repaired"] >= 3 and last["empty"] == 0 and last["train_mean_l2"] < first["train_mean_l2"]


def test_a_component_without_rows_in_a_late_pass_stays_finite_and_costs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rate_module, "SPLIT_PASSES", 0)
    trainer = build(clusters(4), 4, 2, step=1.0)
    trainer.initialise()
    trainer.mixture.mu[1] += 1e4
    trainer.statistics = None
    records = [trainer.epoch() for _ in range(3)]
    assert [record["empty"] for record in records] == [1, 1, 1] and records[-1]["repaired"] == records[0]["repaired"]
    assert math.isfinite(trainer.objective) and trainer.model.W.isfinite().all() and trainer.mixture.p[1] == 0


@pytest.mark.parametrize("E", [0, 3])
def test_halves_have_the_mean_and_share_of_the_whole(E: int) -> None:
    m, generator = random_mixture(4, 6, E), torch.Generator().manual_seed(0)
    m.p = torch.tensor([0.3, 0.0, 0.3, 0.4], dtype=DOUBLE)
    count = torch.tensor([3.0, 0.0, 3.0, 4.0], dtype=DOUBLE)
    split, replaced = split_components(m, torch.tensor([5.0, 0.0, 9.0, 1.0]), count, generator)
    assert replaced == 1
    torch.testing.assert_close((split.mu[1] + split.mu[2]) / 2, m.mu[2])
    torch.testing.assert_close(split.p[[1, 2]], m.p[2].expand(2) / 2)
    assert torch.equal(split.mu[[0, 3]], m.mu[[0, 3]]) and not torch.equal(split.mu[1], split.mu[2])
    assert (split.v.diff(dim=1) <= 0).all()


DEGENERATE = {
    "identical rows": np.full((50, 6), 7.0),
    "zeros": np.zeros((50, 6)),
    "two distinct rows": np.repeat(np.random.default_rng(0).normal(size=(2, 6)), 25, 0),
    "rank one": np.outer(np.arange(50.0), np.arange(1.0, 7.0)),
    "three rows": np.arange(18.0).reshape(3, 6) ** 2,
    "huge": 1e14 * np.random.default_rng(0).normal(size=(50, 6)),
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize(("K", "E"), [(1, 2), (3, 0), (3, 2), (3, 6)])
@pytest.mark.parametrize(
    "options", [{"bits": 20.0}, {"step": 1.0}, {"bits": 5.0, "shrinkage": 9.0, "leave_one_out": True}]
)
def test_degenerate_data_gives_a_finite_model(name: str, K: int, E: int, options: dict[str, Any]) -> None:
    X = DEGENERATE[name].astype(np.float32)
    trainer = build(X, K, E, torch.float32, **options)
    run(trainer, 6)
    assert all(bool(tensor.isfinite().all()) for tensor in trainer.model.state_dict().values())
    U = trainer.model.W.detach() * trainer.model.beta**0.5
    torch.testing.assert_close(U.mT @ U, torch.eye(E).expand(K, E, E), atol=1e-4, rtol=0)
    assert metrics.mean_l2(trainer.model, trainer.samples) <= X.var(0).mean() * 1.01 + 1e-9


def test_an_offset_common_to_all_samples_costs_no_digits() -> None:
    near, far = (run(build(clusters() + offset, 4, 2, torch.float32, step=1.0), 5)[-1] for offset in (0.0, 1e5))
    assert far == pytest.approx(near, rel=0.02)


# ---- Shrinkage


def test_few_rows_of_similar_components_choose_shrinkage_and_many_of_unlike_ones_none() -> None:
    strengths = []
    for alike, n in ((True, 10), (False, 2000)):
        axes = [torch.linalg.qr(draw(0 if alike else k, 12, 12))[0] for k in range(6)]
        scale = 3.0 * 0.6 ** torch.arange(12)
        y = torch.cat([100 * draw(k, 12) + draw(10 + k, n, 12) * scale @ axes[k] for k in range(6)])
        k = torch.arange(6).repeat_interleave(n)
        mu = torch.stack([y[k == j].mean(0) for j in range(6)])
        m = Mixture(mu, orthonormalise(draw(5, 6, 12, 6)), torch.zeros(6, 6, dtype=DOUBLE), torch.full((6,), 1 / 6))
        held_out = measure(y[::10], m, k[::10])
        strengths.append(choose_strength(m, measure(y, m, k), held_out, lambda _: 0.1))
    assert strengths[0] > 0 and strengths[1] == 0


def test_automatic_shrinkage_is_chosen_by_a_run(messages: list[str]) -> None:
    trainer = build(clusters(), 4, 3, bits=20.0, shrinkage="auto")
    run(trainer, 2)
    assert any("chosen on held-out rows" in line for line in messages)
    assert sum(line.startswith("pass ") for line in messages) == 3


# ---- Leave-one-out


def test_leaving_rows_out_lowers_the_cost_of_new_rows_where_components_have_few() -> None:
    """Rows near a surface that components tile; each of these has some 50 rows in 100 dimensions."""
    N, D, t = 1000, 100, draw(1, 3000, 4)
    surface = torch.cat([t, t.square(), t.roll(1, 1) * t, (2 * t).sin()], 1) @ draw(2, 16, D)
    X = surface + 0.7 * draw(3, 3000, D) * torch.linspace(1.5, 0.3, D)
    costs = []
    for leave_one_out in (False, True):
        trainer = build(X[:N].numpy(), 20, 6, step=3.0, shrinkage=10.0, leave_one_out=leave_one_out)
        run(trainer, 12)
        y = X[N:] - trainer.coordinates.centre
        costs.append(float(compute_costs(y, trainer.mixture, trainer.theta).min(1).values.mean()))
    assert costs[1] < 0.97 * costs[0]


# ---- One result, however it is run


def options() -> list[dict[str, Any]]:
    return [{"bits": 20.0, "shrinkage": 30.0}, {"step": 2.0}, {"bits": 20.0, "leave_one_out": True}]


@pytest.mark.parametrize("how", [0, 1, 2])
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_resumed_run_equals_one_that_was_not_interrupted_bit_for_bit(how: int, epochs: int) -> None:
    whole_run, resumed = (build(clusters(), 6, 3, torch.float32, **options()[how]) for _ in range(2))
    run(whole_run, epochs)
    state = copy.deepcopy((whole_run.model.state_dict(), whole_run.state_dict()))
    expected = [whole_run.epoch() for _ in range(3)]
    resumed.model.load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    assert [resumed.epoch() for _ in range(3)] == expected
    assert torch.equal(whole_run.model.W, resumed.model.W)


def test_a_state_that_does_not_fit_is_refused() -> None:
    trainer = build(clusters(), 6, 3, bits=20.0)
    trainer.initialise()
    state = trainer.state_dict()
    for wrong in ({"U": state["U"][:, :, :1]}, {"step": -1.0}, {"passes": "many"}, {"v": state["v"] * math.nan}):
        with pytest.raises(ValueError, match=r"expected|finite"):
            trainer.load_state_dict({**state, **wrong})


def test_blocks_and_threads_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            trainer = build(clusters(), 6, 3, torch.float32, bits=20.0, shrinkage=30.0, leave_one_out=True)
            results.append((run(trainer, 3), trainer.model.W.detach().clone()))
    finally:
        torch.set_num_threads(threads)
    assert results[0][0] == results[1][0] and torch.equal(results[0][1], results[1][1])
    monkeypatch.setattr(rate_module, "BLOCK_VALUES", 37 * 8)
    in_blocks = run(build(clusters(), 6, 3, bits=20.0, leave_one_out=True), 3)
    monkeypatch.undo()
    assert in_blocks == pytest.approx(run(build(clusters(), 6, 3, bits=20.0, leave_one_out=True), 3), rel=1e-9)


def test_few_coordinates_lose_only_what_lies_outside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    X = np.concatenate([clusters(), 1e-3 * draw(9, 400, 5).numpy()], 1)
    whole = run(build(X, 4, 3, step=1.0), 4)[-1]
    monkeypatch.setattr(rate_module, "COORDINATES", 8)
    assert run(build(X, 4, 3, step=1.0), 4)[-1] == pytest.approx(whole, rel=1e-3)


# ---- The model and the config


def test_the_model_has_the_components_with_axes_of_falling_variance() -> None:
    X = clusters()
    trainer = build(X, 4, 3, torch.float32, bits=20.0)
    reported = run(trainer, 30)[-1]
    assert metrics.mean_l2(trainer.model, trainer.samples) <= reported * (1 + 1e-5)
    code = trainer.model.encode(torch.tensor(X, dtype=torch.float32))
    for k in range(4):
        variances = code.b[code.k == k].var(0)
        assert torch.equal(variances, variances.sort(descending=True).values)
    peak = trainer.model.W.gather(1, trainer.model.W.abs().argmax(1, keepdim=True))
    assert (peak > 0).all()


@pytest.mark.parametrize("model", ["llgae", "pca", "kmeans"])
@pytest.mark.parametrize("options", [{"bits": 20.0}, {"step": 2.0}])
def test_bits_or_step_choose_this_trainer(model: str, options: dict[str, float]) -> None:
    K = {} if model == "pca" else {"K": 3}
    E = {} if model == "kmeans" else {"embed-dim": 2}
    config = parse_config({"model": model, **K, **E, **options})
    data = Samples(clusters().astype(np.float32), centring="none")
    trainer = build_trainer(config, build_model(config, (8,)), data, (8,))
    assert isinstance(trainer, RateClosedForm)
    plain = parse_config({"model": model, **K, **E})
    assert isinstance(build_trainer(plain, build_model(plain, (8,)), data, (8,)), ClosedForm)


def test_more_components_than_the_bits_can_choose_are_refused() -> None:
    config = parse_config({"K": 11, "bits": 3.0})
    data = Samples(clusters().astype(np.float32), centring="none")
    with pytest.raises(InputError, match=r"^bits: 3 with K 11: .* K is at most 2\^bits$"):
        build_trainer(config, build_model(config, (8,)), data, (8,))
