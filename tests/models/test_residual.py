"""Residual: levels whose parts add up, each an LLGAE of the residual of the others."""

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from training_helper import run  # tests/training_helper.py

from llgae_cli.config import Config
from llgae_cli.errors import InputError
from llgae_cli.evaluation import metrics
from llgae_cli.evaluation.encoding import write_codes
from llgae_cli.factory import build_model, build_trainer
from llgae_cli.models import LLGAE, Code, Model, Residual
from llgae_cli.storage import codes
from llgae_cli.tasks import Samples
from llgae_cli.training import Gradient, ResidualClosedForm
from llgae_cli.training import closed_form as closed_form_module

pytestmark = pytest.mark.numeric
DOUBLE = torch.float64
INFERENCES = ["loop", "collapse", "least-squares"]


@pytest.fixture(scope="session")
def X(normal: Callable[..., Tensor]) -> Tensor:
    return normal(3, 40, 9)


@pytest.fixture(scope="session")
def a_level(normal: Callable[..., Tensor]) -> Callable[..., LLGAE]:
    def make(seed: int, inference: str, K: int = 4, D: int = 9, E: int = 2, n_step: int = 3) -> LLGAE:
        W = normal(2 * seed, K, D, E)
        beta = 0.7 / (float(torch.linalg.matrix_norm(W, 2).max()) ** 2 if E else 1.0)
        level = LLGAE(K, D, E, beta=beta, n_step=n_step, inference=inference).double()
        with torch.no_grad():
            level.mu.copy_(normal(2 * seed + 1, K, D))
            level.W.copy_(W)
        return level

    return make


@pytest.fixture(scope="session")
def a_model(a_level: Callable[..., LLGAE]) -> Callable[..., Residual]:
    def make(L: int, sweeps: int = 1, inference: str = "least-squares", **sizes: int) -> Residual:
        return Residual([a_level(seed, inference, **sizes) for seed in range(L)], sweeps)

    return make


def squared(model: Model, x: Tensor) -> Tensor:
    """|x - x_hat|^2 of each sample."""
    return (x - model.decode(model.encode(x))).square().sum(1).detach()


def blobs(n: int = 600, D: int = 12) -> Samples:
    """Sums of one of three points and one of three others, with a little noise of falling variance."""
    generator = np.random.default_rng(0)
    first, second = 10 * generator.normal(size=(3, D)), 3 * generator.normal(size=(3, D))
    noise = generator.normal(size=(n, D)) * 0.7 ** np.arange(D)
    return Samples(first[generator.integers(3, size=n)] + second[generator.integers(3, size=n)] + noise, None, "none")


def level_trainer(
    data: Samples, L: int, K: int = 3, E: int = 1, sweeps: int = 1, dtype: torch.dtype = DOUBLE, **options
) -> ResidualClosedForm:
    model = Residual([LLGAE(K, data.D, E) for _ in range(L)], sweeps).to(dtype)
    return ResidualClosedForm(model, data, **{"seed": 3, "restarts": 1, "moves": 0, "tol": 1e-4, **options})


# ---- A single level is LLGAE


@pytest.mark.parametrize("inference", INFERENCES)
@pytest.mark.parametrize("sweeps", [0, 2])
def test_one_level_is_llgae(
    a_level: Callable[..., LLGAE], a_model: Callable[..., Residual], X: Tensor, inference: str, sweeps: int
) -> None:
    model, single = a_model(1, sweeps, inference), a_level(0, inference)
    code, expected = model.encode(X), single.encode(X)
    assert code.s is None and model.symbols == () and (model.K, model.E) == (single.K, single.E)
    assert torch.equal(code.k, expected.k)
    close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
    close(code.b, expected.b)
    close(model.decode(code), single.decode(expected))
    close(model.jacobian(code), single.jacobian(expected))
    assert model.step_limit() == pytest.approx(single.step_limit(), rel=1e-12)
    losses = model.loss(X), single.loss(X)
    close(*losses)
    for loss in losses:
        loss.backward()
    for one, other in zip(model.parameters(), single.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        close(one.grad, other.grad)


@pytest.mark.parametrize("trainer", ["closed-form", "gradient"])
def test_one_level_is_trained_as_llgae(trainer: str) -> None:
    data, results = blobs(300), []
    for extra in ({"model": "llgae"}, {"model": "residual", "levels": 1}):
        config = Config(K=3, embed_dim=2, trainer=trainer, seed=5, moves=2, restarts=2, batch_size=50, **extra)
        model = build_model(config, (data.D,))
        results.append((run(build_trainer(config, model, data, (data.D,)), 4), list(model.parameters())))
    assert results[0][0] == results[1][0]
    assert all(map(torch.equal, results[0][1], results[1][1]))


# ---- Codes


def solve_level(x: Tensor, level: LLGAE) -> tuple[Tensor, Tensor]:
    """By numpy's least squares: the squared residuals (n, K) and x_hat (n, K, D) of every component."""
    x_hat = []
    for mu, W in zip(level.mu.detach().numpy(), level.W.detach().numpy(), strict=True):
        b = np.linalg.lstsq(W, (x.numpy() - mu).T, rcond=None)[0]
        x_hat.append(mu + (W @ b).T)
    every = torch.tensor(np.stack(x_hat, 1))
    return (x[:, None] - every).square().sum(2), every


def test_without_sweeps_each_level_takes_the_best_component_for_what_is_left(
    a_model: Callable[..., Residual], X: Tensor
) -> None:
    model = a_model(3, sweeps=0)
    code = model.encode(X)
    assert code.b.shape == (40, 6) and code.s is not None and code.s.shape == (40, 2)
    residual = X
    for level, k in zip(model.levels, (code.k, *code.s.T), strict=True):
        squared_residual, x_hat = solve_level(residual, level)
        assert torch.equal(k, squared_residual.argmin(1))
        residual = residual - x_hat[torch.arange(40), k]
    torch.testing.assert_close(X - model.decode(code), residual)


@pytest.mark.parametrize("L", [2, 3])
def test_sweeps_never_raise_the_residual_and_end_where_no_single_level_can_lower_it(
    a_model: Callable[..., Residual], X: Tensor, L: int
) -> None:
    models = [a_model(L, sweeps) for sweeps in (0, 1, 2, 5, 80)]
    results = [squared(model, X) for model in models]
    for before, after in itertools.pairwise(results):
        assert (after <= before + 1e-9).all()
    assert results[1].sum() < 0.99 * results[0].sum()
    code = models[-1].encode(X)
    for i, level in enumerate(models[-1].levels):
        parts = [one.decode(own) for one, own in zip(models[-1].levels, models[-1].split(code), strict=True)]
        others = sum(part for j, part in enumerate(parts) if j != i)
        every, _ = solve_level((X - others).detach(), level)
        torch.testing.assert_close(every.min(1).values, results[-1], rtol=1e-6, atol=1e-8)


def test_all_pairs_of_components_with_joint_least_squares_bound_the_residual_from_below(
    a_model: Callable[..., Residual], X: Tensor
) -> None:
    model, best = a_model(2, sweeps=20), torch.full((40,), math.inf, dtype=DOUBLE)
    first, second = model.levels
    for i, j in itertools.product(range(4), range(4)):
        mu = (first.mu[i] + second.mu[j]).detach().numpy()
        W = torch.cat([first.W[i], second.W[j]], 1).detach().numpy()
        b = np.linalg.lstsq(W, (X.numpy() - mu).T, rcond=None)[0]
        best = torch.minimum(best, (X - torch.tensor(mu + (W @ b).T)).square().sum(1))
    results = squared(model, X)
    assert (results >= best - 1e-9).all()
    assert (results < best * (1 + 1e-3) + 1e-6).float().mean() > 0.3  # and reach it for many samples
    assert results.sum() < 1.5 * best.sum()


@pytest.mark.parametrize("inference", INFERENCES)
@pytest.mark.parametrize("L, sweeps", [(2, 0), (2, 1), (3, 2)])
def test_encode_decode_loss_and_jacobian_are_one_model(
    a_model: Callable[..., Residual], X: Tensor, inference: str, L: int, sweeps: int
) -> None:
    model = a_model(L, sweeps, inference)
    code = model.encode(X)
    torch.testing.assert_close(model.loss(X), squared(model, X).sum() / X.numel(), rtol=1e-10, atol=1e-12)
    derivative = torch.autograd.functional.jacobian(lambda b: model.decode(code._replace(b=b)), code.b)
    torch.testing.assert_close(model.jacobian(code), torch.einsum("ndne->nde", derivative))
    offset = model.decode(code._replace(b=torch.zeros_like(code.b)))
    torch.testing.assert_close(
        model.decode(code), offset + torch.einsum("nde,ne->nd", model.jacobian(code), code.b), rtol=1e-9, atol=1e-9
    )


def test_every_inference_of_the_same_steps_gives_the_same_code(a_model: Callable[..., Residual], X: Tensor) -> None:
    loop, collapse = (a_model(3, 2, inference).encode(X) for inference in ("loop", "collapse"))
    assert torch.equal(loop.k, collapse.k) and torch.equal(loop.s, collapse.s)
    torch.testing.assert_close(loop.b, collapse.b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("inference", INFERENCES)
def test_the_gradient_is_the_derivative_through_every_round(
    normal: Callable[..., Tensor], a_model: Callable[..., Residual], inference: str
) -> None:
    model = a_model(2, 1, inference, K=2, D=5, E=2)
    x = normal(4, 6, 5)
    names = list(dict(model.named_parameters()))

    def loss(*values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    model.forward = model.loss  # type: ignore[method-assign]
    assert torch.autograd.gradcheck(loss, [p.detach().clone().requires_grad_() for p in model.parameters()])


@pytest.mark.parametrize("inference", ["collapse", "least-squares"])
def test_the_gradient_in_the_sample_is_the_derivative(a_level: Callable[..., LLGAE], X: Tensor, inference: str) -> None:
    level = a_level(0, inference)
    assert torch.autograd.gradcheck(level.loss, [X[:6].clone().requires_grad_()])


def test_no_samples_and_no_latent_dimensions_are_no_special_case(a_model: Callable[..., Residual], X: Tensor) -> None:
    code = a_model(2).encode(X[:0])
    assert code.k.shape == (0,) and code.b.shape == (0, 4) and code.s is not None and code.s.shape == (0, 1)
    model = a_model(3, E=0)
    code = model.encode(X)
    assert code.b.shape == (40, 0) and model.decode(code).shape == X.shape
    torch.testing.assert_close(model.loss(X), squared(model, X).sum() / X.numel())


def test_codes_in_a_file_decode_to_the_models_own_mean_l2(tmp_path: Path) -> None:
    data = blobs()
    trainer = level_trainer(data, 3, dtype=torch.float32)
    run(trainer, 12)
    reported = write_codes(trainer.model, data, tmp_path / "codes.npz")
    x_hat = torch.cat(list(codes.decode_file(trainer.model, codes.CodesFile(tmp_path / "codes.npz", trainer.model))))
    results = float((data.rows(slice(None)) - x_hat.detach()).square().mean())
    assert reported == pytest.approx(metrics.mean_l2(trainer.model, data), rel=1e-6) == pytest.approx(results, rel=1e-5)
    assert dict(np.load(tmp_path / "codes.npz"))["s"].shape == (data.N, 2)


# ---- Initialisation


def test_initialisation_is_that_of_llgae_plus_levels_that_lower_the_loss(a_level: Callable[..., LLGAE]) -> None:
    data = blobs().rows(slice(None), dtype=DOUBLE)
    model, single = Residual([LLGAE(3, 12, 2).double() for _ in range(3)]), LLGAE(3, 12, 2).double()
    for one in (model, single):
        one.initialise(data, torch.Generator().manual_seed(0))
    assert torch.equal(model.levels[0].mu, single.mu) and torch.equal(model.levels[0].W, single.W)
    assert model.levels[2].W.any() and not model.levels[2].mu.any()
    assert model.loss(data) < single.loss(data)
    affine = a_level(7, "collapse", K=3, D=12, E=2)
    model.initialise_from(affine, data, torch.Generator().manual_seed(0))
    assert torch.equal(model.levels[0].W, affine.W)


def test_the_gradient_trainer_lowers_the_loss() -> None:
    data = blobs()
    model = Residual([LLGAE(3, 12, 1) for _ in range(2)])
    trainer = Gradient(model, data, seed=3, optimizer="adam", lr=0.03, batch_size=50)
    record = run(trainer, 8)
    assert record[-1] < 0.5 * record[0] and math.isfinite(record[-1])


# ---- The closed-form trainer


@pytest.mark.parametrize("L, K, E, sweeps", [(2, 3, 1, 1), (3, 2, 2, 0), (2, 4, 0, 2), (4, 1, 1, 1)])
def test_the_objective_never_rises_and_is_the_models_own(L: int, K: int, E: int, sweeps: int) -> None:
    data = blobs()
    trainer = level_trainer(data, L, K, E, sweeps, tol=2e-3)
    trainer.initialise()
    last, refits = math.inf, 0
    for _ in range(60):
        reported = trainer.epoch()["train_mean_l2"]
        assert reported <= last * (1 + 1e-12)
        if trainer.fitted == L and refits < 30:
            refits += 1
            own = float(squared(trainer.model, data.rows(slice(None), dtype=DOUBLE)).mean()) / data.D
            assert own <= reported * (1 + 1e-9)  # the pass that ends the last level does not sweep
            if refits > 1:
                assert own == pytest.approx(reported, rel=1e-9)
        last = reported
        if trainer.finished:
            break
    assert trainer.finished and refits > 1


def test_more_levels_are_better_and_recover_sums_of_points() -> None:
    data = blobs()
    results = [run(level_trainer(data, L, E=0, sweeps=2, restarts=4, moves=10))[-1] for L in (1, 2, 3)]
    assert results[0] > 2 * results[1] > 2 * results[2]
    noise = float(np.mean(0.7 ** (2 * np.arange(12))))
    assert results[1] < 1.1 * noise  # 3 x 3 points from 3 + 3


def test_an_update_that_raises_the_objective_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = level_trainer(blobs(), 2)
    run(trainer, 100)
    kept, objective = [p.detach().clone() for p in trainer.model.parameters()], trainer.objective
    worse = [copy.deepcopy(one.components) for one in trainer.trainers]
    for one, components in zip(trainer.trainers, worse, strict=True):
        components.mu += 1
        monkeypatch.setattr(one, "next_components", lambda statistics, components=components: components)
    trainer.idle = 0
    for i in (1, 2):
        assert trainer.epoch()["train_mean_l2"] == objective / 12
        assert trainer.finished == (i == 2)
    assert all(map(torch.equal, kept, trainer.model.parameters()))


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_was_not_interrupted_bit_for_bit() -> None:
    data = blobs()
    whole_run = level_trainer(data, 2, dtype=torch.float32)
    whole_run.initialise()
    states: list[tuple] = []
    records = []
    while not whole_run.finished:
        states.append(copy.deepcopy((whole_run.model.state_dict(), whole_run.state_dict())))
        records.append(whole_run.epoch())
    refitting = next(i for i, state in enumerate(states) if state[1]["fitted"] == 2)
    assert 0 < refitting < len(states) - 3
    for first in (0, 1, refitting - 1, refitting, refitting + 2):
        resumed = level_trainer(data, 2, dtype=torch.float32)
        resumed.model.load_state_dict(states[first][0])
        resumed.load_state_dict(states[first][1])
        count = min(4, len(records) - first)
        assert [resumed.epoch() for _ in range(count)] == records[first : first + count]
        if first + count < len(states):
            expected = states[first + count][0]
            assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


def test_training_in_chunks_agrees_with_training_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for rows in (1000, 97):
        monkeypatch.setattr(closed_form_module, "chunk_rows", lambda K, D, rows=rows: rows)
        results.append(run(level_trainer(blobs(), 2, tol=1e-6), 12)[-1])
    assert results[0] == pytest.approx(results[1], rel=1e-7)


def test_an_offset_common_to_all_samples_costs_no_digits() -> None:
    results = []
    for offset in (0.0, 1e6):
        data = Samples(blobs().rows(slice(None), dtype=DOUBLE) + offset, None, "none")
        results.append(run(level_trainer(data, 2, tol=1e-3), 12)[-1])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def parts(model: Residual) -> Iterator[tuple[Tensor, Tensor]]:
    for level in model.levels:
        yield level.mu.detach(), level.W.detach()


def test_bases_are_in_the_gauge_and_in_order() -> None:
    data = blobs()
    trainer = level_trainer(data, 2, K=2, E=2, tol=1e-8)
    run(trainer)
    x = data.rows(slice(None), dtype=DOUBLE)
    code = trainer.model.encode(x)
    for (_, W), own in zip(parts(trainer.model), trainer.model.split(code), strict=True):
        torch.testing.assert_close(W.mT @ W, torch.eye(2, dtype=DOUBLE).expand(2, 2, 2) / 0.01)
        for k in range(2):
            spread = own.b[own.k == k].var(0)
            assert spread[0] > spread[1] * 0.98  # codes of the last round, near those of the last update


def test_training_with_shrinkage_converges() -> None:
    assert len(run(level_trainer(blobs(), 2, shrinkage=5.0, tol=2e-3))) < 100


def test_shortlists_are_refused_in_one_line() -> None:
    config = Config(K=3, embed_dim=1, model="residual", candidates=2)
    with pytest.raises(InputError, match=r"^candidates: 2 with model residual, which scores every component$"):
        build_trainer(config, build_model(config, (12,)), blobs(), (12,))


def test_codes_decode_without_the_sample(a_model: Callable[..., Residual]) -> None:
    model = a_model(2)
    code = Code(torch.tensor([2]), torch.tensor([[1.0, 0, 0, 2]], dtype=DOUBLE), torch.tensor([[3]]))
    first, second = model.levels
    expected = first.mu[2] + first.W[2, :, 0] + second.mu[3] + 2 * second.W[3, :, 1]
    torch.testing.assert_close(model.decode(code)[0], expected)
