"""Decoder networks in fixed point: Python's integers, any order and any library give the same values."""

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from coded import make_deep  # tests/coded.py

from llgae_cli.codec.exact import Step
from llgae_cli.codec.network import BITS, LATENT_BITS, LATENT_LIMIT, LIMIT, FixedNetwork, silu, silu_table

pytestmark = pytest.mark.numeric
K, E, STEP = 3, 4, Step.nearest(0.37)
SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "vectors": ("mlp", (11,)),
    "images": ("conv", (6, 9)),
    "colours": ("conv", (5, 4, 3)),
}


def fixed(name: str, seed: int = 0) -> tuple[FixedNetwork, torch.nn.Module, float]:
    """A network in fixed point, the same in float32, and its unit."""
    kind, shape = SHAPES[name]
    model, draw = make_deep(kind, shape, K, E), np.random.default_rng(seed)
    network = model.decoder.network
    assert network is not None
    sides = (*shape, 1)[:3] if kind == "conv" else ()
    parameters = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}
    unit = float(model.decoder.unit)
    T, centre = draw.normal(size=(K, E, E)) * 0.3, draw.normal(size=(K, E)) * 0.5
    return FixedNetwork.round(parameters, sides, unit, T, centre), network, unit


def codes(n: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.integers(K, size=n), draw.integers(-4, 5, size=(n, E))


@pytest.mark.parametrize("name", SHAPES)
def test_values_are_near_those_in_floats(name: str) -> None:
    network, floats, unit = fixed(name)
    k, q = codes(40)
    T, centre = network.T * 2.0**-network.T_bits, network.centre * 2.0**-LATENT_BITS
    b = centre[k] + np.einsum("nef,nf->ne", T[k], q * STEP.value)
    with torch.no_grad():
        expected = unit * floats.double()(torch.from_numpy(k), torch.from_numpy(b)).numpy()
    found = network.decode(k, q, STEP)
    assert found.shape == expected.shape and np.abs(expected).max() < 2.0**network.limit
    np.testing.assert_allclose(found, expected, atol=0.005 * unit)
    assert np.abs(found - expected).mean() < 0.001 * unit


def decode_with_integers(network: FixedNetwork, k: int, q: list[int], step: Step) -> list[Fraction]:
    """The network as torch defines it, one value after the other, in Python's integers and fractions."""
    parameters = {name: array.tolist() for name, array in network.arrays.items()}
    table = [int(value) for value in silu_table()]

    def clip(value: int, limit: int) -> int:
        return max(-(1 << limit), min(value, 1 << limit))

    def grid(total: int, shift: int) -> int:
        return clip(round(Fraction(total) / Fraction(2) ** shift), LIMIT)

    def act(values: list[int]) -> list[int]:
        return [table[a + (1 << LIMIT)] for a in values]

    def dense(name: str, a: list[int], more: list[int] | None = None) -> list[int]:
        rows = zip(parameters[f"{name}.weight"], parameters[f"{name}.bias"], strict=True)
        sums = [sum(w * v for w, v in zip(row, a, strict=True)) + bias for row, bias in rows]
        return sums if more is None else [s + m for s, m in zip(sums, more, strict=True)]

    def rounded(name: str, sums: list[int]) -> list[int]:
        return [grid(s, network.bits[name] + (LATENT_BITS - BITS if name == "first" else 0)) for s in sums]

    def convolve(name: str, h: list) -> list:
        """h[channel][row][column], with zeros around it."""
        weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
        rows, columns, r = len(h[0]), len(h[0][0]), len(weight[0][0]) // 2
        out = [[[bias[c]] * columns for _ in range(rows)] for c in range(len(weight))]
        for c, i, j in np.ndindex(len(weight), rows, columns):
            for a, di, dj in np.ndindex(len(h), 2 * r + 1, 2 * r + 1):
                y, x = i + di - r, j + dj - r
                if 0 <= y < rows and 0 <= x < columns:
                    out[c][i][j] += weight[c][a][di][dj] * h[a][y][x]
        return out

    def each(function: Callable[[int, int], int], h: list) -> list:
        return [[[function(c, v) for v in row] for row in plane] for c, plane in enumerate(h)]

    def shuffle(h: list) -> list:
        rows, columns = 2 * len(h[0]), 2 * len(h[0][0])
        return [
            [[h[4 * c + 2 * (i % 2) + j % 2][i // 2][j // 2] for j in range(columns)] for i in range(rows)]
            for c in range(len(h) // 4)
        ]

    def block(name: str, h: list, z: list[int]) -> list:
        modulation = rounded(f"{name}.modulation", dense(f"{name}.modulation", z))
        scale, shift = modulation[: len(h)], modulation[len(h) :]
        first, second = network.bits[f"{name}.first"], network.bits[f"{name}.second"]
        g = each(lambda c, v: grid(v, first), convolve(f"{name}.first", each(lambda c, v: act([v])[0], h)))
        g = each(lambda c, v: act([grid(v * ((1 << BITS) + scale[c]) + (shift[c] << BITS), BITS)])[0], g)
        more = each(lambda c, v: grid(v, second), convolve(f"{name}.second", g))
        return [
            [[clip(a + b, LIMIT) for a, b in zip(*rows, strict=True)] for rows in zip(*planes, strict=True)]
            for planes in zip(h, more, strict=True)
        ]

    exact = [sum(t * n for t, n in zip(row, q, strict=True)) * step.mantissa for row in network.T[k].tolist()]
    latent = Fraction(2) ** (step.exponent - network.T_bits + LATENT_BITS)
    limit = LATENT_LIMIT
    b = [
        clip(clip(round(value * latent), limit) + c, limit)
        for value, c in zip(exact, network.centre[k].tolist(), strict=True)
    ]
    z = act(rounded("first", dense("first", b, parameters["k.weight"][k])))
    z = act(rounded("second", dense("second", z)))
    if not network.sides:
        sums = dense("out", z)
    else:
        height, width, colours = network.sides
        flat = rounded("spread", dense("spread", z))
        c, columns = 2 * network.channels, math.ceil(width / 4)
        h = [
            [[flat[(i * columns + j) * c + a] for j in range(columns)] for i in range(math.ceil(height / 4))]
            for a in range(c)
        ]
        for i in range(3):
            h = block(f"coarse.{i}", h, z)
        h = shuffle(each(lambda c, v: grid(v, network.bits["up"]), convolve("up", h)))
        h = shuffle(convolve("out", each(lambda c, v: act([v])[0], block("fine", h, z))))
        sums = [h[a][i][j] for i in range(height) for j in range(width) for a in range(colours)]
    largest = Fraction(2) ** network.limit
    return [max(-largest, min(Fraction(s) / 2**network.output_bits, largest)) for s in sums]


@pytest.mark.parametrize("name", SHAPES)
def test_decoding_is_the_arithmetic_of_integers(name: str) -> None:
    network = fixed(name)[0]
    k, q = codes(3, 5)
    q[2] *= 1000  # latents and activations that are clipped
    found = network.decode(k, q, STEP)
    assert network.has_exact_sums(q, STEP).all()
    for i in range(len(k)):
        expected = decode_with_integers(network, int(k[i]), q[i].tolist(), STEP)
        assert [Fraction(float(value)) for value in found[i]] == expected


def test_silu_is_rounded_to_the_nearest_step() -> None:
    a = np.arange(-(1 << 17), 1 << 17, 7)
    x = a * 2.0**-BITS
    expected = x / (1 + np.exp(-x)) * 2.0**BITS
    assert np.abs(silu(a.astype(np.float64)) - expected).max() < 0.5 + 1e-3


@pytest.mark.parametrize("name", SHAPES)
def test_the_order_of_hidden_units_does_not_matter(name: str) -> None:
    network = fixed(name)[0]
    order = np.random.default_rng(2).permutation(network.width)
    arrays = dict(network.arrays)
    for each in ("first.weight", "first.bias"):
        arrays[each] = arrays[each][order]
    for each in ("k.weight", "second.weight"):
        arrays[each] = arrays[each][:, order]
    k, q = codes(50)
    assert np.array_equal(network.decode(k, q, STEP), replace(network, arrays=arrays).decode(k, q, STEP))


@pytest.mark.parametrize("name", SHAPES)
def test_neither_the_library_nor_the_rows_beside_a_row_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = fixed(name)[0]
    k, q = codes(300)
    with_torch = network.decode(k, q, STEP)
    one_by_one = np.concatenate([network.decode(k[i : i + 1], q[i : i + 1], STEP) for i in range(0, 300, 10)])
    assert np.array_equal(with_torch[::10], one_by_one)
    monkeypatch.setattr("llgae_cli.codec.exact.find_torch", lambda: None)
    assert np.array_equal(with_torch, network.decode(k, q, STEP))


@pytest.mark.parametrize("name", SHAPES)
def test_arrays_make_the_same_network(name: str) -> None:
    network = fixed(name)[0]
    k, q = codes(20)
    again = FixedNetwork.from_arrays(network.to_arrays())
    assert np.array_equal(network.decode(k, q, STEP), again.decode(k, q, STEP)) and again.D == network.D


def test_unsound_networks_are_refused() -> None:
    network = fixed("images")[0]
    sound = network.to_arrays()
    large = np.full_like(sound["net.first.bias"], 1 << 52)
    unsound: list[dict[str, np.ndarray]] = [
        {"net.first.bias": large},  # sums that may be inexact
        {"net.k.weight": np.full_like(sound["net.k.weight"], -(1 << 62))},
        {"net.up.weight": np.full(sound["net.up.weight"].shape, 1 << 32)},
        {"net.up.weight": sound["net.up.weight"][1:]},
        {"net.second.weight": sound["net.second.weight"].reshape(-1)},
        {"net.second.weight": sound["net.second.weight"].astype("<f8") * np.nan},
        {"net.T": np.full_like(sound["net.T"], (1 << 20) + 1)},
        {"net.centre": np.full_like(sound["net.centre"], -(1 << 31))},
        {"net.sides": np.array([6, 9, 2], "<i4")},
        {"net.sides": np.array([0, 9, 1], "<i4")},
        {"net.sides": np.array([-6, -9, 1], "<i4")},
        {"net.sides": np.zeros(0, "<i4")},
        {"net.bits": sound["net.bits"][:-1]},
        {"net.bits": sound["net.bits"] + 70},
        {"net.more": sound["net.T"]},
    ]
    for changed in unsound:
        with pytest.raises((ValueError, KeyError)):
            FixedNetwork.from_arrays(sound | changed)
    for name in sound:
        with pytest.raises((ValueError, KeyError)):
            FixedNetwork.from_arrays({other: array for other, array in sound.items() if other != name})


def test_rows_whose_latents_may_be_inexact_are_known() -> None:
    network = fixed("vectors")[0]
    q = np.array([[1000] * E, [1 << 39] * E])
    assert network.has_exact_sums(q, STEP).tolist() == [True, False]
