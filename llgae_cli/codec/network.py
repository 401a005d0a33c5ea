"""Decoder networks in fixed point: the values of `models.networks` with the same bits on every machine.

Latents, activations and weights are integers times powers of two, held in float64. Every sum of products stays below
2^53, so it is exact in any order; `FixedNetwork` refuses weights for which that is not certain. After each layer a
value is rounded to the grid of activations and clipped,

    a' = clip(round(2^-s sum_i w_i a_i)),    s = the layer's fraction bits,

which IEEE 754 defines to the last bit. silu is a table made in integer arithmetic. So no library, instruction set or
number of threads changes a value. Arrays of images are (height, n, width, channels): the rows of a convolution's matrix
products then lie together for any offset in height, without a copy.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from llgae_cli.codec.density import LOG2_E, Integers, exp2_negative
from llgae_cli.codec.exact import EXACT, Floats, Step, multiply

LATENT_BITS, LATENT_LIMIT = 18, 24  # fraction bits of a network's latents; they are clipped to +-2^24 steps, +-64
BITS, LIMIT = 12, 20  # the same of activations: +-256
WEIGHT_BITS = 15  # |w| < 2^15 steps of its layer
MATRIX_BITS = 20  # of the largest entry of T
PREFIX = "net."  # of the names of a network's arrays
TABLE = 1 << 16  # silu(-a) is less than half a step from 16 on
OUTPUT_UNITS = 4  # outputs are clipped to 2^4 units, rounded up to a power of two
ROWS, DENSE_ROWS = 16, 256  # that convolutions and dense layers compute together: they fit a cache


@cache
def silu_table() -> Floats:
    """Return silu of all activations on their grid, from -2^20 to 2^20 steps."""
    a = np.arange(TABLE, dtype=np.int64)
    e = exp2_negative(a * LOG2_E >> 30 + BITS - 26)  # 2^40 exp(-a)
    whole = (1 << 40) + e
    below = -((2 * a * e + whole) // (2 * whole))  # silu(-a) = silu(a) - a
    out = np.maximum(np.arange(-(1 << LIMIT), (1 << LIMIT) + 1), 0)
    out[(1 << LIMIT) : (1 << LIMIT) + TABLE] += below
    out[(1 << LIMIT) - TABLE + 1 : (1 << LIMIT)] += below[:0:-1]
    return out.astype(np.float64)


def silu(a: Floats) -> Floats:
    """Return silu of activations, on their grid."""
    return silu_table().take((a + 2.0**LIMIT).astype(np.intp))


def round_to_grid(total: Floats, shift: int, limit: int = LIMIT) -> Floats:
    """Return total 2^-shift, rounded and clipped to +-2^limit, in the memory of `total`."""
    total *= 2.0**-shift
    np.rint(total, out=total)
    return np.clip(total, -(2.0**limit), 2.0**limit, out=total)


@dataclass(frozen=True, eq=False)
class FixedNetwork:
    """unit * network(k, b) with b = centre_k + T_k (Delta q), for integers q.

    sides    of an image, (height, width, colours), for `networks.ConvDecoder`; () for `networks.MLP`
    arrays   its parameters by their names in torch, integers: weights as multiples of 2^-bits, biases and `k.weight` as
             multiples of 2^-(bits + those of the layer's inputs). Those of the last layer contain the unit.
    bits     fraction bits of each layer's weights, by its name
    T        (K, E, E) multiples of 2^-T_bits
    centre   (K, E) multiples of 2^-18
    limit    outputs are clipped to +-2^limit

    Raises ValueError for arrays that do not fit each other, and where a sum may not be exact.
    """

    sides: tuple[int, ...]
    arrays: Mapping[str, Integers]
    bits: Mapping[str, int]
    T: Integers
    T_bits: int
    centre: Integers
    limit: int

    def __post_init__(self) -> None:
        shapes = self._list_shapes()
        if {name: array.shape for name, array in self.arrays.items()} != shapes:
            raise ValueError("arrays of a network that do not fit each other")
        layers = {name.removesuffix(".bias") for name in shapes if name.endswith(".bias")}
        if self.bits.keys() != layers or max(map(abs, (*self.bits.values(), self.T_bits, self.limit))) > 64:
            raise ValueError("a network's fraction bits")
        if self.centre.shape != (self.K, self.E) or self.T.shape != (self.K, self.E, self.E):
            raise ValueError("latents of a network that do not fit")
        if np.abs(self.centre).max(initial=0) > 1 << LATENT_LIMIT or np.abs(self.T).max(initial=0) > 1 << MATRIX_BITS:
            raise ValueError("latents of a network out of range")
        for name in layers:
            weight, bias = self.arrays[f"{name}.weight"], np.abs(self.arrays[f"{name}.bias"].astype(np.float64))
            if name == "first":
                bias = bias + np.abs(self.arrays["k.weight"].astype(np.float64)).max(0)
            rows = np.abs(weight.astype(np.float64)).reshape(len(weight), -1).sum(1)
            largest = rows * 2.0 ** (LATENT_LIMIT if name == "first" else LIMIT) + bias
            if not largest.max(initial=0.0) < EXACT / 2:
                raise ValueError("a network whose sums may be inexact")

    @classmethod
    def round(
        cls, parameters: Mapping[str, Floats], sides: tuple[int, ...], unit: float, T: Floats, centre: Floats
    ) -> "FixedNetwork":
        """Return the network with these parameters, by their names in torch, rounded to fixed point."""
        arrays: dict[str, Integers] = {}
        bits: dict[str, int] = {}
        for name in (name.removesuffix(".bias") for name in parameters if name.endswith(".bias")):
            factor = unit if name == "out" else 1.0
            weight = parameters[f"{name}.weight"] * factor
            bits[name] = _fraction_bits(weight, WEIGHT_BITS)
            limit = (1 << WEIGHT_BITS) - 1
            arrays[f"{name}.weight"] = np.clip(np.rint(weight * 2.0 ** bits[name]), -limit, limit).astype(np.int64)
            grid = 2.0 ** (bits[name] + (LATENT_BITS if name == "first" else BITS))
            arrays[f"{name}.bias"] = np.rint(parameters[f"{name}.bias"] * factor * grid).astype(np.int64)
            if name == "first":
                arrays["k.weight"] = np.rint(parameters["k.weight"] * grid).astype(np.int64)
        T_bits = _fraction_bits(T, MATRIX_BITS)
        return cls(
            sides,
            arrays,
            bits,
            np.rint(T * 2.0**T_bits).astype(np.int64),
            T_bits,
            np.rint(np.clip(centre * 2.0**LATENT_BITS, -(2.0**LATENT_LIMIT), 2.0**LATENT_LIMIT)).astype(np.int64),
            OUTPUT_UNITS + math.frexp(unit)[1],
        )

    @property
    def K(self) -> int:  # noqa: N802
        """Number of components."""
        return len(self.arrays["k.weight"])

    @property
    def E(self) -> int:  # noqa: N802
        """Number of latents."""
        return self.arrays["first.weight"].shape[1]

    @property
    def D(self) -> int:  # noqa: N802
        """Number of values of a row."""
        return math.prod(self.sides) if self.sides else len(self.arrays["out.weight"])

    @property
    def output_bits(self) -> int:
        """Fraction bits of the outputs."""
        return self.bits["out"] + BITS

    @property
    def width(self) -> int:
        """Number of outputs of the dense layers."""
        return self.arrays["k.weight"].shape[1]

    @property
    def channels(self) -> int:
        """Number of channels at half of the image's side."""
        return self.arrays["out.weight"].shape[1]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the network as arrays of small integers, by names that begin with PREFIX."""
        arrays = {
            "sides": np.array(self.sides, "<i4"),
            "bits": np.array([self.T_bits, self.limit, *self.bits.values()], "<i4"),
            "T": self.T.astype("<i4"),
            "centre": self.centre.astype("<i4"),
        }
        for name, array in self.arrays.items():
            arrays[name] = array.astype("<i2" if name.endswith(".weight") and name != "k.weight" else "<i8")
        return {PREFIX + name: array for name, array in arrays.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "FixedNetwork":
        """Return the network in the arrays of `to_arrays`. Raises KeyError or ValueError for other arrays."""
        own = {name.removeprefix(PREFIX): array for name, array in arrays.items() if name.startswith(PREFIX)}
        sides, bits, T, centre = (own.pop(name) for name in ("sides", "bits", "T", "centre"))
        if sides.shape not in ((0,), (3,)) or any(
            array.dtype.kind != "i" for array in (sides, bits, T, centre, *own.values())
        ):
            raise ValueError("arrays of another kind")
        layers = [name.removesuffix(".bias") for name in own if name.endswith(".bias")]
        T_bits, limit, *each = bits.tolist()
        return cls(
            tuple(sides.tolist()),
            own,
            dict(zip(layers, each, strict=True)),
            T.astype(np.int64),
            T_bits,
            centre.astype(np.int64),
            limit,
        )

    def parameters(self) -> dict[str, Floats]:
        """Return the rounded parameters by their names in torch, with the unit in those of the last layer."""
        out: dict[str, Floats] = {}
        for name, array in self.arrays.items():
            layer, kind = name.rsplit(".", 1)
            f = self.bits["first" if layer == "k" else layer]
            if kind == "bias" or layer == "k":
                f += LATENT_BITS if layer in ("k", "first") else BITS
            out[name] = array.astype(np.float64) * 2.0**-f
        return out

    def has_exact_sums(self, q: Integers, step: Step) -> NDArray[np.bool_]:
        """Return for which rows of q (n, E) the sums in T_k (Delta q) are exact."""
        largest = float(np.abs(self.T).max(initial=0)) * step.mantissa
        return largest * np.abs(q).sum(1).astype(np.float64) < EXACT / 2

    def decode(self, k: Integers, q: Integers, step: Step) -> Floats:
        """Return unit * network(k, b), multiples of 2^-output_bits, for k (n,) and q (n, E); (n, D)."""
        out = np.empty((len(k), self.D))
        for low in range(0, len(k), DENSE_ROWS):
            rows = slice(low, low + DENSE_ROWS)
            b = self._place_latents(k[rows], q[rows], step)
            decode = self._decode_conv if self.sides else self._decode_mlp
            out[rows] = decode(self._apply_dense(k[rows], b))
        limit = 2.0**self.limit
        return np.clip(np.multiply(out, 2.0**-self.output_bits, out=out), -limit, limit, out=out)

    # -- layers -------------------------------------------------------------------------------------------------------

    def _list_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all arrays, as those of a few and the sides imply them."""
        (K, width), (_, E) = (self.arrays[f"{name}.weight"].shape for name in ("k", "first"))
        shapes: dict[str, tuple[int, ...]] = {"first.weight": (width, E), "second.weight": (width, width)}
        if not self.sides:
            shapes["out.weight"] = (len(self.arrays["out.weight"]), width)
        else:
            height, breadth, colours = self.sides
            _, c, *_ = self.arrays["out.weight"].shape
            if min(c, height, breadth, colours) < 1:
                raise ValueError("sides of an image")
            cells = -(-height // 4) * -(-breadth // 4)
            shapes |= {"spread.weight": (2 * c * cells, width), "up.weight": (4 * c, 2 * c, 1, 1)}
            for block, own in (*((f"coarse.{i}", 2 * c) for i in range(3)), ("fine", c)):
                shapes |= {f"{block}.{part}.weight": (own, own, 3, 3) for part in ("first", "second")}
                shapes[f"{block}.modulation.weight"] = (2 * own, width)
            shapes["out.weight"] = (4 * colours, c, 3, 3)
        shapes |= {name.replace(".weight", ".bias"): shape[:1] for name, shape in shapes.items()}
        return shapes | {"k.weight": (K, width)}

    @cached_property
    def _matrices(self) -> dict[str, Floats]:
        """Weights as products use them: (inputs, outputs), of convolutions (3, 3 inputs, outputs); biases too.

        Outputs of `spread` are (height, inputs, width x channels), those of `up` (2, inputs, 2 x channels), by the
        offset in height within a pixel and then in width.
        """
        out: dict[str, Floats] = {
            "k": self.arrays["k.weight"].astype(np.float64),
            "T": self.T.astype(np.float64),
            "centre": self.centre.astype(np.float64),
        }
        for name in self.bits:
            weight, bias = (self.arrays[f"{name}.{part}"].astype(np.float64) for part in ("weight", "bias"))
            if name == "spread":
                height = -(-self.sides[0] // 4)
                weight, bias = weight.reshape(height, -1, self.width).transpose(0, 2, 1), bias.reshape(height, 1, -1)
            elif name == "up":
                c = self.channels
                weight = weight.reshape(c, 2, 2, 2 * c).transpose(1, 3, 2, 0).reshape(2, 2 * c, 2 * c)
                bias = bias.reshape(c, 2, 2).transpose(1, 2, 0).reshape(2, 2 * c)
            elif weight.ndim == 4:
                weight = weight.transpose(2, 3, 1, 0).reshape(3, -1, len(weight))
            else:
                weight = weight.T
            out |= {f"{name}.weight": np.ascontiguousarray(weight), f"{name}.bias": np.ascontiguousarray(bias)}
        return out

    def _place_latents(self, k: Integers, q: Integers, step: Step) -> Floats:
        """Return centre_k + T_k (Delta q), rounded to multiples of 2^-18 and clipped, (n, E)."""
        z = q.astype(np.float64) * step.mantissa
        b = np.matmul(self._matrices["T"][k], z[:, :, None])[:, :, 0]
        # Rounded before the centre joins: both are then whole numbers.
        b = round_to_grid(b, self.T_bits - LATENT_BITS - step.exponent, LATENT_LIMIT) + self._matrices["centre"][k]
        return np.clip(b, -(2.0**LATENT_LIMIT), 2.0**LATENT_LIMIT, out=b)

    def _apply(self, name: str, a: Floats, more: Floats | float = 0.0) -> Floats:
        """Return a dense layer of a (n, inputs), with `more` added to its sums, on the grid of activations."""
        total = multiply(a, self._matrices[f"{name}.weight"])
        total += self._matrices[f"{name}.bias"]
        total += more
        return round_to_grid(total, self.bits[name] + (LATENT_BITS - BITS if name == "first" else 0))

    def _apply_dense(self, k: Integers, b: Floats) -> Floats:
        """Return the output (n, width) of the two dense layers."""
        return silu(self._apply("second", silu(self._apply("first", b, self._matrices["k"][k]))))

    def _decode_mlp(self, z: Floats) -> Floats:
        """Return the sums of the last layer, (n, D), from dense outputs z (n, width)."""
        sums: Floats = multiply(z, self._matrices["out.weight"]) + self._matrices["out.bias"]
        return sums

    def _decode_conv(self, z: Floats) -> Floats:
        """Return the sums of the last layer, (n, D), from dense outputs z (n, width)."""
        names = (*(f"coarse.{i}" for i in range(3)), "fine")
        modulation = {name: self._apply(f"{name}.modulation", z) for name in names}
        parts = []
        for low in range(0, len(z), ROWS):
            rows = slice(low, low + ROWS)
            parts.append(self._decode_images(z[rows], {name: values[rows] for name, values in modulation.items()}))
        return np.concatenate(parts)

    def _decode_images(self, z: Floats, modulation: dict[str, Floats]) -> Floats:
        """Return `_decode_conv` of a few rows; `modulation` has each block's scales and shifts, (n, 2 channels)."""
        n, c = len(z), self.channels
        height, breadth, colours = self.sides
        rows, columns = -(-height // 4), -(-breadth // 4)
        h = np.stack([multiply(z, weight) for weight in self._matrices["spread.weight"]])
        h += self._matrices["spread.bias"]
        h = round_to_grid(h, self.bits["spread"]).reshape(rows, n, columns, 2 * c)
        padded = _make_padded(rows, n, columns, 2 * c)
        for i in range(3):
            h = self._apply_block(f"coarse.{i}", h, modulation[f"coarse.{i}"], padded)

        wide = np.empty((rows, 2, n, 2 * columns, c))
        for offset, (weight, bias) in enumerate(
            zip(self._matrices["up.weight"], self._matrices["up.bias"], strict=True)
        ):
            part = multiply(h.reshape(-1, 2 * c), weight)
            part += bias
            wide[:, offset] = round_to_grid(part, self.bits["up"]).reshape(rows, n, 2 * columns, c)
        padded = _make_padded(2 * rows, n, 2 * columns, c)
        fine = self._apply_block("fine", wide.reshape(2 * rows, n, 2 * columns, c), modulation["fine"], padded)
        sums = self._convolve("out", silu(fine), padded)  # (2 rows, n, 2 columns, 4 colours)
        image = sums.reshape(2 * rows, n, 2 * columns, colours, 2, 2).transpose(1, 0, 4, 2, 5, 3)
        return image.reshape(n, 4 * rows, 4 * columns, colours)[:, :height, :breadth].reshape(n, -1)

    def _apply_block(self, name: str, h: Floats, modulation: Floats, padded: Floats) -> Floats:
        """Return h + conv(silu((1 + scale) conv(silu(h)) + shift))."""
        scale, shift = np.split(modulation[:, None, :], 2, axis=2)  # (n, 1, channels)
        g = round_to_grid(self._convolve(f"{name}.first", silu(h), padded), self.bits[f"{name}.first"])
        g *= scale + 2.0**BITS
        g += shift * 2.0**BITS
        g = silu(round_to_grid(g, BITS))
        out = round_to_grid(self._convolve(f"{name}.second", g, padded), self.bits[f"{name}.second"])
        out += h
        return np.clip(out, -(2.0**LIMIT), 2.0**LIMIT, out=out)

    def _convolve(self, name: str, a: Floats, padded: Floats) -> Floats:
        """Return sums of a 3 x 3 convolution of a (height, n, width, channels); `padded` is its work space."""
        height, n, width, c = a.shape
        weight = self._matrices[f"{name}.weight"]
        padded[1:-1, :, :, c : 2 * c] = a
        padded[1:-1, :, 1:, :c] = a[:, :, :-1]
        padded[1:-1, :, :-1, 2 * c :] = a[:, :, 1:]
        total = multiply(padded[:height].reshape(-1, 3 * c), weight[0])
        for i in (1, 2):
            total += multiply(padded[i : i + height].reshape(-1, 3 * c), weight[i])
        total += self._matrices[f"{name}.bias"]
        return total.reshape(height, n, width, -1)


def _make_padded(height: int, n: int, width: int, channels: int) -> Floats:
    """Return zeros for an image with a margin in height, and each column with its left and right neighbour."""
    return np.zeros((height + 2, n, width, 3 * channels))


def _fraction_bits(values: Floats, bits: int) -> int:
    """Return f such that |values| 2^f < 2^bits, the largest one; from -40 to 40."""
    largest = float(np.abs(values).max(initial=0.0))
    return min(max(bits - math.frexp(largest)[1], -40), 40) if largest > 0 else 0
