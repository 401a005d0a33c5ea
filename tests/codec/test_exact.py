"""Exact decoding: floats agree with Python's integers, and rows whose sums could round are known as such."""

from fractions import Fraction

import numpy as np
import pytest
from coded import make_codec  # tests/coded.py
from hypothesis import given, settings
from hypothesis import strategies as st

from llgae_cli.codec.exact import BASIS_BITS, ExactDecoder, Level, Step, group_rows

pytestmark = pytest.mark.numeric


def decode_with_fractions(
    decoder: ExactDecoder, k: np.ndarray, s: np.ndarray | None, q: np.ndarray, step: Step
) -> list[list[Fraction]]:
    """Return x_hat as exact fractions, one row after the other."""
    delta, rows = Fraction(step.mantissa) * Fraction(2) ** step.exponent, []
    for i in range(len(k)):
        total, first = [Fraction(0)] * decoder.D, 0
        for level, symbol in zip(decoder.levels, k[i], strict=True):
            own, j = q[i, first : first + level.E], symbol // level.A
            for d in range(decoder.D):
                latents = sum(
                    (Fraction(float(u)) * int(n) for u, n in zip(level.U[j, d], own, strict=True)), Fraction(0)
                )
                total[d] += Fraction(float(level.mu[j, d])) + delta * latents
            first += level.E
        rows.append(total if s is None else [total[place] for place in decoder.places[s[i]]])
    return rows


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    D=st.integers(1, 6),
    K=st.integers(1, 3),
    L=st.integers(1, 3),
    V=st.sampled_from([0, 3]),
    size=st.integers(0, 30),
    exponent=st.integers(-40, 20),
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 255.0, 1e9]),
)
def test_decoding_is_the_arithmetic_of_fractions(
    seed: int, D: int, K: int, L: int, V: int, size: int, exponent: int, scale: float
) -> None:
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(9, D)) * scale
    decoder = make_codec(rows, K, int(draw.integers(0, D + 1)), L, V if L == 1 else 0, seed).model.decoder
    k = draw.integers(K * decoder.levels[0].A, size=(5, L))
    s = draw.integers(V, size=5) if decoder.places is not None else None
    q = draw.integers(-(1 << size), (1 << size) + 1, size=(5, decoder.E))
    step = Step(int(draw.integers(512, 1024)), exponent)
    exact = decoder.is_exact(q, step)
    x_hat, truth = decoder.decode(k, s, q, step), decode_with_fractions(decoder, k, s, q, step)
    for i in np.flatnonzero(exact):
        assert [Fraction(float(value)) for value in x_hat[i]] == truth[i]


def test_ordinary_rows_are_exact_and_huge_ones_are_not() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (50, 784))
    decoder = make_codec(rows, 4, 40).model.decoder
    assert decoder.is_exact(np.full((1, 40), 300), Step.nearest(1.0)).all()
    assert not decoder.is_exact(np.full((1, 40), 1 << 39), Step.nearest(1.0)).any()
    assert not decoder.is_exact(np.full((1, 40), 1), Step(1000, 899)).any()
    assert not decoder.is_exact(np.full((1, 40), 1), Step(1000, -899)).any()


@pytest.mark.parametrize("order", ["rising", "falling", "shuffled"])
def test_the_order_of_the_latents_does_not_matter(order: str) -> None:
    draw = np.random.default_rng(3)
    level = make_codec(draw.normal(size=(60, 100)) * 50, 2, 64, A=1).model.decoder.levels[0]
    q, step = draw.integers(-1000, 1000, (20, 64)), Step.nearest(0.037)
    assert ExactDecoder((level,)).is_exact(q, step).all()
    at = {"rising": np.arange(64), "falling": np.arange(64)[::-1], "shuffled": draw.permutation(64)}[order]
    moved = Level(level.mu, level.U[:, :, at], level.mu_bits, level.shape[:, at], level.scale[:, at])
    k = draw.integers(2, size=20)
    assert np.array_equal(level.decode(k, q, step), moved.decode(k, q[:, at], step))
    total = level.mu[k].copy()
    for e in range(64):
        total = total + (q[:, at[e], None] * step.value) * level.U[k, :, at[e]]
    assert np.array_equal(total, level.decode(k, q, step))


@given(st.floats(1e-199, 1e199))
def test_the_nearest_step_is_near(value: float) -> None:
    step = Step.nearest(value)
    assert 512 <= step.mantissa < 1024 and abs(step.value / value - 1) <= 2**-10
    assert step.divide(3).value == step.value / 8


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e-201, 1e201])
def test_other_steps_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="a step of"):
        Step.nearest(value)


@given(st.integers(-850, 850), st.integers(512, 1023))
def test_the_logarithm_of_a_step_is_rounded_down(exponent: int, mantissa: int) -> None:
    step = Step(mantissa, exponent)
    assert -1.002 < step.log2 - 65536 * (np.log2(mantissa) + exponent) < 1e-6


def test_rounded_levels_are_multiples() -> None:
    draw = np.random.default_rng(1)
    for scale in (0.0, 1e-200, 1e-5, 1.0, 1e12):
        mu, U = draw.normal(size=(2, 3)) * scale, draw.normal(size=(2, 3, 2))
        level = Level.round(mu, U, np.zeros((2, 2), np.int64), np.zeros((2, 2), np.int64))
        for values, bits in ((level.mu, level.mu_bits), (level.U, BASIS_BITS)):
            assert all((Fraction(float(v)) * Fraction(2) ** bits).denominator == 1 for v in values.ravel())
        np.testing.assert_allclose(level.mu, mu, atol=scale * 2.0**-27)


def test_rows_are_grouped_in_order() -> None:
    groups = group_rows(np.array([2, 0, 2, 3, 0]), 5)
    assert [(j, rows.tolist()) for j, rows in groups] == [(0, [1, 4]), (2, [0, 2]), (3, [3])]
    assert group_rows(np.zeros(0, np.int64), 3) == []
