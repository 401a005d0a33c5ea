"""Fitting activity classes: rows whose latents are larger or smaller than their component's densities say.

The latents of a row are large or small together, since rows of one component differ in contrast and texture. A class
shifts the scales of all latents, by an amount that depends on their standard deviation over the step (`Level.spreads`).
Classes and shifts are found by alternation: each row takes the class that costs it the fewest bits, with the bits of
the class itself; each class takes the shifts that cost its rows the fewest bits.
"""

from dataclasses import replace

import numpy as np

from llgae_cli.codec.density import COST_UNIT, Integers
from llgae_cli.codec.exact import SPREADS, ExactDecoder, Floats, Level, Step, find_table
from llgae_cli.codec.model import CodecModel
from llgae_cli.tasks import Samples

CLASSES = 3
LATENTS, ROWS = 1 << 20, 8192  # that classes are fitted to, at most
SHIFTS = np.arange(-16, 18, 2)  # that are tried, in units of 1/8 octave
ROUNDS = 25
LEAST_GAIN = 0.05  # bits a row; below it there is one class
SMOOTHING = 20.0  # rows, with the classes of all components, that count in each component
IMPOSSIBLE = 40.0  # bits, of a latent that the table of its class skips


def fit_activity(model: CodecModel, samples: Samples, most: int = ROWS) -> CodecModel:
    """Return the model with activity classes for the levels that gain by them, from at most so many of the samples."""
    n = min(samples.N, most, max(1, LATENTS // max(1, model.decoder.E)))
    at = np.arange(n) * samples.N // n
    y, fits = model.place(samples.stored_array(at))
    codes = model.encoder.choose(y[fits], model.encoder.prepare(model.step, 0))
    levels, counts = [], []
    for i, (level, q) in enumerate(zip(model.decoder.levels, model.decoder.split(codes.q), strict=True)):
        activity, share = _fit_level(level, model.step, codes.k[:, i], q)
        levels.append(replace(level, activity=activity))
        counts.append(np.rint(model.counts[i][:, None] * share).astype(np.int64).ravel() + 1)
    return replace(model, decoder=ExactDecoder(tuple(levels), model.decoder.places), counts=tuple(counts))


def _fit_level(level: Level, step: Step, k: Integers, q: Integers) -> tuple[Integers, Floats]:
    """Return the shifts of each class, (A, SPREADS), and the share of each in each component, (K, A).

    `level` has one class; k (n,) and q (n, E) are codes of rows under it.
    """
    alone = level.activity, np.ones((level.K, 1))
    if not q.size:
        return alone
    cost = _price(level, step, k, q)  # (S, SPREADS, n)
    middle = len(SHIFTS) // 2
    now = cost[middle].sum(0)
    pull = cost[middle - 1].sum(0) - cost[middle + 1].sum(0)  # the more, the more a row gains by larger scales
    own = np.argsort(np.argsort(pull, kind="stable"), kind="stable") * CLASSES // len(k)
    for _ in range(ROUNDS):
        total = np.stack([cost[:, :, own == a].sum(2) for a in range(CLASSES)])  # (A, S, SPREADS)
        chosen = np.where(total[:, middle] <= total.min(1), middle, total.argmin(1))  # 0 where nothing decides
        rows = np.stack([cost[each, np.arange(SPREADS)].sum(0) for each in chosen])  # (A, n)
        share = np.bincount(own, minlength=CLASSES) / len(k)
        rows -= np.log2(np.maximum(share, 1e-9))[:, None]
        own = rows.argmin(0)
    if now.mean() - rows.min(0).mean() < LEAST_GAIN:
        return alone
    counts = np.zeros((level.K, CLASSES))
    np.add.at(counts, (k, own), 1.0)
    counts += SMOOTHING * counts.sum(0) / len(k)
    return SHIFTS[chosen].astype(np.int64), counts / counts.sum(1, keepdims=True)


def _price(level: Level, step: Step, k: Integers, q: Integers) -> Floats:
    """Return the bits of each row's latents under every shift of SHIFTS, by spread: (S, SPREADS, n)."""
    spread = level.spreads(step)[k]
    out = np.empty((len(SHIFTS), SPREADS, len(k)))
    for s, shift in enumerate(SHIFTS.tolist()):
        tables = replace(level, activity=np.full((1, SPREADS), shift)).table_ids(step)
        ids, inverse = np.unique(tables, return_inverse=True)
        index, bits = inverse.reshape(tables.shape)[k], np.zeros(q.shape)
        for i, number in enumerate(ids.tolist()):
            table, here = find_table(number), index == i
            bits[here] = IMPOSSIBLE * (q[here] != 0) if table is None else table.compute_costs(q[here]) / COST_UNIT
        for b in range(SPREADS):
            out[s, b] = np.where(spread == b, bits, 0.0).sum(1)
    return out
