"""The codec of a model: rows to bytes at a bit rate or an error bound, and back to the same values on every machine."""

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llgae_cli.codec.blocks import Rows, read_block, write_block
from llgae_cli.codec.corrections import fit_corrections
from llgae_cli.codec.density import COST_UNIT, make_weights
from llgae_cli.codec.entropy_coder import CODER
from llgae_cli.codec.exact import Floats, Step
from llgae_cli.codec.model import CodecModel
from llgae_cli.codec.settings import MODES, Settings
from llgae_cli.errors import InputError, printable
from llgae_cli.storage.checkpoint_bytes import read_extra
from llgae_cli.storage.compressed_file import CompressedFile, CompressedWriter, leave_room
from llgae_cli.storage.compressed_header import BLOCK_ROWS, Header, choose_block_rows
from llgae_cli.threads import count_threads, run_parallel

if TYPE_CHECKING:  # it needs torch, which decoding does not
    from llgae_cli.codec.encoder import Codes

CHUNK_ROWS, CHUNK_VALUES = (1024, 4096), 1 << 19  # rows that are coded together: products of few rows are slow
MEASURED_BYTES = 1 << 27  # of latents that the search for a step keeps
TRIAL_ROWS = 1024  # rows that the search for a step codes each time
BOUND_ROWS = 512  # rows that the search for a step codes under a bound
SMALLEST = 2.0**-12  # of the steps that are tried, over the model's own
LARGEST = 2.0**6
FINEST, COARSEST = 2.0**-24, 2.0**16  # of the steps that are allowed, over the model's own
ANS_BITS = 24.0  # that a block costs beside its symbols
MARGIN_BITS = 0.02  # a row; candidates for components change a little with the step
FAR = 1.5  # the search for a bound ends with a step that takes so many times the bytes of the best
SECANTS = 12
TOLERANCE = 0.005  # of the rate, where the search on a few rows ends
TRIES = 4  # files that are written until one keeps the rate


def mean_bits(codes: "Codes") -> float:
    """Return the mean bits of codes."""
    return float(codes.cost.mean()) / COST_UNIT


def find_value(
    rate: Callable[[float], float], bits: float, value: float, low: float, high: float
) -> tuple[float, float]:
    """Return the value in [low, high] at which `rate` is about `bits`, and the slope there, in bits an e-fold.

    rate falls with the value. Secants in the logarithm of the value, from `value` on; where one leaves the bracket that
    is known, its middle is tried.
    """
    tried: list[tuple[float, float]] = []  # logarithm of the value, rate less bits
    place, least, most = math.log(value), math.log(low), math.log(high)
    slope = math.inf
    for _ in range(SECANTS):
        excess = rate(math.exp(place)) - bits
        if tried and place != tried[-1][0]:
            slope = (tried[-1][1] - excess) / (place - tried[-1][0])
        tried.append((place, excess))
        if math.isfinite(slope) and abs(excess) <= TOLERANCE * bits:
            break
        least, most = (place, most) if excess > 0 else (least, place)
        following = place + (excess / slope if slope > 0 and math.isfinite(slope) else math.copysign(0.1, excess))
        place = following if least < following < most else (least + most) / 2
    return math.exp(min(tried, key=lambda one: abs(one[1]))[0]), slope if math.isfinite(slope) else 0.0


class Codec:
    """Codes rows of a data set with a trained model; `llgae compress` and the Python API use it.

    Attributes: `model`, a `CodecModel`; `D`, values of a row; `identity`, 16 bytes; `size`, bytes of the packed model;
    `unit`, what max_l2 divides errors by (see `CodecModel.unit`).
    """

    def __init__(self, model: CodecModel):
        self.model = model
        self.D = model.decoder.D
        self.identity = model.identity
        self.unit = model.unit

    @classmethod
    def load(cls, path: str | Path) -> "Codec":
        """Return the codec in a checkpoint. Raises InputError where it has none, or is damaged."""
        name, packed = printable(Path(path).name, 200), read_extra(Path(path), "codec")
        if packed is None:
            raise InputError(
                f"{name}: has no codec; models llgae, pca, kmeans, residual and shift, and deep-llgae and gae with a "
                "linear or learnt latent-start, have one once their training is complete (by this version or a later "
                "one)"
            )
        return cls._unpack_for(name, packed)

    @classmethod
    def read(cls, extras: Mapping[str, Any], name: str) -> "Codec | None":
        """Return the codec in the extras of the checkpoint `name`; None where it has none.

        Raises InputError where it is damaged.
        """
        packed, name = extras.get("codec"), printable(name, 200)
        if packed is None:
            return None
        try:
            data = packed.numpy().tobytes()
        except (AttributeError, RuntimeError):
            raise InputError(f"{name}: its codec is damaged") from None
        return cls._unpack_for(name, data)

    @classmethod
    def _unpack_for(cls, name: str, data: bytes) -> "Codec":
        try:
            return cls.unpack(data)
        except (InputError, ValueError):
            raise InputError(f"{name}: its codec is damaged") from None

    @classmethod
    def unpack(cls, data: bytes) -> "Codec":
        """Return the codec in the bytes of `pack`. Raises InputError where they are damaged."""
        codec = cls(CodecModel.unpack(data))
        codec._packed = data  # packing takes seconds for a large model
        return codec

    def pack(self) -> bytes:
        """Return the model as bytes, for files that hold it."""
        return self._packed

    @cached_property
    def size(self) -> int:
        """Bytes of the packed model."""
        return len(self._packed)

    @cached_property
    def _packed(self) -> bytes:
        return self.model.pack()

    # -- choice of the settings ---------------------------------------------------------------------------------------

    def choose_settings(
        self,
        sample: NDArray[Any],
        *,
        bits: float | None = None,
        step: float | None = None,
        max_l2: float | None = None,
        max_abs: float | Floats | None = None,
        lossless: bool = False,
    ) -> Settings:
        """Return the settings of a file from a sample of its rows (m, D), in their stored type.

        bits      bits a row, of the blocks: the step for which the sample takes at most so many
        step      the step itself
        max_l2    bound on each row's squared error, the mean over its values
        max_abs   bound on each value's error, for all or for each variable (D,)
        lossless  every value as it is; integers only

        Raises InputError for a rate that no step reaches, and for lossless floats.
        """
        if len(sample) == 0:
            return Settings(self.model.step if step is None else Step.nearest(step))
        if bits is not None:
            return self._find_step(sample, bits)
        if step is not None:
            own = self.model.step.value
            if not own * FINEST <= step <= own * COARSEST:
                allowed = f"{own * FINEST:.3g} to {own * COARSEST:.3g}"
                raise InputError(f"step {step:g}: {allowed} are allowed; the model's own is {own:.4g}")
            y = self._to_grid(sample[:: max(1, len(sample) // TRIAL_ROWS)][:TRIAL_ROWS])[0]
            nearest = Step.nearest(step)
            return Settings(nearest, self._choose_shift(y, nearest, self._measure(y, nearest)))
        bound = Settings(self.model.step, max_l2=max_l2, max_abs=None if max_abs is None else np.atleast_1d(max_abs))
        if lossless:
            if not np.issubdtype(sample.dtype, np.integer) and sample.dtype != np.bool_:
                raise InputError(f"lossless coding is for integers; these rows hold {sample.dtype}: give --max-abs")
            bound = replace(bound, max_abs=np.zeros(1))
        return self._find_bounded(sample, bound)

    def _find_step(self, sample: NDArray[Any], bits: float) -> Settings:
        y, fits = self._to_grid(sample)
        raw = (len(y) - fits.sum()) * 8.0 * sample.itemsize * self.D / len(y)
        bits -= ANS_BITS / min(BLOCK_ROWS, len(sample)) + MARGIN_BITS + raw
        few = y[:: -(-len(y) // TRIAL_ROWS)]
        measured = self._measure(few, self.model.step)

        def rate(value: float, shift: int = 0) -> float:
            return mean_bits(self._choose(few, Step.nearest(value), shift, measured))

        value = self.model.step.value
        lowest = rate(value * LARGEST)
        if lowest > bits:
            # The number that was given is not known here: a file's header and index are taken off it before.
            raise InputError(f"bits: too few, this model's codes alone take at least {lowest:.4g} bits a row")
        value = find_value(rate, bits, value, SMALLEST * value, LARGEST * value)[0]
        shift = self._choose_shift(few, Step.nearest(value), measured)
        value, slope = find_value(partial(rate, shift=shift), bits, value, value / 2, value * 2)
        measured = self._measure(y, Step.nearest(value))

        def rate_of_all(value: float) -> float:
            return mean_bits(self._choose(y, Step.nearest(value), shift, measured))

        for _ in range(2):  # Newton's steps
            value *= math.exp(min(max((rate_of_all(value) - bits) / max(slope, 0.1), -0.2), 0.2))
        while rate_of_all(value) > bits:
            value *= 1.002
        return Settings(Step.nearest(value), shift)

    def _choose_shift(self, y: Floats, step: Step, measured: list[tuple[slice, Any]]) -> int:
        """Return the shift of the densities' scales that gives rows y (m, D) the least J.

        Densities are those of the training rows' latents. Rounding toward zero makes values smaller, and those of other
        rows may be larger.
        """
        costs: dict[int, float] = {}

        def cost(shift: int) -> float:
            if shift not in costs:
                costs[shift] = math.fsum(self._choose(y, step, shift, measured).J)  # the same in any order
            return costs[shift]

        best = 0
        for direction in (-1, 1):
            while abs(best + direction) <= 16 and cost(best + direction) < cost(best):
                best += direction
        return best

    def _find_bounded(self, sample: NDArray[Any], bound: Settings) -> Settings:
        """Return the settings that hold a bound with the fewest bytes.

        Steps that differ by factors of 2 are tried from the coarsest on, at which most rows have corrections, then
        steps next to the best one, and at last shifts of the densities' scales.
        """
        few = sample[:: max(1, len(sample) // BOUND_ROWS)][:BOUND_ROWS]
        best: tuple[int, Settings] | None = None

        def attempt(step: Step, shift: int = 0) -> bool:
            nonlocal best
            trial = replace(bound, step=step, scale_shift=shift)
            rows = self._encode_rows(few, trial, trial_of_modes=True)
            trial = replace(trial, corrections=fit_corrections(few, rows, trial, self.model.unit))
            rows = self._encode_rows(few, trial)
            trial = replace(trial, modes=make_weights(np.bincount(rows.mode, minlength=MODES) * 8 + 1))
            size = len(write_block(self.model, rows, trial))
            if best is None or size < best[0]:
                best = size, trial
                return True
            return size < FAR * best[0]

        if not self.model.decoder.E:  # nothing has a step
            attempt(self.model.step)
            assert best is not None
            return best[1]
        for halvings in range(-6, 14):
            if not attempt(self.model.step.divide(halvings)):
                break
        assert best is not None
        around = best[1].step.value
        for ratio in (0.7, 0.84, 1.19, 1.41):
            attempt(Step.nearest(around * ratio))
        for shift in (-4, -2, 2, 4, 8):
            attempt(best[1].step, shift)
        return best[1]

    # -- whole files --------------------------------------------------------------------------------------------------

    def encode(self, X: NDArray[Any], *, embed_model: bool = False, **target: Any) -> bytes:
        """Return the rows X (n, ...) as the bytes of a complete file; `decode` and `llgae decompress` read it.

        X       of the model's D values a row, in the type that decoding shall give back
        target  one of bits (of the whole file but an embedded model), step, max_l2, max_abs and lossless

        Raises InputError as `choose_settings` does, and for rows of another size.
        """
        X = np.asarray(X)
        if X.ndim < 2 or math.prod(X.shape[1:]) != self.D:
            raise InputError(f"rows of shape {X.shape[1:]}; the model's have {self.D} values")
        x = np.ascontiguousarray(X).reshape(len(X), self.D)
        shape, limit = X.shape[1:], target.get("bits")
        if limit is None:
            return self._write_file(x, shape, embed_model, target)
        target["bits"] = leave_room(limit, len(x), choose_block_rows(x.itemsize * self.D))
        model_bytes = self.size if embed_model else 0
        for _ in range(TRIES):
            data = self._write_file(x, shape, embed_model, target)
            excess = 8 * (len(data) - model_bytes) / max(len(x), 1) - limit
            if excess <= 0:
                break
            target["bits"] -= excess + MARGIN_BITS  # a few rows may take more than the estimate of their blocks
        return data

    def _write_file(self, x: NDArray[Any], shape: tuple[int, ...], embed_model: bool, target: dict[str, Any]) -> bytes:
        from llgae_cli.tasks.rows import SAMPLE_ROWS

        settings = self.choose_settings(x[:: -(-len(x) // SAMPLE_ROWS) or 1], **target)
        rows = choose_block_rows(x.itemsize * self.D)
        header = Header(len(x), shape, x.dtype.name, self.identity, True, CODER, settings.pack(), rows)
        file = io.BytesIO()
        with CompressedWriter(file, header, self.pack() if embed_model else b"") as writer:
            for payload in self.encode_blocks(x, settings, rows):
                writer.write(payload)
        return file.getvalue()

    def decode(self, data: bytes, rows: slice = slice(None)) -> NDArray[Any]:
        """Return the rows of a file's bytes, (n, ...), in their stored type; with `rows`, those of a slice.

        Raises InputError for damaged bytes, and for a file of another model.
        """
        with CompressedFile(io.BytesIO(data)) as file:
            header = file.header
            if header.identity != self.identity:
                raise InputError(f"a file of the model {header.identity.hex()}; this one is {self.identity.hex()}")
            settings, dtype = Settings.unpack(header.settings, self.D), np.dtype(header.dtype)
            wanted = range(header.n)[rows]
            blocks = sorted({row // header.block_rows for row in wanted})
            reading = Lock()

            def read(block: int) -> NDArray[Any]:
                with reading:
                    payload = file.read_block(block)
                return self.decode_block(payload, len(header.rows(block)), dtype, settings)

            decoded: list[NDArray[Any]] = []
            run_parallel(read, blocks, decoded.append, len(blocks) > 1)
            found = dict(zip(blocks, decoded, strict=True))
        out = np.empty((len(wanted), self.D), dtype)
        for i, row in enumerate(wanted):
            out[i] = found[row // header.block_rows][row % header.block_rows]
        return out.reshape(len(wanted), *header.shape)

    # -- coding -------------------------------------------------------------------------------------------------------

    def encode_blocks(self, x: NDArray[Any], settings: Settings, block_rows: int = BLOCK_ROWS) -> list[bytes]:
        """Return one payload for each `block_rows` rows of x (m, D), in their stored type."""
        return self.code_blocks(x, settings, block_rows)[0]

    def code_blocks(
        self, x: NDArray[Any], settings: Settings, block_rows: int = BLOCK_ROWS
    ) -> tuple[list[bytes], NDArray[Any]]:
        """Return the payloads of `encode_blocks`, and the rows (m, D) that they decode to, without decoding them."""
        rows = self._encode_rows(x, settings)
        blocks: list[bytes] = []
        parts = [rows.take(slice(low, low + block_rows)) for low in range(0, len(x), block_rows)]
        run_parallel(lambda part: write_block(self.model, part, settings), parts, blocks.append, len(parts) > 1)
        return blocks, rows.values

    def decode_block(self, payload: bytes, n: int, dtype: np.dtype[Any], settings: Settings) -> NDArray[Any]:
        """Return the n rows (n, D) of a payload, in their stored type. Raises InputError for impossible symbols."""
        return read_block(self.model, payload, n, np.dtype(dtype), settings)

    def rate(self, x: NDArray[Any], settings: Settings) -> "Codes":
        """Return the codes of rows x (m, D) and what they cost, without writing them; for measurements."""
        return self._choose(self._to_grid(x)[0], settings.step, settings.scale_shift)

    def _encode_rows(self, x: NDArray[Any], settings: Settings, trial_of_modes: bool = False) -> Rows:
        prepared = self.model.encoder.prepare(settings.step, settings.scale_shift)
        code = partial(Rows.encode, self.model, settings=settings, prepared=prepared, trial=trial_of_modes)
        return Rows.join(_in_parallel(lambda rows: code(x[rows]), self._chunks(len(x))))

    def _to_grid(self, x: NDArray[Any]) -> tuple[Floats, NDArray[np.bool_]]:
        return self.model.place(x)

    def _measure(self, y: Floats, step: Step) -> list[tuple[slice, Any]]:
        """Return chunks of rows y (n, D), each with what coding it at several steps near this one has in common.

        That is None where codes have a shift, and where it would take too much memory.
        """
        from llgae_cli.codec.encoder import CANDIDATES

        chunks = self._chunks(len(y))
        if len(y) * CANDIDATES * self.model.decoder.levels[0].E * 8 > MEASURED_BYTES:
            return [(rows, None) for rows in chunks]
        prepared = self.model.encoder.prepare(step, 0)
        return _in_parallel(lambda rows: (rows, self.model.encoder.measure(y[rows], prepared)), chunks)

    def _choose(self, y: Floats, step: Step, shift: int, measured: list[tuple[slice, Any]] | None = None) -> "Codes":
        from llgae_cli.codec.encoder import Codes

        prepared = self.model.encoder.prepare(step, shift)
        chunks = measured or [(rows, None) for rows in self._chunks(len(y))]
        return Codes.join(_in_parallel(lambda c: self.model.encoder.choose(y[c[0]], prepared, c[1]), chunks))

    def _chunks(self, n: int) -> list[slice]:
        """Return the rows of n that are coded together; each thread has some."""
        least, most = CHUNK_ROWS
        rows = max(least, min(most, CHUNK_VALUES // self.D, -(-n // count_threads())))
        return [slice(low, low + rows) for low in range(0, max(n, 1), rows)]


def _in_parallel(compute: Callable[[Any], Any], chunks: list[Any]) -> list[Any]:
    results: list[Any] = []
    run_parallel(compute, chunks, results.append, len(chunks) > 1)
    return results
