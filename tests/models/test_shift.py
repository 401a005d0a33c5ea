"""Shift: LLGAE on images that may be moved, against numpy's roll and least squares."""

import copy
import math
from collections.abc import Callable
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
from llgae_cli.models import LLGAE, Code, Shift
from llgae_cli.storage import codes
from llgae_cli.tasks import Samples
from llgae_cli.training import ClosedForm, Gradient, undo_shifts
from llgae_cli.training import closed_form as closed_form_module

pytestmark = pytest.mark.numeric
DOUBLE = torch.float64
INFERENCES = ["loop", "collapse", "least-squares"]
GREY, COLOUR = (5, 4), (4, 3, 3)


@pytest.fixture(scope="session")
def an_llgae(normal: Callable[..., Tensor]) -> Callable[..., LLGAE]:
    def make(D: int, inference: str = "least-squares", K: int = 3, E: int = 2, share: float = 0.7) -> LLGAE:
        W = normal(1, K, D, E)
        beta = share / (float(torch.linalg.matrix_norm(W, 2).max()) ** 2 if E else 1.0)
        model = LLGAE(K, D, E, beta=beta, n_step=3, inference=inference).double()
        with torch.no_grad():
            model.mu.copy_(3 * normal(2, K, D))
            model.W.copy_(W)
        return model

    return make


@pytest.fixture(scope="session")
def a_model(an_llgae: Callable[..., LLGAE]) -> Callable[..., Shift]:
    def make(shape: tuple[int, ...] = GREY, window: int = 1, inference: str = "least-squares", **sizes: int) -> Shift:
        return Shift(an_llgae(math.prod(shape), inference, **sizes), shape, window).double()

    return make


@pytest.fixture(scope="session")
def seen_by(normal: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def make(model: Shift, n: int = 30) -> Tensor:
        """Samples of the model itself, with noise."""
        symbols = 2 * model.window + 1
        draw = torch.Generator().manual_seed(5)
        k, s = torch.randint(model.K, (n,), generator=draw), torch.randint(symbols, (n, 2), generator=draw)
        return (model.decode(Code(k, normal(6, n, model.E), s)) + 0.5 * normal(7, n, model.D)).detach()

    return make


def every(model: Shift, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """|x - x_hat|^2 (n, dy, dx, k) by numpy: the images rolled, the latents by least squares."""
    steps = range(-model.window, model.window + 1)
    results = np.empty((len(x), len(steps), len(steps), model.K))
    for i, dy in enumerate(steps):
        for j, dx in enumerate(steps):
            for k in range(model.K):
                mu, W = model.affine.mu[k].detach().numpy(), model.affine.W[k].detach().numpy()
                moved = [np.roll(v.reshape(shape), (dy, dx), (0, 1)).ravel() for v in (mu, *W.T)]
                mu, W = moved[0], np.stack(moved[1:], 1) if len(moved) > 1 else np.empty((model.D, 0))
                target = (x.numpy() - mu).T
                results[:, i, j, k] = np.square(target - W @ np.linalg.lstsq(W, target, rcond=None)[0]).sum(0)
    return torch.tensor(results)


def squared(model: Shift, x: Tensor) -> Tensor:
    return (x - model.decode(model.encode(x))).square().sum(1).detach()


def pictures(n: int = 500, side: int = 6) -> Samples:
    """Two pictures of varying strength, each somewhere within a pixel of its place, with a little noise."""
    generator = np.random.default_rng(0)
    first = generator.normal(size=(2, side, side)) * 10
    second = generator.normal(size=(2, side, side)) * 3
    k, b = generator.integers(2, size=n), generator.normal(size=(n, 1, 1))
    images = first[k] + b * second[k]
    moved = [np.roll(image, generator.integers(-1, 2, size=2), (0, 1)) for image in images]
    return Samples(np.stack(moved) + 0.1 * generator.normal(size=(n, side, side)), None, "none")


def closed_form(data: Samples, window: int, K: int = 2, E: int = 1, dtype: torch.dtype = DOUBLE, **options):
    model = Shift(LLGAE(K, data.D, E), (6, 6), window).to(dtype)
    settings = {"seed": 3, "restarts": 2, "moves": 4, "tol": 1e-4, **options}
    return model, ClosedForm(model.affine, data, target=undo_shifts(model), **settings)


# ---- No window is LLGAE


@pytest.mark.parametrize("inference", INFERENCES)
def test_without_a_window_it_is_llgae(
    an_llgae: Callable[..., LLGAE], a_model: Callable[..., Shift], seen_by: Callable[..., Tensor], inference: str
) -> None:
    model, single = a_model(window=0, inference=inference), an_llgae(20, inference)
    x = seen_by(model)
    code, expected = model.encode(x), single.encode(x)
    assert torch.equal(code.k, expected.k)
    assert code.s is not None and not code.s.any() and model.symbols == (1, 1)
    close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
    close(code.b, expected.b)
    close(model.decode(code), single.decode(expected))
    close(model.jacobian(code), single.jacobian(expected))
    close(model.loss(x), single.loss(x))
    assert model.step_limit() == pytest.approx(single.step_limit(), rel=1e-12)


@pytest.mark.parametrize("trainer", ["closed-form", "gradient"])
def test_without_a_window_it_is_trained_as_llgae(trainer: str) -> None:
    data, results = pictures(200), []
    for extra in ({"model": "llgae"}, {"model": "shift", "window": 0}):
        config = Config(K=3, embed_dim=2, trainer=trainer, seed=5, moves=2, restarts=2, batch_size=50, **extra)
        model = build_model(config, (6, 6))
        results.append((run(build_trainer(config, model, data, (6, 6)), 3), list(model.parameters())))
    assert results[0][0] == results[1][0]
    assert all(map(torch.equal, results[0][1], results[1][1]))


# ---- Codes


@pytest.mark.parametrize("shape, window", [(GREY, 1), (COLOUR, 1), ((6, 7), 2)])
@pytest.mark.parametrize("E", [0, 2])
def test_the_code_is_the_best_of_all_components_and_shifts(
    normal: Callable[..., Tensor],
    a_model: Callable[..., Shift],
    seen_by: Callable[..., Tensor],
    shape: tuple[int, ...],
    window: int,
    E: int,
) -> None:
    model = a_model(shape, window, E=E)
    x = torch.cat([seen_by(model), 3 * normal(8, 10, model.D)])
    code, results = model.encode(x), every(model, x, shape)
    assert code.s is not None
    at = (torch.arange(len(x)), code.s[:, 0], code.s[:, 1], code.k)
    torch.testing.assert_close(results[at], results.flatten(1).min(1).values)
    torch.testing.assert_close(squared(model, x), results[at], rtol=1e-9, atol=1e-9)
    assert len(code.s.unique(dim=0)) > 4


@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_a_decoded_image_is_shifted_circularly(
    normal: Callable[..., Tensor], a_model: Callable[..., Shift], shape: tuple[int, ...]
) -> None:
    model, b = a_model(shape), normal(4, 9, 2)
    k, s = torch.arange(9) % 3, torch.cartesian_prod(torch.arange(3), torch.arange(3))
    plain = model.affine.decode(Code(k, b)).detach()
    for row, image in enumerate(model.decode(Code(k, b, s)).detach()):
        shift = tuple((s[row] - 1).tolist())
        np.testing.assert_array_equal(image.view(shape), np.roll(plain[row].view(shape), shift, (0, 1)))


@pytest.mark.parametrize("inference", INFERENCES)
def test_encode_decode_loss_and_jacobian_are_one_model(
    a_model: Callable[..., Shift], seen_by: Callable[..., Tensor], inference: str
) -> None:
    model = a_model(inference=inference)
    x = seen_by(model)
    code = model.encode(x)
    torch.testing.assert_close(model.loss(x), squared(model, x).sum() / x.numel(), rtol=1e-10, atol=1e-12)
    offset = model.decode(code._replace(b=torch.zeros_like(code.b)))
    drawn = torch.einsum("nde,ne->nd", model.jacobian(code), code.b)
    torch.testing.assert_close(model.decode(code), offset + drawn, rtol=1e-10, atol=1e-10)


def test_the_loop_and_its_collapse_give_the_same_code_even_where_steps_diverge(
    an_llgae: Callable[..., LLGAE], seen_by: Callable[..., Tensor]
) -> None:
    for share in (0.7, 2.3):
        loop, collapse = (Shift(an_llgae(20, how, share=share), GREY, 1) for how in ("loop", "collapse"))
        x = seen_by(loop)
        one, other = loop.encode(x), collapse.encode(x)
        assert torch.equal(one.k, other.k) and torch.equal(one.s, other.s)
        torch.testing.assert_close(one.b, other.b, rtol=1e-9, atol=1e-9)


def test_a_shift_within_the_window_does_not_raise_the_residual(
    a_model: Callable[..., Shift], seen_by: Callable[..., Tensor]
) -> None:
    model, wide = a_model((6, 7), 0), a_model((6, 7), 2)
    x = seen_by(model)
    moved = torch.stack([image.roll((1, -2), (0, 1)) for image in x.view(-1, 6, 7)]).flatten(1)
    assert (squared(wide, moved) <= squared(model, x) + 1e-9).all()
    assert (squared(wide, x) <= squared(model, x) + 1e-9).all()


def test_a_tie_goes_to_the_smallest_shift(a_model: Callable[..., Shift]) -> None:
    model = a_model()
    with torch.no_grad():
        model.affine.mu.fill_(2.0)
        model.affine.W.zero_()
    code = model.encode(torch.full((3, 20), 5.0, dtype=DOUBLE))
    assert code.s is not None and (code.s == 1).all() and not code.k.any()


def test_an_offset_common_to_all_pixels_costs_no_digits(
    a_model: Callable[..., Shift], seen_by: Callable[..., Tensor]
) -> None:
    model = a_model().float()
    x = seen_by(a_model()).float()
    expected = model.encode(x)
    model.affine.mu.data += 4096
    results = model.encode(x + 4096)
    assert (results.k == expected.k).float().mean() > 0.95 and (results.s == expected.s).float().mean() > 0.95


@pytest.mark.parametrize("inference", INFERENCES)
def test_the_gradient_is_the_derivative(
    a_model: Callable[..., Shift], seen_by: Callable[..., Tensor], inference: str
) -> None:
    model = a_model((3, 3), inference=inference, K=2)
    x = seen_by(model, 6)

    def loss(mu: Tensor, W: Tensor) -> Tensor:
        return torch.func.functional_call(model, {"affine.mu": mu, "affine.W": W}, (x,))

    model.forward = model.loss  # type: ignore[method-assign]
    assert torch.autograd.gradcheck(loss, [p.detach().clone().requires_grad_() for p in model.parameters()])


def test_no_samples_give_no_codes(a_model: Callable[..., Shift]) -> None:
    code = a_model().encode(torch.empty(0, 20, dtype=DOUBLE))
    assert code.k.shape == (0,) and code.b.shape == (0, 2) and code.s is not None and code.s.shape == (0, 2)


def test_codes_in_a_file_decode_to_the_models_own_mean_l2(tmp_path: Path) -> None:
    data = pictures()
    model, trainer = closed_form(data, 1, dtype=torch.float32)
    run(trainer, 5)
    reported = write_codes(model, data, tmp_path / "codes.npz")
    x_hat = torch.cat(list(codes.decode_file(model, codes.CodesFile(tmp_path / "codes.npz", model))))
    results = float((data.rows(slice(None)) - x_hat.detach()).square().mean())
    assert reported == pytest.approx(metrics.mean_l2(model, data), rel=1e-6) == pytest.approx(results, rel=1e-5)


# ---- The closed-form trainer


@pytest.mark.parametrize("K, E, window", [(2, 1, 1), (3, 2, 2), (4, 0, 1), (1, 1, 1)])
def test_the_objective_never_rises_and_is_the_models_own(K: int, E: int, window: int) -> None:
    data = pictures(300)
    model, trainer = closed_form(data, window, K, E)
    trainer.initialise()
    x, last = data.rows(slice(None), dtype=DOUBLE), math.inf
    for _ in range(15):
        reported = trainer.epoch()["train_mean_l2"]
        assert reported <= last
        assert reported == pytest.approx(float(squared(model, x).mean()) / data.D, rel=1e-9)
        last = reported


def test_training_with_shifts_explains_shifted_pictures() -> None:
    data, results = pictures(), []
    for window in (0, 1):
        trainers = [closed_form(data, window, tol=1e-5, restarts=4, moves=10, seed=seed)[1] for seed in (3, 4, 5)]
        results.append(min(run(trainer)[-1] for trainer in trainers))  # one initialisation may be bad
    assert results[1] < 0.1 * results[0]


def test_a_resumed_run_equals_one_that_was_not_interrupted_bit_for_bit() -> None:
    data = pictures()
    model, whole_run = closed_form(data, 1, dtype=torch.float32)
    run(whole_run, 2)
    state = copy.deepcopy((model.state_dict(), whole_run.state_dict()))
    expected = [whole_run.epoch() for _ in range(3)]
    again, resumed = closed_form(data, 1, dtype=torch.float32)
    again.load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    assert [resumed.epoch() for _ in range(3)] == expected
    assert all(map(torch.equal, model.parameters(), again.parameters()))


def test_training_in_chunks_agrees_with_training_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for rows in (1000, 97):
        monkeypatch.setattr(closed_form_module, "chunk_rows", lambda K, D, rows=rows: rows)
        results.append(run(closed_form(pictures(), 1)[1], 5)[-1])
    assert results[0] == pytest.approx(results[1], rel=1e-9)


def test_a_large_offset_does_not_change_training() -> None:
    results = []
    for offset in (0.0, 1e5):
        data = Samples(pictures().rows(slice(None), dtype=DOUBLE) + offset, None, "none")
        results.append(run(closed_form(data, 1)[1], 6)[-1])
    assert results[0] == pytest.approx(results[1], rel=1e-3)


def test_the_gradient_trainer_lowers_the_loss() -> None:
    data = pictures()
    model = Shift(LLGAE(2, 36, 1), (6, 6), 1)
    record = run(Gradient(model, data, seed=3, optimizer="adam", lr=0.03, batch_size=50), 6)
    assert record[-1] < 0.6 * record[0]


# ---- What it does not fit


@pytest.mark.parametrize(
    "shape, options, message",
    [
        ((36,), {}, "model shift: needs images (H, W) or (H, W, 3); samples here have 36 values"),
        ((6, 6), {"window": 3}, "window: 3 is too wide for images of 6 x 6"),
        ((6, 6), {"candidates": 2}, "candidates: 2 with model shift, which scores every component"),
    ],
)
def test_a_config_that_does_not_fit_gives_one_line(shape: tuple[int, ...], options: dict, message: str) -> None:
    config = Config(K=3, embed_dim=1, model="shift", **options)
    with pytest.raises(InputError) as raised:
        build_trainer(config, build_model(config, shape), pictures(50), shape)
    assert str(raised.value) == message
