"""What the gradient trainer offers beside plain steps: schedule, running mean, mirror images, noise, a start."""

import math
from typing import Any

import pytest
import torch

from llgae_cli.models import DECODERS, ENCODERS, GAE, LLGAE, Autoencoder, Decoder, Model
from llgae_cli.tasks import Samples
from llgae_cli.training import ClosedForm, Gradient

pytestmark = pytest.mark.numeric
K, E, SHAPE = 3, 2, (6, 6)
D = 36
SAMPLES = Samples(torch.randn(200, D, generator=torch.Generator().manual_seed(1)) * 3, centring="none")
DEFAULT = {"seed": 4, "optimizer": "adamw", "lr": 1e-2, "batch_size": 32}


def an_llgae() -> LLGAE:
    return LLGAE(K, D, E, inference="least-squares")


def a_deep_llgae() -> GAE:
    parts = Decoder(LLGAE(K, D, E), DECODERS["conv"](K, E, SHAPE, 16, 4))
    guide = ENCODERS["conv"](K, E, SHAPE, 16, 4)
    return GAE(parts, K, D, E, n_step=2, beta=1e-3, ascent="later", affine=an_llgae(), guide=guide)


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


def test_one_cycle_rises_in_a_line_and_falls_along_a_cosine_to_nothing() -> None:
    trainer = a_trainer(an_llgae(), one_cycle=4)
    T = 4 * trainer.steps
    rates = []
    for step in range(T + 1):
        trainer._set_rate(step)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    top = max(rates)
    assert top == pytest.approx(1e-2, rel=0.05) and rates.index(top) == math.ceil(0.15 * T)
    assert rates[0] == pytest.approx(1e-3) and rates[T] == pytest.approx(0, abs=1e-12)
    rises, falls = rates[: rates.index(top) + 1], rates[rates.index(top) :]
    assert rises == sorted(rises) and falls == sorted(falls, reverse=True)


def test_the_running_mean_is_what_the_model_holds_and_the_steps_go_on_without_it() -> None:
    """One epoch of d = 0.5 against the mean written out by hand, over steps taken by a trainer without it."""
    plain, averaged = an_llgae(), an_llgae()
    one, other = a_trainer(plain), a_trainer(averaged, average=0.5)
    seen: list[torch.Tensor] = []
    step = one.optimizer.step

    def noted() -> None:
        step()
        seen.append(plain.W.detach().clone())

    first = plain.W.detach().clone()
    one.optimizer.step = noted  # type: ignore[method-assign, assignment]
    one.epoch()
    other.epoch()
    mean = first
    for t, W in enumerate(seen):
        decay = min(0.5, (1 + t) / (10 + t))
        mean = decay * mean + (1 - decay) * W
    assert torch.allclose(averaged.W, mean, atol=1e-6)
    assert any(torch.equal(moving, seen[-1]) for moving in other.moving)


@pytest.mark.parametrize("kind", ["llgae", "deep"])
def test_a_resumed_run_goes_on_exactly(kind: str) -> None:
    options = {"one_cycle": 4, "average": 0.9, "weight_decay": 0.01, "mirrored": SHAPE}
    make = an_llgae if kind == "llgae" else a_deep_llgae
    whole, cut = make(), make()
    trainer, begun = a_trainer(whole, **options), a_trainer(cut, **options)
    for _ in range(4):
        trainer.epoch()
    for _ in range(2):
        begun.epoch()
    state, held = as_in_a_file(begun.state_dict()), as_in_a_file(cut.state_dict())
    again = make()
    resumed = Gradient(again, SAMPLES, **{**DEFAULT, **options})  # type: ignore[arg-type]
    again.load_state_dict(held)
    resumed.load_state_dict(state)
    for _ in range(2):
        resumed.epoch()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_mirror_image_is_turned_left_to_right_half_of_the_time() -> None:
    trainer = a_trainer(an_llgae(), mirrored=SHAPE)
    x = torch.arange(400.0 * D).view(400, D)
    turned = trainer._turned(x)
    mirrored = x.view(-1, *SHAPE).flip(2).flatten(1)
    is_turned, is_not = (turned == mirrored).all(1), (turned == x).all(1)
    assert (is_turned ^ is_not).all() and 150 < int(is_turned.sum()) < 250


def test_noise_is_seen_by_the_encoder_and_rebuilt_away() -> None:
    sizes = (1, E, SHAPE, 16, 4)
    model = Autoencoder(ENCODERS["mlp"](*sizes), DECODERS["mlp"](*sizes), D, E)
    trainer = a_trainer(model, noise=2.0)
    targets: list[tuple[torch.Tensor, torch.Tensor]] = []
    loss = model.loss
    model.loss = lambda x, seen=None: targets.append((x, seen)) or loss(x, seen)  # type: ignore
    trainer.epoch()
    difference = torch.cat([seen - x for x, seen in targets])
    assert float(difference.std()) == pytest.approx(2, rel=0.05) and abs(float(difference.mean())) < 0.1


def test_a_closed_form_start_gives_the_model_the_llgae_it_came_to() -> None:
    model = a_deep_llgae()
    closed = ClosedForm(an_llgae(), SAMPLES, seed=3, restarts=1, moves=0)
    said: list[str] = []
    trainer = Gradient(model, SAMPLES, affine=closed, **DEFAULT)  # type: ignore[arg-type]
    trainer.start(said.append)
    assert closed.finished and any("closed-form start" in line for line in said)
    x = SAMPLES.rows(slice(None))
    assert model.affine is not None and torch.equal(model.encode(x).k, closed.model.encode(x).k)
    assert model.decoder.pieces is not None and torch.equal(model.decoder.pieces.mu, closed.model.mu)
    before = float(model.loss(x).detach())
    for _ in range(8):
        trainer.epoch()
    assert float(model.loss(x).detach()) < before
