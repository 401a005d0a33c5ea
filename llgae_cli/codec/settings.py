"""How the rows of a file are coded: the step, the tables of what is not in the model, and the promised error."""

import struct
import zlib
from dataclasses import dataclass, field

import numpy as np

from llgae_cli.codec.density import TOTAL, Integers
from llgae_cli.codec.exact import Floats, Step
from llgae_cli.errors import InputError

# How a row is coded: with the file's step, with that step halved 1 to 3 times, with corrections of its values, raw.
FINER = 3
CORRECTED, RAW = FINER + 1, FINER + 2
MODES = FINER + 3
SHIFTS = 25  # scales of a row's corrections, relative to those of the variables: -12 ... 12 quarter octaves
PLAIN: Integers = np.array([TOTAL - MODES + 1] + [1] * (MODES - 1), np.int64)  # weights of the modes without a bound
SHIFT_UNIT = 2  # in units of the grid of scales

_HEAD = struct.Struct("<BHhb")
_LARGEST = 1 << 26
FORMAT = 1


@dataclass(frozen=True, eq=False)
class Corrections:
    """A second layer: the residual of each value, rounded to a multiple of delta, under a Laplace density.

    delta   (1,) or (D,) steps, in the data's own units: errors are at most delta / 2
    scale   (D,) scales of the residuals over delta, in units of 1/8 octave
    shifts  (SHIFTS,) weights of the rows' own scales
    """

    delta: Floats
    scale: Integers
    shifts: Integers


@dataclass(frozen=True, eq=False)
class Settings:
    """What a decoder needs beside the model, the same for all rows of a file.

    step         Delta
    scale_shift  added to the scales of all densities, in units of 1/8 octave
    modes        (MODES,) weights of the ways in which a row is coded
    corrections  None where no row has any
    max_l2       promised mean squared error of each row, or None; encoders check it
    max_abs      (1,) or (D,) promised absolute errors, or None; 0 for lossless
    """

    step: Step
    scale_shift: int = 0
    modes: Integers = field(default_factory=lambda: PLAIN.copy())
    corrections: Corrections | None = None
    max_l2: float | None = None
    max_abs: Floats | None = None

    @property
    def is_bounded(self) -> bool:
        """Whether an error is promised for each row."""
        return self.max_l2 is not None or self.max_abs is not None

    def pack(self) -> bytes:
        """Return the settings as bytes."""
        flags = (self.corrections is not None) | (self.max_l2 is not None) << 1 | (self.max_abs is not None) << 2
        head = _HEAD.pack(FORMAT << 4 | flags, self.step.mantissa, self.step.exponent, self.scale_shift)
        body = b"" if not flags else self.modes.astype("<i4").tobytes()
        if self.corrections is not None:
            body += _pack(self.corrections.delta, "<f8") + _pack(self.corrections.scale, "<i2")
            body += self.corrections.shifts.astype("<i4").tobytes()
        if self.max_l2 is not None:
            body += struct.pack("<d", self.max_l2)
        if self.max_abs is not None:
            body += _pack(self.max_abs, "<f8")
        return head + (zlib.compress(body, 9) if body else b"")

    @classmethod
    def unpack(cls, data: bytes, D: int) -> "Settings":
        """Return the settings in `data` for rows of D values. Raises InputError where they are not sound."""
        try:
            kind, mantissa, exponent, shift = _HEAD.unpack_from(data)
            if kind >> 4 != FORMAT or not 512 <= mantissa < 1024 or abs(exponent) >= 900 or kind & 8:
                raise ValueError
            reader = _Reader(_inflate(data[_HEAD.size :], 64 + 200 + 40 * D) if len(data) > _HEAD.size else b"")
            modes = reader.take("<i4", MODES).astype(np.int64) if kind & 7 else PLAIN
            corrections = None
            if kind & 1:
                delta, scale = reader.take_list("<f8", D), reader.take("<i2", reader.count(D, D)).astype(np.int64)
                corrections = Corrections(delta, scale, reader.take("<i4", SHIFTS).astype(np.int64))
                _check_weights(corrections.shifts)
                _check_positive(delta)
            max_l2 = float(reader.take("<f8", 1)[0]) if kind & 2 else None
            max_abs = reader.take_list("<f8", D) if kind & 4 else None
            reader.finish()
            _check_weights(modes)
            _check_bounds(max_l2, max_abs)
        except (struct.error, ValueError, zlib.error):
            raise InputError("its settings are damaged") from None
        return cls(Step(mantissa, exponent), shift, modes, corrections, max_l2, max_abs)


def _check_weights(weights: Integers) -> None:
    if weights.min() < 1 or weights.sum() != TOTAL:
        raise ValueError("weights that are not at least 1 with a total of 2^24")


def _check_positive(values: Floats) -> None:
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError("a step that is not positive")


def _check_bounds(max_l2: float | None, max_abs: Floats | None) -> None:
    bounds = np.array([0.0 if max_l2 is None else max_l2, *([] if max_abs is None else max_abs)])
    if not (np.isfinite(bounds).all() and (bounds >= 0).all()):
        raise ValueError("a bound that is not a number from 0")


def _pack(values: Floats | Integers, dtype: str) -> bytes:
    return struct.pack("<I", len(values)) + values.astype(dtype).tobytes()


def _inflate(data: bytes, limit: int) -> bytes:
    """Return the decompressed bytes; ValueError where there are more than `limit`."""
    inflater = zlib.decompressobj()
    out = inflater.decompress(data, min(limit, _LARGEST) + 1)
    if len(out) > limit or not inflater.eof or inflater.unused_data:
        raise ValueError("more than the settings can be")
    return out


class _Reader:
    """Reads arrays from bytes in order; ValueError at their end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, dtype: str, n: int) -> np.ndarray:
        size = n * np.dtype(dtype).itemsize
        if self.at + size > len(self.data):
            raise ValueError("too short")
        self.at += size
        return np.frombuffer(self.data, dtype, n, self.at - size)

    def count(self, *allowed: int) -> int:
        n = int(self.take("<u4", 1)[0])
        if n not in allowed:
            raise ValueError("a list of another length")
        return n

    def take_list(self, dtype: str, D: int) -> Floats:
        return self.take(dtype, self.count(1, D)).astype(np.float64)

    def finish(self) -> None:
        if self.at != len(self.data):
            raise ValueError("too long")
