"""Codecs of decoder networks: files of bits, bounds that hold, choices that lower J, and unsound models refused."""

import math
import random
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from coded import make_curved_rows, make_deep, make_deep_codec, recode  # tests/coded.py
from hostile import mutate  # tests/hostile.py
from scipy.special import gamma
from scipy.stats import logistic

from llgae_cli.codec.codec import Codec
from llgae_cli.codec.density import COST_UNIT, SHAPES
from llgae_cli.codec.exact import SCALES, Step, find_table
from llgae_cli.codec.fit import fit_codec
from llgae_cli.codec.network_encoder import NetworkEncoder
from llgae_cli.errors import InputError
from llgae_cli.models import Code, LatentRate
from llgae_cli.tasks import Samples
from llgae_cli.training.expected_rate import TRADE_OFF

pytestmark = pytest.mark.numeric
KINDS: dict[str, tuple[str, tuple[int, ...], str]] = {
    "vectors": ("mlp", (20,), "none"),
    "images": ("conv", (6, 7), "sample"),
    "colours": ("conv", (4, 5, 3), "none"),
}
Made = tuple[Codec, np.ndarray]


@pytest.fixture(scope="module", params=sorted(KINDS))
def made(request: pytest.FixtureRequest) -> Made:
    kind, shape, centring = KINDS[request.param]
    return make_deep_codec(kind, shape, centring), make_curved_rows(shape, 300, seed=5)


@pytest.fixture(scope="module")
def images() -> Made:
    return make_deep_codec("conv", (6, 7), "sample"), make_curved_rows((6, 7), 300, seed=5)


def test_files_give_back_rows_near_those_of_the_model(made: Made) -> None:
    codec, x = made
    data = codec.encode(x, step=20.0)
    x_hat = codec.decode(data)
    assert x_hat.shape == x.shape and x_hat.dtype == x.dtype
    assert np.square(x.astype(float) - x_hat).mean() < 0.3 * x.var(0).mean()
    assert len(data) < x.size / 4
    assert np.array_equal(codec.decode(data, rows=slice(7, 11)), x_hat[7:11])
    assert np.array_equal(Codec.unpack(codec.pack()).decode(data), x_hat)


def test_bounds_hold_and_lossless_is_lossless(made: Made) -> None:
    codec, x = made
    x = x[:120]
    error = codec.decode(codec.encode(x, max_l2=30.0)).astype(float) - x
    assert np.square(error).mean(1).max() <= 30.0
    assert np.abs(codec.decode(codec.encode(x, max_abs=3.0)).astype(float) - x).max() <= 3.0
    assert np.array_equal(codec.decode(codec.encode(x, lossless=True)), x)


def test_a_rate_is_kept(images: Made) -> None:
    codec, x = images
    payloads, _ = recode(codec, x, codec.choose_settings(x, bits=30.0))
    assert 0.85 * 30 <= 8 * sum(map(len, payloads)) / len(x) <= 1.02 * 30


def test_blocks_are_as_long_as_the_codes_cost_and_J_is_theirs(made: Made) -> None:
    codec, x = made
    model, step = codec.model, Step.nearest(15.0)
    y, fits = model.place(x)
    codes = model.encoder.choose(y, model.encoder.prepare(step, 0))
    tables = model.decoder.levels[0].table_ids(step)[codes.k[:, 0]]
    bits = 24 - np.log2(model.weights[0][codes.k[:, 0]])
    for i, e in np.ndindex(*tables.shape):
        table = find_table(int(tables[i, e]))
        assert table is not None or codes.q[i, e] == 0
        bits[i] += 0 if table is None else int(table.compute_costs(codes.q[i, e : e + 1])[0]) / COST_UNIT
    assert fits.all()
    assert codes.cost.sum() / COST_UNIT == pytest.approx(bits.sum(), rel=0.01)
    squared = np.square(x - model.decode(codes.k, None, codes.q, step)).sum(1)
    J = squared + TRADE_OFF * step.value**2 * codes.cost / COST_UNIT
    np.testing.assert_allclose(codes.J, J, rtol=0.01)


def test_no_neighbour_is_much_better_than_the_chosen_code(images: Made) -> None:
    """Codes that differ by one in one latent: the search does not try them, but few of them cost less."""
    codec, x = images
    model, step = codec.model, Step.nearest(60.0)
    y, _ = model.place(x[:60])
    codes = model.encoder.choose(y, model.encoder.prepare(step, 0))
    tables = model.decoder.levels[0].table_ids(step)[codes.k[:, 0]]
    gain = np.zeros(len(y))
    for e in range(codes.q.shape[1]):
        for d in (-1, 1):
            q = codes.q.copy()
            q[:, e] += d
            bits = np.array(
                [
                    np.inf if table is None else int(table.compute_costs(new)[0] - table.compute_costs(old)[0])
                    for table, new, old in zip(
                        map(find_table, tables[:, e].tolist()), q[:, e : e + 1], codes.q[:, e : e + 1], strict=True
                    )
                ]
            )
            squared = np.square(x[:60] - model.decode(codes.k, None, q, step)).sum(1)
            J = squared + TRADE_OFF * step.value**2 * (codes.cost + bits) / COST_UNIT
            gain = np.maximum(gain, 1 - J / codes.J)
    assert gain.mean() < 0.05


def test_the_search_weighs_the_error_against_the_bits_of_logistic_densities(made: Made) -> None:
    codec, x = made
    model = codec.model
    level, step = model.decoder.levels[0], model.step
    y = model.place(x)[0]
    s = np.array(SHAPES)[level.shape]
    deviation = 2.0 ** (level.scale / SCALES) * np.sqrt(gamma(3 / s) / gamma(1 / s))

    def measure(own: Step | None) -> tuple[float, float]:
        """Return the mean of the squared errors, and that of J with logistic densities, of the codes that are found."""
        encoder = NetworkEncoder(model.decoder, model.weights[0], model.grid, model.start, own)
        k, z, squared = encoder.measure_latents(y)
        z = z[:, : encoder.E]  # without the constant row's
        density = logistic(scale=deviation[k, : encoder.E] * math.sqrt(3) / math.pi)
        bits = (density.logpdf(0) - density.logpdf(z)).sum(1) / math.log(2)
        return float(squared.mean()), float((squared + TRADE_OFF * step.value**2 * bits).mean())

    (error, J), (least_error, J_without) = measure(step), measure(None)
    assert J_without > J and error > least_error


def test_rows_that_the_search_cannot_fit_are_rounded_to_codes_near_them() -> None:
    codec, x = make_deep_codec("conv", (6, 7), "sample", optional=False), make_curved_rows((6, 7), 300, seed=5)
    y, _ = codec.model.place(x)
    codes = codec.model.encoder.choose(y, codec.model.encoder.prepare(Step.nearest(40.0), 0))
    squared = np.square(x - codec.model.decode(codes.k, None, codes.q, Step.nearest(40.0))).sum(1)
    assert squared.max() < 4 * np.square(x - x.mean(0)).sum(1).max()  # a singular P had rows of a hundred times that


def test_a_finer_step_comes_nearer(images: Made) -> None:
    codec, x = images
    model = codec.model
    y, _ = model.place(x)
    step = Step.nearest(64.0)
    codes = model.encoder.choose(y, model.encoder.prepare(step, 0))
    errors = []
    for halvings in range(3):
        finer = step.divide(halvings)
        q = model.encoder.refine(y, codes, finer, 0)
        errors.append(np.square(x - model.decode(codes.k, None, q, finer)).mean())
    assert errors[0] > errors[1] > errors[2]


def test_threads_change_no_value(images: Made) -> None:
    codec, x = images
    data, before = codec.encode(x, step=20.0), torch.get_num_threads()
    found, made = set(), set()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.add(codec.decode(data).tobytes())
            made.add(Codec.unpack(codec.pack()).encode(x, step=20.0))
    finally:
        torch.set_num_threads(before)
    assert len(found) == len(made) == 1


def test_a_guide_and_pieces_are_optional() -> None:
    codec, x = make_deep_codec("conv", (6, 7), "sample", optional=False), make_curved_rows((6, 7), 200, seed=5)
    x_hat = codec.decode(codec.encode(x, step=20.0))
    assert np.square(x.astype(float) - x_hat).mean() < 0.5 * x.var()


def test_the_own_step_of_a_model_for_a_rate_is_the_size_of_its_steps() -> None:
    model, x = make_deep("mlp", (20,)), make_curved_rows((20,), 300)
    steps = []
    for log_step in (-2.0, -1.0):
        model.rate = LatentRate(model.K, model.E)
        with torch.no_grad():
            model.rate.log_step.fill_(log_step)
            model.rate.log_spread.fill_(0.0)
        fitted = fit_codec(model, Samples(x, centring="none"))
        assert fitted is not None
        steps.append(fitted.step.value)
    assert steps[1] / steps[0] == pytest.approx(math.e, rel=2e-3)
    lengths = model.jacobian(Code(torch.arange(model.K), torch.zeros(model.K, model.E))).norm(dim=1)
    assert float(lengths.min()) < steps[1] * math.e < float(lengths.max())


# ---- Unsound models


def test_damaged_models_are_refused_in_one_line(images: Made) -> None:
    codec, _ = images
    data = codec.pack()
    for length in (0, 3, 5, 40, len(data) // 2, len(data) - 1):
        with pytest.raises(InputError, match="damaged"):
            Codec.unpack(data[:length])
    with pytest.raises(InputError, match="damaged"):  # a network in the format of models without one
        Codec.unpack(struct.pack("<B", 1) + data[1:])
    draw, refused = random.Random(1), 0
    for _ in range(60):
        try:
            assert Codec.unpack(mutate(data, draw)).D == codec.D
        except InputError as error:
            refused += "\n" not in str(error)
    assert refused > 40


@pytest.mark.parametrize("exponent", [-890, -70, 70, 890])
def test_a_step_out_of_range_stops_encoding_but_not_decoding(images: Made, exponent: int) -> None:
    codec, x = images
    other = Codec.unpack(Codec(replace(codec.model, step=Step(512, exponent))).pack())
    assert other.identity == codec.identity
    with pytest.raises(InputError, match="the codec's arrays for encoding are damaged"):
        other.encode(x, max_l2=30.0)


@pytest.mark.parametrize("scale", [-(2**40), -32_768, 32_767, 2**40])
def test_extreme_scales_do_not_stop_the_search(images: Made, scale: int) -> None:
    codec, x = images
    level = codec.model.decoder.levels[0]
    decoder = replace(codec.model.decoder, levels=(replace(level, scale=np.full_like(level.scale, scale)),))
    other = Codec(replace(codec.model, decoder=decoder))
    error = other.decode(other.encode(x[:40], max_l2=30.0)).astype(float) - x[:40]
    assert np.square(error).mean(1).max() <= 30.0


@pytest.mark.parametrize("name", ["options", "mu", "W", "guide.k.weight", "guide.out.weight"])
def test_a_damaged_start_stops_encoding_but_not_decoding(images: Made, name: str) -> None:
    codec, x = images
    data = codec.encode(x, step=20.0)
    start = dict(codec.model.start)
    for bad in (start[name] * np.nan, start[name][1:], None):
        unsound = {**start, name: bad} if bad is not None else {key: a for key, a in start.items() if key != name}
        other = Codec.unpack(Codec(replace(codec.model, start=unsound)).pack())
        assert other.identity == codec.identity
        assert np.array_equal(other.decode(data), codec.decode(data))
        with pytest.raises(InputError, match="the codec's arrays for encoding are damaged"):
            other.encode(x, step=20.0)
