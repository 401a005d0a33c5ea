"""What coding uses of a model: its decoder in fixed point, densities, and the grid of the encoder; as bytes too."""

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llgae_cli.codec.density import SHAPES, Integers, make_weights
from llgae_cli.codec.exact import BASIS_BITS, NO_ACTIVITY, SPREADS, ExactDecoder, Level, Step
from llgae_cli.codec.grid import Grid
from llgae_cli.codec.network import PREFIX, FixedNetwork
from llgae_cli.errors import InputError
from llgae_cli.scaling import Floats, Scaling, restore_scaling

if TYPE_CHECKING:
    from llgae_cli.codec.encoder import RowEncoder

FORMAT, NETWORK_FORMAT = 1, 2  # without and with a network
GRID_ARRAYS = ("origin", "step")  # what only encoding uses
START = "start."  # the prefix of names of arrays that only the encoding of networks uses
TYPES = ("|i1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8")
LARGEST = 1 << 31  # bytes of an unpacked model, at most

_HEAD = struct.Struct("<BI")


@dataclass(frozen=True, eq=False)
class CodecModel:
    """A decoder, the probabilities of its codes, and what an encoder needs.

    decoder   offsets, bases and densities of all levels
    counts    for each level the number of training rows with each symbol k A + a, (K A,)
    symbols   for models with a shift the number of training rows with each shift, by component, (K, V); else None
    grid      see `encoder`
    step      the step that the model was made for
    scaling   of the rows, or None: the decoder's values, latents and steps are those of scaled rows
    start     for models with a network: arrays of `network_encoder.Start`, where the search for latents begins
    """

    decoder: ExactDecoder
    counts: tuple[Integers, ...]
    symbols: Integers | None
    grid: Grid
    step: Step
    scaling: Scaling | None = None
    start: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def unit(self) -> Floats | float:
        """Scales of the variables, (D,), or 1.0: errors over it are those in the units that the model works in."""
        return 1.0 if self.scaling is None else self.scaling.scale

    def place(self, x: NDArray[Any]) -> tuple[Floats, NDArray[np.bool_]]:
        """Return rows x (n, D), in their own units, on the grid, and which of them it holds."""
        u = x.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            return self.grid.round(u if self.scaling is None else self.scaling.apply(u))

    def decode(self, k: Integers, s: Integers | None, q: Integers, step: Step) -> Floats:
        """Return the rows (n, D) that symbols and latents decode to, in their own units.

        The sums are exact where `decoder.is_exact`; then one product and one sum undo the scaling, rounded as IEEE 754
        says. So the same bits result on every machine.
        """
        u = self.decoder.decode(k, s, q, step)
        if self.scaling is None:
            return u
        with np.errstate(over="ignore", invalid="ignore"):
            return self.scaling.undo(u)

    @cached_property
    def weights(self) -> tuple[Integers, ...]:
        """Probabilities of the symbols of each level, times 2^24."""
        return tuple(make_weights(counts) for counts in self.counts)

    @cached_property
    def symbol_weights(self) -> Integers | None:
        """Probabilities of the shifts given the component, (K, V), times 2^24."""
        return None if self.symbols is None else np.stack([make_weights(counts + 1) for counts in self.symbols])

    @cached_property
    def encoder(self) -> "RowEncoder":
        """The encoder of this model. Raises InputError where what only encoding uses is damaged."""
        if self.decoder.levels[0].network is not None:
            from llgae_cli.codec.network_encoder import NetworkEncoder

            return NetworkEncoder(self.decoder, self.weights[0], self.grid, self.start, self.step)
        from llgae_cli.codec.encoder import Encoder  # here: it needs torch, which decoding does not

        return Encoder(self.decoder, self.weights, self.symbol_weights, self.grid)

    @cached_property
    def identity(self) -> bytes:
        """16 bytes that differ between models: a digest of all that decoding uses."""
        return _digest(self._arrays(grid=False))

    def pack(self) -> bytes:
        """Return the model as bytes: names, types and shapes of its arrays, and these, compressed."""
        arrays = self._arrays(grid=True)
        head = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
        text = json.dumps(head, separators=(",", ":")).encode()
        # The bytes of one place of all numbers come together, because the high ones are alike.
        planes = [
            np.ascontiguousarray(array).view(np.uint8).reshape(-1, array.dtype.itemsize).T.tobytes()
            for array in arrays.values()
        ]
        version = FORMAT if self.decoder.levels[0].network is None else NETWORK_FORMAT
        return _HEAD.pack(version, len(text)) + text + zlib.compress(b"".join(planes), 6)

    @classmethod
    def unpack(cls, data: bytes) -> "CodecModel":
        """Return the model in the bytes of `pack`. Raises InputError where they are damaged."""
        try:
            version, length = _HEAD.unpack_from(data)
            if version not in (FORMAT, NETWORK_FORMAT) or length > len(data):
                raise ValueError("another version")
            text = data[_HEAD.size : _HEAD.size + length]
            arrays = _read_arrays(json.loads(text), data[_HEAD.size + length :])
            model = cls._from_arrays(arrays)
            if version != (FORMAT if model.decoder.levels[0].network is None else NETWORK_FORMAT):
                raise ValueError("another version")
            # What the property returns for bytes of `pack`, without turning the bases back into integers: a tenth of
            # decompressing. Other bytes get an identity that no file has.
            vars(model)["identity"] = _digest({name: array for name, array in arrays.items() if _is_decoding(name)})
            return model
        except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError, zlib.error):
            raise InputError("its embedded model is damaged") from None

    def _arrays(self, grid: bool) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for i, (level, counts) in enumerate(zip(self.decoder.levels, self.counts, strict=True)):
            arrays |= {
                f"mu{i}": (level.mu * 2.0**level.mu_bits).astype("<i4"),
                f"bits{i}": np.array([level.mu_bits], "<i4"),
                f"U{i}": (level.U * 2.0**BASIS_BITS).astype("<i4"),
                f"shape{i}": level.shape.astype("<i1"),
                f"scale{i}": level.scale.astype("<i2"),
                f"counts{i}": counts.astype("<i8"),
            }
            if level.A > 1:
                arrays[f"activity{i}"] = level.activity.astype("<i1")
            if level.network is not None:
                arrays |= level.network.to_arrays()
        if self.symbols is not None and self.decoder.places is not None:
            arrays |= {"symbols": self.symbols.astype("<i8"), "places": self.decoder.places.astype("<i4")}
        if self.scaling is not None:
            arrays |= {"centre": self.scaling.centre.astype("<f8"), "unit": self.scaling.scale.astype("<f8")}
        if grid:
            place = [self.grid.bits, self.step.mantissa, self.step.exponent]
            arrays |= dict(zip(GRID_ARRAYS, (self.grid.origin.astype("<f8"), np.array(place, "<i4")), strict=True))
            arrays |= {START + name: array for name, array in self.start.items()}
        return arrays

    @classmethod
    def _from_arrays(cls, arrays: dict[str, np.ndarray]) -> "CodecModel":
        levels: list[Level] = []
        counts: list[Integers] = []
        while f"mu{len(levels)}" in arrays:
            mu, shape, scale, own = (
                arrays[f"{name}{len(levels)}"].astype(np.int64) for name in ("mu", "shape", "scale", "counts")
            )
            U = arrays[f"U{len(levels)}"]  # as it is: it has most of the values
            (bits,) = arrays[f"bits{len(levels)}"].tolist()
            K, D, E = U.shape
            activity = arrays.get(f"activity{len(levels)}", NO_ACTIVITY).astype(np.int64)
            sizes = mu.shape == (K, D) and shape.shape == scale.shape == (K, E) and own.shape == (K * len(activity),)
            sizes = sizes and activity.shape[1:] == (SPREADS,) and U.dtype == np.dtype("<i4")
            if not sizes or min(K, D) < 1 or abs(bits) > 900 or own.min() < 0 or own.sum() >= 1 << 53:
                raise ValueError("arrays that do not fit each other")
            if E and (shape.min() < 0 or shape.max() >= len(SHAPES) or max(U.max(), -int(U.min())) > 2 << BASIS_BITS):
                raise ValueError("values out of range")
            mu, U = mu * 2.0 ** float(-bits), U * 2.0 ** float(-BASIS_BITS)
            network = None
            if not levels and any(name.startswith(PREFIX) for name in arrays):
                network = FixedNetwork.from_arrays(arrays)
                if (network.K, network.D) != (K, D) or network.E not in (E - 1, E):
                    raise ValueError("a network that does not fit")
            levels.append(Level(mu, U, int(bits), shape, scale, activity, network))
            counts.append(own)
        D = levels[0].mu.shape[1]
        symbols = places = None
        if "places" in arrays:
            places, symbols = arrays["places"].astype(np.int64), arrays["symbols"].astype(np.int64)
            fits = places.ndim == 2 and places.shape[1] == D and symbols.shape == (levels[0].K, len(places))
            if not fits or (np.sort(places, 1) != np.arange(D)).any() or symbols.min() < 0:
                raise ValueError("arrays that do not fit each other")
        origin = arrays["origin"].astype(np.float64)
        grid_bits, mantissa, exponent = arrays["step"].tolist()
        sound = origin.shape == (D,) and np.isfinite(origin).all() and abs(grid_bits) <= 900
        if any(level.mu.shape[1] != D for level in levels) or not sound:
            raise ValueError("arrays that do not fit each other")
        if not (512 <= mantissa < 1024 and abs(exponent) < 900):
            raise ValueError("a step out of range")
        grid = Grid(origin, grid_bits)
        with np.errstate(over="ignore", invalid="ignore"):
            if not all(grid.holds(level.mu, i == 0) for i, level in enumerate(levels)):
                raise ValueError("an offset far beyond the rows")
        scaling = None
        if "unit" in arrays:
            scaling = restore_scaling({"method": "stored", "centre": arrays["centre"], "scale": arrays["unit"]}, D)
        if levels[0].network is not None and (len(levels) > 1 or places is not None):
            raise ValueError("a network beside other levels")
        decoder = ExactDecoder(tuple(levels), places)
        start = {name.removeprefix(START): array for name, array in arrays.items() if name.startswith(START)}
        return cls(decoder, tuple(counts), symbols, grid, Step(mantissa, exponent), scaling, start)


def _is_decoding(name: str) -> bool:
    """Return whether decoding uses the array of this name."""
    return name not in GRID_ARRAYS and not name.startswith(START)


def _digest(arrays: dict[str, np.ndarray]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _read_arrays(head: dict[str, list[Any]], data: bytes) -> dict[str, np.ndarray]:
    """Return the arrays that `head` describes; ValueError where the compressed bytes are not exactly theirs."""
    sizes = {}
    for name, (dtype, shape) in head.items():
        if dtype not in ("|i1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8") or not all(
            type(n) is int and n >= 0 for n in shape
        ):
            raise ValueError("an array of another kind")
        sizes[name] = math.prod(shape) * np.dtype(dtype).itemsize
    total = sum(sizes.values())
    # zlib compresses by a factor of 1,032 at most: a small file cannot ask for much memory.
    if total > LARGEST or total > 1032 * len(data):
        raise ValueError("more than the file can hold")
    inflater = zlib.decompressobj()
    raw = inflater.decompress(data, total + 1)
    if len(raw) != total or not inflater.eof:
        raise ValueError("too long or too short")
    arrays, at = {}, 0
    for name, (dtype, shape) in head.items():
        size = np.dtype(dtype).itemsize
        array = np.empty((sizes[name] // size, size), np.uint8)
        for i, plane in enumerate(np.frombuffer(raw, np.uint8, sizes[name], at).reshape(size, -1)):
            array[:, i] = plane
        arrays[name] = array.view(dtype).reshape(shape)
        at += sizes[name]
    return arrays
