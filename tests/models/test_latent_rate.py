"""The rate of quantised latents in training: its value, its noise and that training reaches the rate asked for."""

import math

import pytest
import torch

from llgae_cli.models import DECODERS, ENCODERS, GAE, LLGAE, Decoder, LatentRate
from llgae_cli.tasks import Samples
from llgae_cli.training import ClosedForm, Gradient

pytestmark = pytest.mark.numeric
K, E, D = 2, 3, 16


def a_rate() -> LatentRate:
    rate = LatentRate(K, E)
    rate.initialise(torch.tensor([0, 0, 0, 1]))
    with torch.no_grad():
        rate.log_step.copy_(torch.randn(K, E, generator=torch.Generator().manual_seed(1)) - 1)
        rate.location.copy_(torch.randn(K, E, generator=torch.Generator().manual_seed(2)))
    return rate


@torch.no_grad()
def test_the_bits_of_all_cells_are_those_of_a_distribution() -> None:
    rate, k = a_rate().double(), 1
    step, location = rate.log_step.exp()[k], rate.location[k]
    q = torch.arange(-400, 401, dtype=torch.float64)
    for e in range(E):
        b = location.repeat(len(q), 1)
        b[:, e] = location[e] + q * step[e]
        others = rate.bits(torch.full((1,), k), location[None]) - rate.bits_k
        bits = rate.bits(torch.full((len(q),), k), b) - rate.bits_k
        centre = bits[q == 0]
        torch.testing.assert_close(centre, others)
        own = bits - centre  # -log2 of the probability over that of the middle cell
        mass = math.tanh(float(step[e] / 4 / rate.log_spread.exp()[k, e]))  # of the middle cell of a logistic density
        seen = own < 20  # the others have the least probability that is allowed
        assert float((mass * 2 ** -own[seen]).sum()) == pytest.approx(1, abs=1e-4)
    assert float(rate.bits_k) == pytest.approx(2 - 0.75 * math.log2(3))


def test_noise_is_uniform_within_a_step() -> None:
    rate, k = a_rate(), torch.tensor([0, 1])
    b = torch.randn(2, E)
    torch.testing.assert_close(rate.add_noise(k, b, torch.full((2, E), 0.5)) - b, rate.log_step.exp() / 2)
    torch.testing.assert_close(rate.add_noise(k, b, torch.full((2, E), -0.5)) - b, -rate.log_step.exp() / 2)


def a_trainer(bits: float) -> Gradient:
    generator = torch.Generator().manual_seed(3)
    t = torch.rand(400, 2, generator=generator) * 6
    grid = torch.linspace(0, 6, D)
    x = 50 * torch.sin(t[:, :1] + grid) + 30 * torch.cos(t[:, 1:] * grid) + torch.randn(400, D, generator=generator)
    samples = Samples(x, centring="none")
    sizes = (K, E, (D,), 32, 4)
    parts = Decoder(LLGAE(K, D, E), DECODERS["mlp"](*sizes))
    affine, guide = LLGAE(K, D, E, inference="least-squares"), ENCODERS["mlp"](*sizes)
    model = GAE(parts, K, D, E, ascent="later", affine=affine, guide=guide, rate=LatentRate(K, E))
    closed = ClosedForm(LLGAE(K, D, E, inference="least-squares"), samples, seed=1)
    return Gradient(model, samples, seed=1, optimizer="adamw", lr=3e-3, batch_size=40, affine=closed, bits=bits)


def test_training_reaches_the_rate_and_more_bits_give_a_lower_error() -> None:
    errors, rates = [], []
    for bits in (6.0, 14.0):
        trainer = a_trainer(bits)
        trainer.initialise()
        for _ in range(120):
            trainer.epoch()
        x, u = trainer.samples.rows(slice(None)), torch.rand(400, E, generator=torch.Generator().manual_seed(4)) - 0.5
        with torch.no_grad():
            error, rate = trainer.model.rate_loss(x, u)
        errors.append(float(error))
        rates.append(float(rate))
    assert rates == pytest.approx([6, 14], rel=0.1)
    assert errors[1] < 0.6 * errors[0]


def test_the_price_of_a_bit_is_part_of_the_state() -> None:
    whole, cut = a_trainer(6.0), a_trainer(6.0)
    for trainer in (whole, cut):
        trainer.initialise()
        trainer.epoch()
    resumed = a_trainer(6.0)
    resumed.model.load_state_dict(cut.model.state_dict())
    resumed.load_state_dict(cut.state_dict())
    assert whole.epoch() == resumed.epoch() and whole.price == resumed.price > 0
