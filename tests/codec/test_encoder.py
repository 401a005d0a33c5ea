"""The encoder's choices against a search through all components, in exact or float64 arithmetic."""

import numpy as np
import pytest
import torch
from coded import make_codec  # tests/coded.py

from llgae_cli.codec.costs import PLAIN_COSTS, place_costs
from llgae_cli.codec.density import COST_UNIT
from llgae_cli.codec.encoder import FIRST_LATENTS, SHORTLIST, Codes, Measured
from llgae_cli.codec.exact import SCALES, ExactDecoder, Level, Step, find_table
from llgae_cli.codec.grid import Grid
from llgae_cli.codec.model import CodecModel
from llgae_cli.training.expected_rate import TRADE_OFF

pytestmark = pytest.mark.numeric


def rows_of(n: int, D: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(6, D)) * 3)[draw.integers(6, size=n)] + draw.normal(size=(n, D)) * 2.0 ** -np.arange(D)


def cost_of(model: CodecModel, step: Step, codes: Codes) -> np.ndarray:
    """The bits of codes of one level, from the tables themselves."""
    level = model.decoder.levels[0]
    k, ids = codes.k[:, 0], level.table_ids(step)
    bits = 24 - np.log2(model.weights[0][k])
    for i in range(len(k)):
        for e in range(level.E):
            table = find_table(int(ids[k[i], e]))
            if table is None:
                assert codes.q[i, e] == 0
            else:
                bits[i] += int(table.compute_costs(codes.q[i, e : e + 1])[0]) / COST_UNIT
    return bits


@pytest.mark.parametrize("delta", [1.0, 0.1, 0.003])
def test_costs_and_errors_are_those_of_the_codes(delta: float) -> None:
    x = rows_of(200, 5, 1)
    model, step = make_codec(x, 5, 4).model, Step.nearest(delta)
    y, fits = model.grid.round(x)
    codes = model.encoder.choose(y, model.encoder.prepare(step, 0))
    assert fits.all()
    bits = cost_of(model, step, codes)
    # Beyond 256 steps costs are tabulated coarsely; signs differ where a value lies between two symbols.
    np.testing.assert_allclose(codes.cost / COST_UNIT, bits, rtol=0.1, atol=0.01)
    assert codes.cost.sum() / COST_UNIT == pytest.approx(bits.sum(), rel=0.01)
    error = ((x - model.decoder.decode(codes.k, None, codes.q, step)) ** 2).sum(1)
    J = error + TRADE_OFF * step.value**2 * bits
    np.testing.assert_allclose(codes.J, J, rtol=0.02, atol=10 * step.value**2)


@pytest.mark.parametrize("delta", [1.0, 0.1, 0.003, 0.0003])
@pytest.mark.parametrize(("D", "E", "K"), [(5, 4, 12), (5, 4, SHORTLIST + 8), (24, FIRST_LATENTS + 4, SHORTLIST + 4)])
def test_no_component_is_much_better_than_the_chosen_one(delta: float, D: int, E: int, K: int) -> None:
    x = rows_of(300, D, 2)
    model, step = make_codec(x, K, E).model, Step.nearest(delta)
    y, _ = model.grid.round(x)
    prepared = model.encoder.prepare(step, 0)
    chosen = model.encoder.choose(y, prepared)
    rows, level = torch.from_numpy(y), model.encoder.levels[0]
    each = [torch.full((len(y), 1), j) for j in range(K)]
    distances = level.distances(rows)
    alone = [Measured(j, level.project_pairs(rows, j), distances.gather(1, j)) for j in each]
    every = [model.encoder.choose(y, prepared, measured).J for measured in alone]
    excess = chosen.J - np.min(every, 0)
    assert excess.min() > -1e-9 and (excess > 1e-9).mean() < 0.05
    assert excess.sum() < 0.01 * chosen.J.sum()


def test_at_a_high_rate_the_narrow_component_is_chosen() -> None:
    """Far below the variances, only z^2 / v tells components of the same subspace apart."""
    draw = np.random.default_rng(3)
    mu, U = np.array([[0.0, 0.0], [50.0, 50.0]]), np.stack([np.eye(2), np.eye(2)])
    scale = np.full((2, 2), SCALES * 2)  # alpha = 4
    decoder = ExactDecoder((Level.round(mu, U, np.full((2, 2), 3), scale),))
    model = CodecModel(decoder, (np.array([1, 1]),), None, Grid.fit(np.full(2, 25.0), 60.0), Step.nearest(1.0))
    k = draw.integers(2, size=500)
    x = mu[k] + draw.normal(size=(500, 2)) * 2
    for delta in (1.0, 0.01, 0.0001):
        prepared = model.encoder.prepare(Step.nearest(delta), 0)
        assert np.array_equal(model.encoder.choose(model.grid.round(x)[0], prepared).k[:, 0], k)


def test_ties_go_to_the_lower_index() -> None:
    mu = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, -1.0]])
    zero = np.zeros((3, 0), np.int64)
    decoder = ExactDecoder((Level.round(mu, np.zeros((3, 2, 0)), zero, zero),))
    model = CodecModel(decoder, (np.array([5, 5, 5]),), None, Grid.fit(np.zeros(2), 4.0), Step.nearest(1.0))
    codes = model.encoder.choose(
        model.grid.round(np.array([[2.0, 0.0], [0.0, 1.0]]))[0], model.encoder.prepare(model.step, 0)
    )
    weights = model.weights[0]
    assert codes.k[:, 0].tolist() == [0, 0] and weights[0] - weights[2] in (0, 1)


def test_rows_beyond_the_grid_are_known() -> None:
    grid = Grid.fit(np.array([1.4, -2.0]), 10.0)
    x = np.array([[1.0, 2.0], [9.0, 5.0], [1e9, 0], [np.nan, 0], [np.inf, 0], [1e308, -1e308]])
    y, fits = grid.round(x)
    assert fits.tolist() == [True, True, False, False, False, False] and not y[2:].any()
    np.testing.assert_allclose(y[:2] * 2.0**-grid.bits + grid.origin, x[:2], atol=2.0**-grid.bits)


def test_a_finer_step_comes_nearer() -> None:
    x = rows_of(100, 5, 4)
    model = make_codec(x, 4, 5).model
    y, _ = model.grid.round(x)
    codes = model.encoder.choose(y, model.encoder.prepare(model.step, 0))
    before = np.inf
    for halvings in range(1, 5):
        step = model.step.divide(halvings)
        q = model.encoder.refine(y, codes, step, 0)
        error = np.abs(x - model.decoder.decode(codes.k, None, q, step)).max()
        assert error < before
        before = error


def test_places_of_costs_rise_and_are_near() -> None:
    q = torch.tensor([0.0, 1, 255, 256, 257, 271, 272, 511, 512, 1000, 2.0**20, 2.0**30], dtype=torch.float64)
    place = place_costs(q)
    assert place.tolist()[:4] == [0, 1, 255, PLAIN_COSTS] and (place.diff() >= 0).all()
    assert place_costs(q[:3]).tolist() == [0, 1, 255]
    assert int(place_costs(torch.tensor([2.0**10]))[0]) == PLAIN_COSTS + 32
