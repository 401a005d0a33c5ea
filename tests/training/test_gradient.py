"""The gradient trainer's schedule, average of the parameters, mirror images, noise and closed-form initialisation."""

import math
from typing import Any

import pytest
import torch

from llgae_cli.models import DECODERS, ENCODERS, GAE, LLGAE, Autoencoder, Decoder, Model
from llgae_cli.tasks import Samples
from llgae_cli.training import ClosedForm, Gradient, gradient
from llgae_cli.training.gradient import mirror_half

pytestmark = pytest.mark.numeric
K, E, SHAPE = 3, 2, (6, 6)
D = 36
SAMPLES = Samples(torch.randn(200, D, generator=torch.Generator().manual_seed(1)) * 3, centring="none")
DEFAULT = {"seed": 4, "optimizer": "adamw", "lr": 1e-2, "batch_size": 32}


def an_llgae() -> LLGAE:
    return LLGAE(K, D, E, inference="least-squares")


def a_deep_llgae(ascent: str = "later", ascent_from: int = 0) -> GAE:
    parts = Decoder(LLGAE(K, D, E), DECODERS["conv"](K, E, SHAPE, 16, 4))
    guide = ENCODERS["conv"](K, E, SHAPE, 16, 4)
    return GAE(
        parts, K, D, E, n_step=2, beta=1e-3, ascent=ascent, ascent_from=ascent_from, affine=an_llgae(), guide=guide
    )


def as_in_a_file(value: Any) -> Any:
    """A copy with every tensor laid out row by row, as checkpoints hold them."""
    if isinstance(value, dict):
        return {key: as_in_a_file(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_in_a_file(inner) for inner in value]
    return value.detach().contiguous().clone() if isinstance(value, torch.Tensor) else value


def a_trainer(model: Model, **options: object) -> Gradient:
    trainer = Gradient(model, SAMPLES, **{**DEFAULT, **options})  # type: ignore[arg-type]
    trainer.initialise()
    return trainer


def learning_rates(trainer: Gradient, epochs: int) -> list[list[float]]:
    """The learning rates of each parameter group in each step of the epochs."""
    rates: list[list[float]] = []
    hook = trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append([group["lr"] for group in optimizer.param_groups])
    )
    for _ in range(epochs):
        trainer.epoch()
    hook.remove()
    return rates


def test_one_cycle_rises_linearly_and_falls_along_a_cosine_to_zero() -> None:
    trainer = a_trainer(an_llgae(), schedule="one-cycle", epochs=4)
    T = 4 * trainer.steps_per_epoch
    rates = [one for (one,) in learning_rates(trainer, 4)]
    peak = math.ceil(0.15 * T)
    t = torch.arange(T, dtype=torch.float64) / T
    rise, fall = 0.1 + 0.9 * t / 0.15, (1 + torch.cos(math.pi * (t - 0.15) / 0.85)) / 2
    torch.testing.assert_close(torch.tensor(rates, dtype=torch.float64), 1e-2 * torch.where(t < 0.15, rise, fall))
    assert rates.index(max(rates)) == peak
    assert trainer.rate_factor(T) == trainer.rate_factor(2 * T) == pytest.approx(0, abs=1e-12)


def test_trapezoidal_rises_linearly_stays_and_falls_linearly_to_zero() -> None:
    trainer = a_trainer(an_llgae(), schedule="trapezoidal", epochs=4)
    T = 4 * trainer.steps_per_epoch
    rates = torch.tensor([one for (one,) in learning_rates(trainer, 4)], dtype=torch.float64)
    t = torch.arange(T, dtype=torch.float64) / T
    rise, fall = 0.1 + 0.9 * t / 0.05, (1 - t) / 0.4
    torch.testing.assert_close(rates, 1e-2 * torch.minimum(torch.minimum(rise, fall), torch.ones(())))
    assert (rates == 1e-2).sum() >= T // 2 and trainer.rate_factor(T) == trainer.rate_factor(2 * T) == 0


def test_every_parameter_group_follows_the_schedule_from_its_own_rate() -> None:
    rates = torch.tensor(
        learning_rates(a_trainer(a_deep_llgae(), schedule="one-cycle", epochs=2), 2), dtype=torch.float64
    )
    assert rates.shape[1] == 4
    torch.testing.assert_close(rates / rates[0], (rates[:, :1] / rates[0, 0]).expand_as(rates))
    torch.testing.assert_close(rates[0] / rates[0, 2], torch.tensor([50.0, 5.0, 1.0, 1.0], dtype=torch.float64))


def test_without_a_schedule_the_rate_is_constant() -> None:
    assert {one for (one,) in learning_rates(a_trainer(an_llgae()), 2)} == {1e-2}


def test_the_model_holds_the_average_and_the_steps_do_not_depend_on_it() -> None:
    """Two epochs with decay 0.5, against the average computed here over the steps of a trainer without one."""
    plain, averaged = an_llgae(), an_llgae()
    one, other = a_trainer(plain), a_trainer(averaged, average=0.5)
    mean, steps = plain.W.detach().clone(), []
    one.optimizer.register_step_post_hook(lambda *_: steps.append(plain.W.detach().clone()))
    for _ in range(2):
        one.epoch()
        other.epoch()
    for t, W in enumerate(steps):
        decay = min(0.5, (1 + t) / (10 + t))
        mean = decay * mean + (1 - decay) * W
    assert torch.allclose(averaged.W, mean, atol=1e-6)
    assert any(torch.equal(parameter, steps[-1]) for parameter in other.unaveraged)


def test_the_ascent_is_taken_in_the_last_epochs() -> None:
    trainer, taken = a_trainer(a_deep_llgae("given", ascent_from=2)), []
    trainer.optimizer.register_step_pre_hook(lambda *_: taken.append(trainer.model.ascends))
    for _ in range(3):
        trainer.epoch()
    steps = trainer.steps_per_epoch
    assert taken == [False] * (2 * steps) + [True] * steps


@pytest.mark.parametrize("kind", ["llgae", "deep", "given"])
def test_a_resumed_run_equals_one_that_was_not_interrupted_bit_for_bit(kind: str) -> None:
    options = {"schedule": "one-cycle", "epochs": 4, "average": 0.9, "weight_decay": 0.01, "mirrored": SHAPE}
    make = {"llgae": an_llgae, "deep": a_deep_llgae, "given": lambda: a_deep_llgae("given", ascent_from=3)}[kind]
    whole, cut = make(), make()
    trainer, interrupted = a_trainer(whole, **options), a_trainer(cut, **options)
    for _ in range(4):
        trainer.epoch()
    for _ in range(2):
        interrupted.epoch()
    state, held = as_in_a_file(interrupted.state_dict()), as_in_a_file(cut.state_dict())
    again = make()
    resumed = Gradient(again, SAMPLES, **{**DEFAULT, **options})  # type: ignore[arg-type]
    again.load_state_dict(held)
    resumed.load_state_dict(state)
    for _ in range(2):
        resumed.epoch()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("shape", [SHAPE, (3, 4, 3)])
def test_half_of_the_images_are_mirrored_left_to_right(shape: tuple[int, ...]) -> None:
    x = torch.arange(400.0 * D).view(400, D)
    result = mirror_half(x, shape, torch.Generator().manual_seed(4))
    mirrored = torch.stack([image.view(shape).flip(1).flatten() for image in x])
    is_mirrored, is_not = (result == mirrored).all(1), (result == x).all(1)
    assert (is_mirrored ^ is_not).all() and 150 < int(is_mirrored.sum()) < 250


def test_training_uses_the_mirror_images() -> None:
    x = SAMPLES.rows(slice(None))
    mirrored, recorded = x.view(-1, *SHAPE).flip(2).flatten(1), []
    model = an_llgae()
    trainer = a_trainer(model, mirrored=SHAPE)
    loss = model.loss
    model.loss = lambda x: recorded.append(x) or loss(x)  # type: ignore
    trainer.epoch()
    n = int(sum((one == mirrored).all(1).any() for one in torch.cat(recorded)))
    assert len(torch.cat(recorded)) == 200 and 70 < n < 130


def test_noise_is_added_to_the_input_and_not_to_the_target() -> None:
    sizes = (1, E, SHAPE, 16, 4)
    model = Autoencoder(ENCODERS["mlp"](*sizes), DECODERS["mlp"](*sizes), D, E)
    trainer = a_trainer(model, noise=2.0)
    targets: list[tuple[torch.Tensor, torch.Tensor]] = []
    loss = model.denoising_loss
    model.denoising_loss = lambda x, noisy: targets.append((x, noisy)) or loss(x, noisy)  # type: ignore
    trainer.epoch()
    difference = torch.cat([noisy - x for x, noisy in targets])
    assert float(difference.std()) == pytest.approx(2, rel=0.05) and abs(float(difference.mean())) < 0.1


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_parts_of_a_batch_give_the_gradient_of_the_whole_on_any_number_of_threads(
    noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradients(least: float, threads: int) -> list[torch.Tensor]:
        monkeypatch.setattr(gradient, "PART_OPERATIONS", least)
        if noise:
            sizes = (1, E, SHAPE, 16, 4)
            model: Model = Autoencoder(ENCODERS["mlp"](*sizes), DECODERS["mlp"](*sizes), D, E)
        else:
            model = a_deep_llgae()
        trainer = a_trainer(model, noise=noise)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            loss = trainer._backward(torch.arange(33), 33)  # an odd number: the parts differ in size
        finally:
            torch.set_num_threads(before)
        return [loss, *(parameter.grad for parameter in trainer.parameters if parameter.grad is not None)]

    whole, alone, parallel = gradients(math.inf, 1), gradients(0.0, 1), gradients(0.0, 2)
    assert len(whole) > 10
    torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-5)
    assert all(map(torch.equal, alone, parallel))


def test_closed_form_initialisation_gives_the_model_the_trained_llgae(messages: list[str]) -> None:
    model = a_deep_llgae()
    closed = ClosedForm(an_llgae(), SAMPLES, seed=3, restarts=1, moves=0)
    trainer = Gradient(model, SAMPLES, affine=closed, **DEFAULT)  # type: ignore[arg-type]
    trainer.initialise()
    assert closed.finished and any(line.startswith("closed-form initialisation: mean L2") for line in messages)
    x = SAMPLES.rows(slice(None))
    assert model.affine is not None and torch.equal(model.encode(x).k, closed.model.encode(x).k)
    assert model.decoder.pieces is not None and torch.equal(model.decoder.pieces.mu, closed.model.mu)
    before = float(model.loss(x).detach())
    for _ in range(8):
        trainer.epoch()
    assert float(model.loss(x).detach()) < before
