"""The rate of a codec, in bits a sample, against the error of the rows it decodes: a curve, and where the bits go.

A row costs -log2 of the probability of each of its symbols: the component of each level, the shift, and the integers q
of the latents, under the tables that the entropy coder uses. The sum over a file's rows is the size of its blocks,
within 0.1 % and a few bytes a block. A row that the codec stores as it is costs its bytes.

The framing is what a file has beside that: the header, the index, the checks of the blocks, and the last state of the
coder in each. Its share of a sample depends on the number of rows, so it is stated next to `bits`, not in it.

Errors are those of the decoded values in the stored type, as `llgae compress` prints them: of integers, after rounding
and clipping; of scaled rows, in scaled units.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llgae_cli.codec.codec import ANS_BITS, Codec
from llgae_cli.codec.corrections import cast
from llgae_cli.codec.density import COST_UNIT, Integers, integer_log2
from llgae_cli.codec.entropy_coder import CODER
from llgae_cli.codec.exact import Floats, Step, find_table, group_rows
from llgae_cli.codec.settings import RAW, Settings
from llgae_cli.errors import InputError, printable
from llgae_cli.evaluation.distortion import absolute_difference
from llgae_cli.storage.compressed_file import CHECK_BYTES, TRAILER
from llgae_cli.storage.compressed_header import Header, choose_block_rows, pack_varint
from llgae_cli.tasks import Samples

SPLIT_ROWS, CURVE_ROWS = 10_000, 2000  # samples that are measured at the model's own step, and at each of the curve
BYTES = 1 << 27  # of these samples as float64, at most
SHIFT_ROWS = 300  # of them, to choose the shift of the scales
HALVINGS = (3, 2, 1, 0, -1, -2, -3)  # steps of the curve: the model's own, halved so often


@dataclass(frozen=True)
class Rate:
    """A model's rate in plain numbers, for tables and sweeps.

    bits_float      log2 K + 32 E, and the further symbols: a code of numbers, not of quantised latents
    bits_k          bits a sample of k and of the further symbols
    bits_coded      bits a sample of the whole code, at the model's own step
    mean_l2_coded   mean squared error of the decoded samples at that step, squared grey levels per pixel
    step            Delta
    bits_estimated  whether the model has no codec, and bits are those of `rate_estimate`
    """

    bits_float: float
    bits_k: float
    bits_coded: float
    mean_l2_coded: float
    step: float
    bits_estimated: bool


@dataclass(frozen=True)
class RatePoint:
    """A point of the curve: step Delta, bits a sample without framing, mean squared error of all values; n samples."""

    step: float
    bits: float
    mean_squared_error: float
    n: int


@dataclass(frozen=True, eq=False)
class BitSplit:
    """Where the bits of a sample go at the model's own step: means over the measured samples.

    n          samples measured
    step       Delta
    k          of the components of all levels, with the rows' activity classes
    shifts     of the shift
    latents    of the latents, without the part that codes the mean
    mean       of each row's mean, which `centring: sample` took from it: each latent's bits times the share of its
               direction that lies along the constant row
    raw        of rows that are stored as they are
    framing    of header, index, checks and coder states, in a file of all samples
    mean_squared_error   over all values
    per_class  bits and mean squared error of each label; None without labels
    per_latent for each level the bits of each latent (K, E), means over the component's samples; 0 without any
    use        for each level the share of the samples in each component, (K,)
    """

    n: int
    step: float
    k: float
    shifts: float
    latents: float
    mean: float
    raw: float
    framing: float
    mean_squared_error: float
    per_class: dict[int, tuple[float, float]] | None
    per_latent: tuple[Floats, ...]
    use: tuple[Floats, ...]

    @property
    def bits(self) -> float:
        """Bits a sample without framing: the sum of the parts."""
        return self.k + self.shifts + self.latents + self.mean + self.raw

    def parts(self) -> dict[str, float]:
        """Return the bits of each part by its name; they add to `bits` and the framing."""
        names = ("k", "shifts", "latents", "mean", "raw", "framing")
        return {name: float(getattr(self, name)) for name in names}

    def plain(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "n": self.n,
            "step": self.step,
            "bits": self.bits,
            "mean_squared_error": self.mean_squared_error,
            "parts": self.parts(),
            "per_latent": [matrix.tolist() for matrix in self.per_latent],
            "use": [use.tolist() for use in self.use],
        }


@dataclass(frozen=True, eq=False)
class Costs:
    """What n rows cost in bits, and how far they are off once decoded.

    k (n,) of components and activity classes; shifts (n,); latents (n, E); raw (n,); error (n,) mean squared error;
    places (n, L) components
    """

    k: Floats
    shifts: Floats
    latents: Floats
    raw: Floats
    error: Floats
    places: Integers

    def point(self, step: Step) -> RatePoint:
        """Return the means as a point of the curve."""
        bits = self.k.mean() + self.shifts.mean() + self.latents.sum(1).mean() + self.raw.mean()
        return RatePoint(step.value, float(bits), float(self.error.mean()), len(self.error))


def read_codec(extras: Mapping[str, Any], D: int, name: str) -> Codec | None:
    """Return the codec in the extras of a checkpoint; None where it has none.

    Raises InputError, with the checkpoint's name, for a codec that is damaged or for rows of another size than D.
    """
    codec = Codec.read(extras, name)
    if codec is not None and codec.D != D:
        raise InputError(f"{printable(name, 200)}: its codec is damaged")
    return codec


def measure_split(codec: Codec, samples: Samples, shape: tuple[int, ...], centred: bool) -> BitSplit:
    """Return where the bits of a sample go, on at most 10,000 evenly spaced samples of the given shape.

    `centred`: the model was trained on samples less their mean, so that one direction of the latents codes the mean.
    """
    at = _choose_rows(samples, SPLIT_ROWS)
    x = samples.stored_array(slice(at.start, at.stop, at.step))
    costs = compute_costs(codec, x, _choose_settings(codec, x, codec.model.step))
    levels = codec.model.decoder.levels
    ends = np.cumsum([0, *(level.E for level in levels)])
    per_latent, use = [], []
    for i, level in enumerate(levels):
        count = np.bincount(costs.places[:, i], minlength=level.K)
        total = np.zeros((level.K, level.E))
        np.add.at(total, costs.places[:, i], costs.latents[:, ends[i] : ends[i + 1]])
        per_latent.append(total / np.maximum(count, 1)[:, None])
        use.append(count / len(x))
    mean = 0.0
    if centred:
        along = levels[0].U.sum(1) ** 2 / codec.D  # (K, E): shares of the directions along the constant row
        mean = float((costs.latents[:, : ends[1]] * along[costs.places[:, 0]]).sum(1).mean())
    per_class = None
    if samples.labels is not None:
        labels = samples.labels.cpu().numpy()[at.start : at.stop : at.step]
        bits = costs.k + costs.shifts + costs.latents.sum(1) + costs.raw
        per_class = {
            int(label): (float(bits[labels == label].mean()), float(costs.error[labels == label].mean()))
            for label in np.unique(labels)
        }
    point = costs.point(codec.model.step)
    return BitSplit(
        n=len(x),
        step=point.step,
        k=float(costs.k.mean()),
        shifts=float(costs.shifts.mean()),
        latents=float(costs.latents.sum(1).mean()) - mean,
        mean=mean,
        raw=float(costs.raw.mean()),
        framing=compute_framing(codec, samples, shape, point.bits),
        mean_squared_error=point.mean_squared_error,
        per_class=per_class,
        per_latent=tuple(per_latent),
        use=tuple(use),
    )


def measure_curve(codec: Codec, samples: Samples) -> tuple[RatePoint, ...]:
    """Return the points at the model's own step, and at half and twice of it up to 1/8 and 8.

    By rising step, so by falling rate; on at most 2,000 evenly spaced samples.
    """
    at = _choose_rows(samples, CURVE_ROWS)
    x = samples.stored_array(slice(at.start, at.stop, at.step))
    steps = [codec.model.step.divide(halvings) for halvings in HALVINGS]
    return tuple(compute_costs(codec, x, _choose_settings(codec, x, step)).point(step) for step in steps)


def compute_costs(codec: Codec, x: NDArray[Any], settings: Settings) -> Costs:
    """Return what rows x (n, D), in their stored type, cost without a bound on their errors."""
    model, codes = codec.model, codec.rate(x, settings)
    _, fits = model.place(x)
    raw = ~(fits & model.decoder.is_exact(codes.q, settings.step))
    values = cast(model.decode(codes.k, codes.s, codes.q, settings.step), x.dtype)
    values[raw] = x[raw]
    k, shifts = np.zeros(len(x)), np.zeros(len(x))
    for i, weights in enumerate(model.weights):
        k += _to_bits(weights)[codes.k[:, i]]
    if codes.s is not None and model.symbol_weights is not None:
        shifts += _to_bits(model.symbol_weights)[codes.k[:, 0] // model.decoder.levels[0].A, codes.s]
    latents = np.concatenate(
        [
            _price_latents(q, level.table_ids(settings.step, settings.scale_shift)[codes.k[:, i]])
            for i, (level, q) in enumerate(zip(model.decoder.levels, model.decoder.split(codes.q), strict=True))
        ],
        1,
    )
    for part in (k, shifts, latents):
        part[raw] = 0.0
    places = codes.k // np.array([level.A for level in model.decoder.levels])
    mode = _to_bits(settings.modes)
    stored = np.where(raw, mode[RAW] + 8.0 * x.dtype.itemsize * x.shape[1], mode[0])
    return Costs(k, shifts, latents, stored, np.square(absolute_difference(x, values) / model.unit).mean(1), places)


def compute_framing(codec: Codec, samples: Samples, shape: tuple[int, ...], bits: float) -> float:
    """Return the bits a sample beside its code, in a file of all samples without an embedded model."""
    rows = choose_block_rows(samples.D * samples.itemsize)
    settings = Settings(codec.model.step).pack()
    header = Header(samples.N, shape, samples.stored, codec.identity, True, CODER, settings, rows, 0)
    length = len(pack_varint(math.ceil(bits * min(rows, samples.N) / 8)))  # in the block, and in the index
    framing = len(header.pack()) + TRAILER.size + header.n_blocks * (1 + CHECK_BYTES + 2 * length)
    return (8 * framing + ANS_BITS * header.n_blocks) / samples.N


def find_pareto_front(points: list[tuple[float, float]]) -> list[int]:
    """Return the indices of the points (rate, distortion) that no other point dominates, by rising rate."""
    front: list[int] = []
    lowest = math.inf
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if points[i][1] < lowest:
            front.append(i)
            lowest = points[i][1]
    return front


def _choose_rows(samples: Samples, most: int) -> range:
    most = max(1, min(most, BYTES // (8 * samples.D)))
    return range(0, samples.N, max(1, -(-samples.N // most)))


def _choose_settings(codec: Codec, x: NDArray[Any], step: Step) -> Settings:
    """Return the settings of a file at this step, by some of its rows: `llgae compress --step` does so, too."""
    return codec.choose_settings(x[:: max(1, len(x) // SHIFT_ROWS)], step=step.value)


def _to_bits(weights: Integers) -> Floats:
    """Return -log2 (weights / 2^24)."""
    bits: Floats = 24.0 - integer_log2(weights) / COST_UNIT
    return bits


def _price_latents(q: Integers, tables: Integers) -> Floats:
    """Return the bits of each latent, for q (n, E) under the tables with these ids (n, E)."""
    bits = np.zeros(q.size)
    ids, inverse = np.unique(tables, return_inverse=True)
    for i, here in group_rows(inverse.ravel(), len(ids)):
        table = find_table(int(ids[i]))
        if table is not None:  # else the latent is skipped
            bits[here] = table.compute_costs(q.ravel()[here]) / COST_UNIT
    return bits.reshape(q.shape)
