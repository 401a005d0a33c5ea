"""Integer densities against float64 quadrature, and the identities that a table must satisfy."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llgae_cli.codec.density import (
    COST_UNIT,
    MAX_RATIO,
    MIN_RATIO,
    SHAPES,
    TOTAL,
    Integers,
    Table,
    count_bits,
    exp2_negative,
    floor_sqrt,
    integer_log2,
    make_table,
    make_weights,
    number_escapes,
    restore_escapes,
)

SHAPE = st.integers(0, len(SHAPES) - 1)
RATIO = st.integers(MIN_RATIO - 20, MAX_RATIO + 20)
KEYS = [(shape, ratio) for shape in range(len(SHAPES)) for ratio in range(MIN_RATIO - 1, MAX_RATIO + 1)]


def draw_integers(most: int, n: int = 20_000) -> Integers:
    """Positive integers of all lengths up to that of `most`, and the neighbours of powers of 2."""
    rng = np.random.default_rng(0)
    powers = [2**e + d for e in range(most.bit_length() - 1) for d in (-1, 0, 1)]
    drawn = rng.integers(1, most, n) >> rng.integers(0, most.bit_length() - 1, n)
    return np.maximum(1, np.concatenate([drawn, powers]))


def integrate(shape: float, alpha: float) -> np.ndarray:
    """Probabilities of q = 0, 1, 2, ... at Delta = 1, the first halved, by Gauss-Legendre; z = v^2 removes the cusp."""
    reach = {0.5: 900.0, 1.0: 36.0, 1.5: 12.0, 2.0: 7.0}[shape]
    edges = np.sqrt(np.concatenate([[0.0], np.arange(int(reach * alpha) + 3) + 0.5]))
    nodes, weights = np.polynomial.legendre.leggauss(24)
    pieces = int(16 / math.sqrt(alpha)) + 1
    mass = np.zeros(len(edges) - 1)
    for piece in range(pieces):
        low, high = (edges[:-1] + np.diff(edges) * (piece + side) / pieces for side in (0, 1))
        v = (low + high)[:, None] / 2 + (high - low)[:, None] / 2 * nodes
        mass += (np.exp(-((v * v / alpha) ** shape)) * 2 * v) @ weights * (high - low) / 2
    return mass / (2 * mass.sum())


@given(SHAPE, RATIO)
def test_a_table_is_a_symmetric_falling_distribution(shape: int, ratio: int) -> None:
    table = make_table(shape, ratio)
    if table is None:
        assert ratio < 0 and make_table(shape, ratio - 1) is None
        return
    assert table.weights.dtype == table.costs.dtype == np.int64
    assert len(table.weights) == len(table.costs) == 2 * table.half + 2 <= 2048 and table.half >= 1
    assert table.weights.sum() == TOTAL and table.weights.min() >= 1
    symbols = table.weights[:-1]
    assert np.array_equal(symbols, symbols[::-1])
    assert (np.diff(symbols[table.half :]) <= 0).all()
    assert table.weights[-1] <= 2 + 2 * (TOTAL >> 16)  # what lies beyond M is negligible
    assert 0 <= table.low_bits <= 30
    assert make_table(shape, ratio) is table


def test_tables_are_the_same_on_every_machine() -> None:
    # The format of files rests on these numbers: whoever changes them makes old files unreadable.
    digest = hashlib.sha256()
    for shape, ratio in KEYS:
        table = make_table(shape, ratio)
        if table is not None:
            digest.update(f"{shape} {ratio} {table.half} {table.low_bits}".encode())
            digest.update(table.weights.astype("<i8").tobytes() + table.costs.astype("<i8").tobytes())
    assert digest.hexdigest() == "e99267a7fa7e601fdb4bec24f9214344cb68b121bd936d7e69f55241d6afba5c"


def test_integers_of_numpy_give_the_same_table() -> None:
    assert make_table(np.int64(2), np.int64(MAX_RATIO - 3)) is make_table(2, MAX_RATIO - 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [-1, 4])
def test_an_unknown_shape_is_refused(shape: int) -> None:
    with pytest.raises(ValueError, match="0 to 3"):
        make_table(shape, 0)


@pytest.mark.numeric
@pytest.mark.parametrize("shape", range(len(SHAPES)))
@pytest.mark.parametrize("ratio", [-60, -30, -22, -17, -9, 0, 5, 13, 19, 20, 33, 44, 45, 59, 60, 70])
def test_a_table_costs_what_the_density_allows(shape: int, ratio: int) -> None:
    p = integrate(SHAPES[shape], 2 ** (ratio / 8))
    table = make_table(shape, ratio)
    if table is None:
        assert 2 * p[0] > 1 - 1.01 * 2**-12
        return
    assert 2 * p[0] < 1 - 0.99 * 2**-12
    q = np.arange(len(p))
    bits = (table.compute_costs(q) + table.compute_costs(-q)) / COST_UNIT / 2
    some = p > 0
    entropy = (
        -2 * (p[some] @ np.log2(np.where(some, p, 1)[some])) - 2 * p[0]
    )  # q = 0 is one symbol of probability 2 p[0]
    assert -0.0005 < 2 * p @ bits - entropy < max(0.001, 0.002 * entropy)


@pytest.mark.numeric
@pytest.mark.parametrize(("shape", "ratio"), [(0, 0), (1, 10), (2, -5), (3, 20)])
def test_weights_are_the_integrals_over_the_cells(shape: int, ratio: int) -> None:
    table = make_table(shape, ratio)
    assert table is not None and table.low_bits == 0
    p = integrate(SHAPES[shape], 2 ** (ratio / 8))[: table.half + 1]
    p[0] *= 2
    # 0.0004 is the midpoint rule at a cusp, 4 the rounding of the weight of each symbol.
    np.testing.assert_allclose(table.weights[table.half : -1] / TOTAL, p, rtol=0.01, atol=0.0004 + 4 / TOTAL)


@given(SHAPE, RATIO, st.lists(st.integers(1 - (1 << 40), (1 << 40) - 1), min_size=1))
def test_a_latent_is_its_symbol_its_low_bits_and_its_escape(shape: int, ratio: int, values: list[int]) -> None:
    table = make_table(shape, ratio)
    if table is None:
        return
    q = np.array(values)
    m, low = table.split(q)
    assert np.array_equal(table.join(m, low), q)
    assert low.min() >= 0 and (low >> table.low_bits == 0).all()
    outside = m[np.abs(m) > table.half]
    numbers = number_escapes(outside, table.half)
    assert (numbers >= 1).all() and (numbers < 1 << 42).all()
    assert np.array_equal(restore_escapes(numbers, table.half), outside)


@pytest.mark.numeric
@given(SHAPE, RATIO)
def test_costs_are_logarithms_of_the_weights(shape: int, ratio: int) -> None:
    table = make_table(shape, ratio)
    if table is None:
        return
    bits = 24 - np.log2(table.weights)
    np.testing.assert_allclose(table.costs / COST_UNIT, bits, rtol=0, atol=2 / COST_UNIT)
    middles = np.arange(-table.half, table.half + 1) << table.low_bits
    np.testing.assert_allclose(table.compute_costs(middles) / COST_UNIT, bits[:-1] + table.low_bits, atol=2 / COST_UNIT)
    beyond = np.array([table.half + 1, -table.half - 1]) << table.low_bits  # numbers 1 and 2, of 0 and 1 bits
    expected = bits[-1] + table.low_bits + 6 + np.array([0, 1])
    np.testing.assert_allclose(table.compute_costs(beyond) / COST_UNIT, expected, atol=2 / COST_UNIT)


def test_nobody_can_change_a_table() -> None:
    table = make_table(1, 0)
    assert isinstance(table, Table)
    with pytest.raises(ValueError, match="read-only"):
        table.weights[0] = 2


def test_the_integer_logarithm_is_the_floor() -> None:
    values = draw_integers(2**62)
    excess = integer_log2(values) - np.array([65536 * math.log2(v) for v in values.tolist()])
    assert excess.min() > -1.001 and excess.max() < 0.0001  # float64 itself is off by less
    powers = 1 << np.arange(63)
    assert np.array_equal(integer_log2(powers), 65536 * np.arange(63))
    assert integer_log2(np.zeros(0, np.int64)).shape == (0,)
    with pytest.raises(ValueError, match="below 1"):
        integer_log2(np.array([1, 0]))


def test_square_roots_and_lengths_are_exact() -> None:
    values = draw_integers(2**62)
    near = np.concatenate([(values >> 31) ** 2 + d for d in (-1, 0, 1)] + [values])
    near = near[near >= 0]
    assert np.array_equal(floor_sqrt(near), [math.isqrt(v) for v in near.tolist()])
    assert np.array_equal(count_bits(values), [v.bit_length() for v in values.tolist()])


@pytest.mark.numeric
def test_powers_of_two_in_fixed_point() -> None:
    t = np.concatenate([draw_integers(60 << 26), np.arange(64) << 26])
    exact = np.exp2(40 - t / 2**26)
    assert (np.abs(exp2_negative(t) - exact) <= 1 + exact * 2**-26).all()
    assert exp2_negative(np.array([0, 1 << 26])).tolist() == [1 << 40, 1 << 39]


@given(st.lists(st.integers(0, 1 << 50), min_size=1, max_size=300))
def test_weights_follow_counts(values: list[int]) -> None:
    counts = np.array(values)
    weights = make_weights(counts)
    assert weights.sum() == TOTAL and weights.min() >= 1
    order = np.argsort(counts, kind="stable")
    assert (np.diff(weights[order]) >= -1).all()  # a remainder that ties goes to the lower index
    whole = sum(values) or len(values)
    for count, weight in zip(values, weights.tolist(), strict=True):
        share = (count if sum(values) else 1) * (TOTAL - len(values)) / whole
        assert abs(weight - 1 - share) <= 1.1 + TOTAL * len(values) / 2**37  # counts are cut to 38 bits in all


def test_weights_of_special_counts() -> None:
    assert make_weights(np.array([7])).tolist() == [TOTAL]
    assert make_weights(np.zeros(4, np.int64)).tolist() == [TOTAL // 4] * 4
    assert make_weights(np.array([0, 5, 0])).tolist() == [1, TOTAL - 2, 1]
    assert make_weights(np.array([1, 1, 1])).tolist() == [TOTAL // 3 + 1, TOTAL // 3, TOTAL // 3]
    for wrong in (np.zeros(0, np.int64), np.array([1, -1]), np.ones((2, 2), np.int64)):
        with pytest.raises(ValueError, match="counts"):
            make_weights(wrong)
