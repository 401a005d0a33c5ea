"""Coded rows, and blocks of them as bytes.

The symbols of a block, in this order: how each row is coded; components of the first level, shifts or components of
further levels given that; latents; scales of the rows that are corrected, and their corrections; raw rows as bytes.
"""

from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llgae_cli.codec.corrections import apply, cast, choose_row_scales, correct, correction_tables, is_integer
from llgae_cli.codec.density import COST_UNIT, Integers, integer_log2
from llgae_cli.codec.entropy_coder import BlockDecoder, BlockEncoder, group_tables
from llgae_cli.codec.exact import EXACT, Floats, find_table, group_rows
from llgae_cli.codec.model import CodecModel
from llgae_cli.codec.settings import CORRECTED, FINER, RAW, Settings
from llgae_cli.errors import InputError

SQUARE_BITS = 40  # fraction bits, relative to the bound, in which squared errors are summed


@dataclass(frozen=True, eq=False)
class Rows:
    """Coded rows: `mode` (n,), symbols k (n, L) of components and activity classes, shifts s (n,), latents q (n, E).

    q      at the step of the mode
    x_hat  (n, D) the decoder's values at the settings' step, before corrections
    r      (n, D) corrections; zero but for mode CORRECTED, and without columns where the settings have none
    x      (n, D) the rows, for mode RAW
    values (n, D) what the rows decode to, in their stored type
    """

    mode: Integers
    k: Integers
    s: Integers
    q: Integers
    x_hat: Floats
    r: Integers
    x: NDArray[Any]
    values: NDArray[Any]

    @classmethod
    def join(cls, parts: list["Rows"]) -> "Rows":
        """Return the rows of all parts."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def take(self, rows: slice) -> "Rows":
        """Return some of the rows."""
        return Rows(*(getattr(self, f.name)[rows] for f in fields(self)))

    @classmethod
    def encode(
        cls, model: CodecModel, x: NDArray[Any], settings: Settings, prepared: list[Any], trial: bool = False
    ) -> "Rows":
        """Code rows x (n, D) in their stored type.

        A row that misses the bound is coded at a finer step or with corrections, whichever takes fewer bits. With
        `trial` neither is tried: these rows, of mode RAW, show what corrections there would be.
        """
        exact = x.astype(np.float64)
        y, fits = model.place(exact)
        keeps = partial(keeps_bound, dtype=x.dtype, settings=settings, unit=model.unit)
        if settings.is_bounded and is_integer(x.dtype):
            fits &= (np.abs(exact) <= EXACT).all(1)  # float64 does not tell larger integers apart
        codes = model.encoder.choose(y, prepared)
        q = codes.q.copy()
        x_hat = model.decode(codes.k, codes.s, q, settings.step)
        mode = np.full(len(x), RAW)
        good = fits & model.decoder.is_exact(q, settings.step) & keeps(exact, x_hat)
        mode[good] = 0
        stored = np.where(good[:, None], cast(x_hat, x.dtype), x)
        r = np.zeros((len(x), model.decoder.D if settings.corrections is not None else 0), np.int64)
        if settings.is_bounded and not trial and not good.all():
            bits = np.full(len(x), np.iinfo(np.int64).max)
            for halvings in range(1, FINER + 1):
                left = np.flatnonzero((mode == RAW) & fits)
                step = settings.step.divide(halvings)
                finer = model.encoder.refine(y[left], codes.take(left), step, settings.scale_shift)
                values = model.decode(codes.k[left], codes.take(left).s, finer, step)
                kept = model.decoder.is_exact(finer, step) & keeps(exact[left], values)
                some = left[kept]
                mode[some], q[some], stored[some] = halvings, finer[kept], cast(values[kept], x.dtype)
                bits[some] = _count_bits(q[some], _tables(model, codes.k[some], mode[some], settings))
            if settings.corrections is not None:
                left = np.flatnonzero(~good & fits & model.decoder.is_exact(codes.q, settings.step))
                delta = settings.corrections.delta
                own, codable = correct(exact[left], x_hat[left], delta, x.dtype)
                values = apply(x_hat[left], own, delta, x.dtype)
                kept = codable & keeps(exact[left], values)
                left, own, values = left[kept], own[kept], values[kept]
                tables = _tables(model, codes.k[left], np.zeros(len(left), np.int64), settings)
                scales = choose_row_scales(own, settings.corrections.scale)
                cost = _count_bits(codes.q[left], tables)
                cost += _count_bits(own, correction_tables(scales, settings.corrections.scale))
                cost += 24 * COST_UNIT - integer_log2(settings.corrections.shifts)[scales]
                cheaper = cost < bits[left]
                some = left[cheaper]
                mode[some], q[some], r[some] = CORRECTED, codes.q[some], own[cheaper]
                stored[some] = cast(values[cheaper], x.dtype)
        s = np.zeros(len(x), np.int64) if codes.s is None else codes.s
        return cls(mode, codes.k, s, q, x_hat, r, x, stored)


def _count_bits(q: Integers, tables: Integers) -> Integers:
    """Return what each row of q (n, E) costs under the tables with these ids (n, E), in units of 2^-16 bit."""
    flat, bits = q.ravel(), np.zeros(q.size, np.int64)
    for number, where in group_tables(tables):
        table = find_table(number)
        if table is not None:
            bits[where] = table.compute_costs(flat[where])
    return bits.reshape(q.shape).sum(1)


def keeps_bound(
    x: Floats, values: Floats, dtype: np.dtype[Any], settings: Settings, unit: Floats | float
) -> NDArray[np.bool_]:
    """Return for which rows `values`, cast to the stored type, keep the bound; all where none is promised.

    `unit`: scales of the variables (D,), or 1; max_l2 is in these units.
    """
    if not settings.is_bounded:
        return np.ones(len(x), bool)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(cast(values, dtype).astype(np.float64) - x)
        kept: NDArray[np.bool_] = np.asarray(np.isfinite(error).all(1))
        if settings.max_abs is not None:
            kept &= (error <= settings.max_abs).all(1)
        if settings.max_l2 is not None:
            D = x.shape[1]
            square = np.square(error / unit)
            if is_integer(dtype) and isinstance(unit, float):  # sums of integers have no rounding error
                total = square.sum(1)
                kept &= (total < EXACT) & (total / D <= settings.max_l2)
            else:
                # Shares as integers, rounded up: their sum is the same everywhere. A row on the bound is refused:
                # another order of summation may round it beyond.
                share = np.minimum(square / (settings.max_l2 * D), 2.0)
                kept &= np.ceil(share * 2.0**SQUARE_BITS).astype(np.int64).sum(1) < 1 << SQUARE_BITS
    return kept


def write_block(model: CodecModel, rows: Rows, settings: Settings) -> bytes:
    """Return the payload of a block of rows."""
    encoder = BlockEncoder()
    encoder.put(rows.mode, settings.modes)
    at = np.flatnonzero(rows.mode != RAW)
    mode, k = rows.mode[at], rows.k[at]
    encoder.put(k[:, 0], model.weights[0])
    for level in range(1, k.shape[1]):
        encoder.put(k[:, level], model.weights[level])
    if model.symbol_weights is not None:
        for j, some in group_rows(k[:, 0] // model.decoder.levels[0].A, len(model.symbol_weights)):
            encoder.put(rows.s[at][some], model.symbol_weights[j])
    encoder.put_latents(rows.q[at], _tables(model, k, mode, settings), find_table)
    corrected = np.flatnonzero(rows.mode == CORRECTED)
    if settings.corrections is not None and len(corrected):
        r = rows.r[corrected]
        scales = choose_row_scales(r, settings.corrections.scale)
        encoder.put(scales, settings.corrections.shifts)
        encoder.put_latents(r, correction_tables(scales, settings.corrections.scale), find_table)
    raw = np.ascontiguousarray(rows.x[rows.mode == RAW])
    encoder.put_uniform(raw.astype(raw.dtype.newbyteorder("<")).reshape(-1).view(np.uint8), 8)
    return encoder.finish()


def read_block(model: CodecModel, payload: bytes, n: int, dtype: np.dtype[Any], settings: Settings) -> NDArray[Any]:
    """Return the n rows (n, D) of a payload. Raises InputError for symbols that no encoder writes."""
    decoder, D = BlockDecoder(payload), model.decoder.D
    mode = decoder.get(n, settings.modes)
    if (mode == CORRECTED).any() and settings.corrections is None:
        raise InputError("a damaged block: a row with corrections, which this file does not have")
    at = np.flatnonzero(mode != RAW)
    k = np.stack([decoder.get(len(at), weights) for weights in model.weights], 1)
    s = None
    if model.symbol_weights is not None:
        s = np.zeros(len(at), np.int64)
        for j, some in group_rows(k[:, 0] // model.decoder.levels[0].A, len(model.symbol_weights)):
            s[some] = decoder.get(len(some), model.symbol_weights[j])
    q = decoder.get_latents(_tables(model, k, mode[at], settings), find_table)
    x = np.zeros((n, D))
    for halvings in range(FINER + 1):
        own = (mode[at] == halvings) | (halvings == 0) & (mode[at] == CORRECTED)
        step = settings.step.divide(halvings)
        if not model.decoder.is_exact(q[own], step).all():
            raise InputError("a damaged block: a row that no encoder writes")
        x[at[own]] = model.decode(k[own], None if s is None else s[own], q[own], step)
    corrected = np.flatnonzero(mode == CORRECTED)
    if settings.corrections is not None and len(corrected):
        scales = decoder.get(len(corrected), settings.corrections.shifts)
        r = decoder.get_latents(correction_tables(scales, settings.corrections.scale), find_table)
        x[corrected] = apply(x[corrected], r, settings.corrections.delta, dtype)
    values = cast(x, dtype)
    n_raw = n - len(at)
    raw = decoder.get_uniform(n_raw * D * dtype.itemsize, 8).astype(np.uint8)
    if dtype == np.bool_ and raw.size and raw.max() > 1:
        raise InputError("a damaged block: a byte that is neither true nor false")
    values[mode == RAW] = raw.view(dtype.newbyteorder("<")).astype(dtype).reshape(n_raw, D)
    decoder.finish()
    return values


def _tables(model: CodecModel, k: Integers, mode: Integers, settings: Settings) -> Integers:
    """Return the ids of the tables of the latents, (n, E), for the symbols k (n, L) and the modes (n,)."""
    tables = np.empty((len(k), model.decoder.E), np.int64)
    halvings = np.where(mode == CORRECTED, 0, mode)
    for step_of in np.unique(halvings).tolist():
        own = np.flatnonzero(halvings == step_of)
        step = settings.step.divide(step_of)
        tables[own] = np.concatenate(
            [level.table_ids(step, settings.scale_shift)[k[own, i]] for i, level in enumerate(model.decoder.levels)],
            1,
        )
    return tables
