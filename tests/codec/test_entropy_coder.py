"""Blocks of symbols: round trips, sizes, the exact weights inside constriction, and damaged bytes."""

from importlib.metadata import version

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llgae_cli.codec.density import (
    COST_UNIT,
    MAX_RATIO,
    MIN_RATIO,
    SHAPES,
    TOTAL,
    Integers,
    Table,
    make_table,
    make_weights,
)
from llgae_cli.codec.entropy_coder import CODER, LIMIT, BlockDecoder, BlockEncoder, make_categorical
from llgae_cli.errors import InputError

RATIOS = 400  # table id = shape * RATIOS + ratio + 100, for these tests


def get(number: int) -> Table | None:
    return make_table(number // RATIOS, number % RATIOS - 100)


def make_ids(shape: int | Integers, ratio: int | Integers) -> Integers:
    return np.asarray(shape) * RATIOS + np.asarray(ratio) + 100


def is_skipped(tables: Integers) -> np.ndarray:
    return np.isin(tables, [number for number in np.unique(tables).tolist() if get(number) is None])


def draw_block(seed: int, n: int, E: int) -> tuple[Integers, Integers]:
    """Latents (n, E) drawn from the densities of their tables, and the ids of the tables (n, E)."""
    rng = np.random.default_rng(seed)
    shape, ratio = rng.integers(0, len(SHAPES), (20, E)), rng.integers(-30, 70, (20, E))
    k = rng.integers(0, 20, n)
    tables, s = make_ids(shape, ratio)[k], np.array(SHAPES)[shape[k]]
    q = np.rint(2 ** (ratio[k] / 8) * rng.gamma(1 / s) ** (1 / s) * rng.choice([-1, 1], s.shape)).astype(np.int64)
    q[is_skipped(tables)] = 0
    return q, tables


def compute_bits(q: Integers, tables: Integers) -> float:
    """The sum of costs of the latents, in bits."""
    found = {number: get(number) for number in np.unique(tables).tolist()}
    return sum(int(table.compute_costs(q[tables == i]).sum()) for i, table in found.items() if table) / COST_UNIT


def decode_by_definition(payload: bytes, weights: list[int], n: int) -> list[int]:
    """Asymmetric numeral systems with Python's integers: 24-bit weights, 32-bit words, a state of 32 to 64 bits."""
    words = list(np.frombuffer(payload + bytes(-len(payload) % 4), "<u4").tolist())
    starts = np.cumsum([0, *weights]).tolist()
    state = 0
    while words and state < 1 << 32:
        state = state << 32 | words.pop()
    symbols = []
    for _ in range(n):
        place = state % TOTAL
        symbol = int(np.searchsorted(starts, place, side="right")) - 1
        state = (state // TOTAL) * weights[symbol] + place - starts[symbol]
        if state < 1 << 32 and words:
            state = state << 32 | words.pop()
        symbols.append(symbol)
    assert state == 0 and not words
    return symbols


def test_the_coder_has_a_name_and_a_version() -> None:
    assert f"constriction {version('constriction')}" == CODER


@pytest.mark.parametrize("size", [2, 3, 50, 1000, 4096])
def test_constriction_uses_our_weights_as_they_are(size: int) -> None:
    rng = np.random.default_rng(size)
    weights = make_weights(rng.integers(0, 1000, size) ** 3)
    symbols = np.concatenate([np.arange(size), rng.integers(0, size, 500)])
    encoder = BlockEncoder()
    encoder.put(symbols, weights)
    assert decode_by_definition(encoder.finish(), weights.tolist(), len(symbols)) == symbols.tolist()


@pytest.mark.parametrize("lazy", [False, True])
def test_a_late_model_has_the_same_weights(lazy: bool) -> None:
    # Only `perfect` decides how floats become integers, so a change of the default of `lazy` cannot harm a file.
    weights = make_weights(np.arange(300) ** 2)
    symbols = np.random.default_rng(0).integers(0, 300, 1000).astype(np.int32)
    blocks = []
    for model in (
        make_categorical(weights),
        constriction.stream.model.Categorical((weights - 1).astype(float), lazy=lazy, perfect=False),
    ):
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(symbols, model)
        blocks.append(coder.get_compressed().tolist())
    assert blocks[0] == blocks[1]


def test_bytes_of_a_block_are_the_same_on_every_machine() -> None:
    encoder = BlockEncoder()
    encoder.put(np.arange(5), make_weights(np.arange(5)))
    encoder.put_uniform(np.array([0, 1, (1 << 20) - 1]), 20)
    tables = make_ids([[0, 1, 2, 3], [1, 1, 1, 1]], [[-9, 3, 60, 7], [-80, 3, 3, MAX_RATIO]])
    encoder.put_latents(np.array([[1, -2, 300, 40], [0, 0, -50, 1 << 39]]), tables, get)
    assert encoder.finish().hex() == "7533f8594c15809cb8ff23bfc9e2ffab79ffff4ba36f087f0000003c6bdcd7"


@given(st.lists(st.integers(0, 1 << 20), min_size=1, max_size=40), st.data())
def test_symbols_come_back(counts: list[int], data: st.DataObject) -> None:
    weights = make_weights(np.array(counts))
    symbols = np.array(data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=40)), np.int64)
    encoder = BlockEncoder()
    encoder.put(symbols, weights)
    decoder = BlockDecoder(encoder.finish())
    decoded = decoder.get(len(symbols), weights)
    decoder.finish()
    assert decoded.dtype == np.int64 and np.array_equal(decoded, symbols)


@given(st.integers(0, 41), st.data())
def test_raw_bits_come_back(bits: int, data: st.DataObject) -> None:
    values = np.array(data.draw(st.lists(st.integers(0, (1 << bits) - 1), max_size=20)), np.int64)
    encoder = BlockEncoder()
    encoder.put_uniform(values, bits)
    decoder = BlockDecoder(encoder.finish())
    assert np.array_equal(decoder.get_uniform(len(values), bits), values)
    decoder.finish()


LATENT = st.one_of(st.integers(-3, 3), st.integers(-2000, 2000), st.integers(1 - LIMIT, LIMIT - 1))
CELL = st.tuples(LATENT, st.integers(0, len(SHAPES) - 1), st.integers(MIN_RATIO - 5, MAX_RATIO + 5))


@given(st.lists(CELL, max_size=30))
def test_latents_come_back(cells: list[tuple[int, int, int]]) -> None:
    q, shape, ratio = np.array(cells, np.int64).reshape(-1, 3).T
    tables = make_ids(shape, ratio)
    q = np.where(is_skipped(tables), 0, q)
    encoder = BlockEncoder()
    encoder.put_latents(q, tables, get)
    decoder = BlockDecoder(encoder.finish())
    assert np.array_equal(decoder.get_latents(tables, get), q)
    decoder.finish()


def test_parts_of_a_block_come_back_in_order() -> None:
    q, tables = draw_block(0, 256, 30)
    weights = make_weights(np.arange(1, 21))
    k = np.random.default_rng(1).integers(0, 20, 256)
    encoder = BlockEncoder()
    encoder.put(k, weights)
    encoder.put_latents(q, tables, get)
    encoder.put_uniform(k, 5)
    decoder = BlockDecoder(encoder.finish())
    assert np.array_equal(decoder.get(256, weights), k)
    decoded = decoder.get_latents(tables, get)
    assert decoded.shape == q.shape and decoded.dtype == np.int64 and np.array_equal(decoded, q)
    with pytest.raises(InputError, match="more than its symbols"):
        decoder.finish()
    assert np.array_equal(decoder.get_uniform(256, 5), k)
    decoder.finish()


@pytest.mark.parametrize(("n", "E"), [(0, 0), (1, 1), (1, 40), (256, 40), (2000, 40)])
def test_a_block_is_as_long_as_its_costs(n: int, E: int) -> None:
    q, tables = draw_block(n, n, E)
    encoder = BlockEncoder()
    encoder.put_latents(q, tables, get)
    bits = compute_bits(q, tables)
    assert bits * 0.999 - 16 <= 8 * len(encoder.finish()) <= bits * 1.003 + 64


def test_what_is_skipped_or_empty_costs_nothing() -> None:
    encoder = BlockEncoder()
    encoder.put_latents(np.zeros((256, 10), np.int64), make_ids(np.ones((256, 10), int), MIN_RATIO), get)
    encoder.put(np.zeros(256, np.int64), np.array([TOTAL]))
    encoder.put(np.zeros(0, np.int64), make_weights(np.ones(9, np.int64)))
    encoder.put_uniform(np.zeros(256, np.int64), 0)
    encoder.put_latents(np.zeros((0, 10), np.int64), np.zeros((0, 10), np.int64), get)
    assert encoder.finish() == b""
    decoder = BlockDecoder(b"")
    assert not decoder.get_latents(make_ids(np.ones((256, 10), int), MIN_RATIO), get).any()
    assert decoder.get(256, np.array([TOTAL])).tolist() == [0] * 256
    assert decoder.get_latents(np.zeros((0, 10), np.int64), get).shape == (0, 10)
    decoder.finish()


@pytest.mark.parametrize(
    ("q", "ratio", "message"), [(LIMIT, 9, "2\\^40"), (-LIMIT, 9, "2\\^40"), (1, MIN_RATIO, "skipped")]
)
def test_latents_that_cannot_be_coded_are_refused(q: int, ratio: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockEncoder().put_latents(np.array([[q]]), make_ids([[1]], ratio), get)


def test_symbols_and_weights_that_do_not_fit_are_refused() -> None:
    half = np.array([TOTAL // 2, TOTAL // 2])
    for symbols in ([2], [-1], [0, 1 << 32]):
        with pytest.raises(ValueError, match="not in 0"):
            BlockEncoder().put(np.array(symbols), half)
    for weights in ([TOTAL, 0], [TOTAL // 2, TOTAL // 2 + 1], [TOTAL + 1, -1]):
        with pytest.raises(ValueError, match="weights"):
            BlockEncoder().put(np.array([0]), np.array(weights))
    for values in ([8], [-1]):
        with pytest.raises(ValueError, match="3 bits"):
            BlockEncoder().put_uniform(np.array(values), 3)


@pytest.mark.slow
def test_random_bytes_decode_to_something_or_are_refused() -> None:
    rng = np.random.default_rng(0)
    shape, ratio = rng.integers(0, len(SHAPES), (8, 6)), rng.integers(-30, MAX_RATIO, (8, 6))
    tables, weights = make_ids(shape, ratio), make_weights(np.arange(1, 8))
    refused = 0
    for number in range(2000):
        payload = rng.bytes(rng.integers(0, 200)) if number % 4 else b"\xff" * rng.integers(0, 200)
        try:
            decoder = BlockDecoder(payload)
            symbols = decoder.get(16, weights)
            q = decoder.get_latents(tables, get)
            raw = decoder.get_uniform(16, 32)
            assert symbols.shape == raw.shape == (16,) and q.shape == tables.shape
            assert 0 <= symbols.min() <= symbols.max() < 7 and np.abs(q).max() < LIMIT and raw.max() >> 32 == 0
            decoder.finish()
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 0 < refused < 2000


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_escapes_out_of_range_are_refused(payload: bytes) -> None:
    def escape(_: int) -> Table:
        """A table that escapes nearly always."""
        return Table(np.array([1, 1, 1, TOTAL - 3]), 1, 30, np.zeros(4, np.int64))

    try:
        q = BlockDecoder(payload).get_latents(np.zeros((5, 5), np.int64), escape)
    except InputError as error:
        assert "damaged block" in str(error)
    else:
        assert np.abs(q).max() < LIMIT


def test_a_flipped_bit_changes_symbols_or_leaves_a_rest() -> None:
    q, tables = draw_block(3, 64, 20)
    encoder = BlockEncoder()
    encoder.put_latents(q, tables, get)
    payload = encoder.finish()
    for place in range(0, 8 * len(payload), 97):
        damaged = bytearray(payload)
        damaged[place // 8] ^= 1 << place % 8
        try:
            decoder = BlockDecoder(bytes(damaged))
            decoded = decoder.get_latents(tables, get)
            decoder.finish()
        except InputError:
            continue
        assert decoded.shape == q.shape and not np.array_equal(decoded, q)
