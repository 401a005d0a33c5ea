"""Symbols to bytes and back: blocks coded by asymmetric numeral systems (constriction's `AnsCoder`).

constriction quantises the probabilities of a `Categorical` model from floats to 24 bits: symbol i of S begins at
floor(scale * (p_0 + ... + p_{i-1})) + i, where scale = (2^24 - S) / (p_0 + ... + p_{S-1}). With p_i = w_i - 1 for
integer weights w_i >= 1 of total 2^24, all sums are integers below 2^53 and scale is exactly 1. So the weights are used
as they are, on every machine. This needs `perfect=False`: the other algorithm compares logarithms of floats.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.metadata import version
from typing import Any, TypeAlias

import constriction
import numpy as np
from numpy.typing import NDArray

from llgae_cli.codec.density import LENGTH_BITS, TOTAL, Integers, Table, count_bits, number_escapes, restore_escapes
from llgae_cli.errors import InputError

CODER = f"constriction {version('constriction')}"  # written into files: another version may code differently

LIMIT = 1 << 40  # quantised latents are below it in magnitude
LONGEST = 41  # bits of an escaped value after the leading one
UNIFORM_BITS = 16  # raw bits are coded in parts of at most so many

Model: TypeAlias = Any  # a model of constriction, which has no annotations


@lru_cache(maxsize=4096)
def make_model(table: Table) -> Model:
    """Return constriction's model of a table. Kept, since a block has thousands of latents but few tables."""
    return make_categorical(table.weights)


def make_categorical(weights: Integers) -> Model:
    """Return constriction's model with exactly these weights (S,), S >= 2.

    Raises:
        ValueError: a weight below 1, or a total that is not 2^24.
    """
    if weights.min() < 1 or weights.sum() != TOTAL:
        raise ValueError("weights are at least 1 and have a total of 2^24")
    return constriction.stream.model.Categorical((weights - 1).astype(np.float64), lazy=False, perfect=False)


@lru_cache(maxsize=UNIFORM_BITS)
def make_uniform(bits: int) -> Model:
    """Return constriction's model of 2^bits equal probabilities, 1 <= bits <= 16; exact, as 2^bits divides 2^24."""
    return constriction.stream.model.Uniform(1 << bits)


def split_bits(bits: int) -> Iterator[tuple[int, int]]:
    """Yield (position, width) of the parts in which `bits` raw bits are coded, the lowest first."""
    for position in range(0, bits, UNIFORM_BITS):
        yield position, min(UNIFORM_BITS, bits - position)


def group_tables(tables: Integers) -> Iterator[tuple[int, Integers]]:
    """Yield each table id, rising, with the positions in `tables`, flattened, that have it, rising."""
    flat = tables.ravel()
    if flat.size and 0 <= flat.min() <= flat.max() < 1 << 16:
        flat = flat.astype(np.uint16)  # numpy sorts these by their digits, in linear time
    order = np.argsort(flat, kind="stable")
    ids, starts = np.unique(flat[order], return_index=True)
    ends = [*starts[1:].tolist(), len(order)]
    for number, start, end in zip(ids.tolist(), starts.tolist(), ends, strict=False):
        yield number, order[start:end]


class BlockEncoder:
    """Collects the symbols of one block and codes them. A decoder asks for them in the same order.

    An AnsCoder is a stack, so the symbols are kept and coded from the last to the first by `finish`.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[NDArray[np.int32], Model]] = []

    def put(self, symbols: Integers, weights: Integers) -> None:
        """Append symbols (n,), each 0 ... S - 1, with probabilities weights / 2^24 (S,). S = 1 costs nothing.

        Raises:
            ValueError: a symbol out of range, a weight below 1, or a total of weights that is not 2^24.
        """
        symbols = np.asarray(symbols)
        if symbols.size and not (symbols.min() >= 0 and symbols.max() < len(weights)):
            raise ValueError(f"a symbol is not in 0 ... {len(weights) - 1}")
        if len(weights) > 1:
            self._append(symbols, make_categorical(np.asarray(weights)))

    def put_uniform(self, values: Integers, bits: int) -> None:
        """Append values (n,), each 0 ... 2^bits - 1, as raw bits; 0 <= bits <= 41.

        Raises:
            ValueError: a value out of range.
        """
        values = np.asarray(values, np.int64)
        if values.size and (values.min() < 0 or int(values.max()) >> bits):
            raise ValueError(f"a value does not fit into {bits} bits")
        for position, width in split_bits(bits):
            self._append(values >> position & ((1 << width) - 1), make_uniform(width))

    def put_latents(self, q: Integers, tables: Integers, get: Callable[[int], Table | None]) -> None:
        """Append quantised latents q (n, E), each under its own table.

        The latents of one table are coded together, tables in rising order of id: their symbols, their low bits, then
        the escaped values.

        Args:
            q: integers below 2^40 in magnitude.
            tables: (n, E) ids of tables.
            get: returns the table of an id; None for a latent that is skipped.

        Raises:
            ValueError: a latent of 2^40 or more, or a skipped one that is not 0.
        """
        flat = np.asarray(q, np.int64).ravel()
        if flat.size and not -LIMIT < flat.min() <= flat.max() < LIMIT:
            raise ValueError("a quantised latent is 2^40 or more")
        for number, where in group_tables(np.asarray(tables)):
            group, table = flat[where], get(number)
            if table is None:
                if group.any():
                    raise ValueError("a skipped latent is not 0")
                continue
            m, low = table.split(group)
            escaped = np.abs(m) > table.half
            self._append(np.where(escaped, 2 * table.half + 1, m + table.half), make_model(table))
            self.put_uniform(low, table.low_bits)
            if escaped.any():
                self._put_escapes(number_escapes(m[escaped], table.half))

    def finish(self) -> bytes:
        """Return the block: 32-bit words, the lowest byte first, less the zeros at the end of the last word.

        It is at most some 60 bits longer than the sum of the costs, 24 on average. Empty where no symbol costs a bit.
        """
        coder = constriction.stream.stack.AnsCoder()
        for symbols, model in reversed(self._parts):
            coder.encode_reverse(symbols, model)
        return coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")

    def _put_escapes(self, numbers: Integers) -> None:
        """Append positive numbers: each one's bits after the leading one, by their count (see `_get_escapes`)."""
        lengths = count_bits(numbers) - 1
        self.put_uniform(lengths, LENGTH_BITS)
        for length in np.unique(lengths).tolist():
            self.put_uniform(numbers[lengths == length] - (1 << length), length)

    def _append(self, symbols: Integers, model: Model) -> None:
        """Append symbols under one of constriction's models, which takes 32-bit integers."""
        if symbols.size:
            self._parts.append((np.ascontiguousarray(symbols, np.int32), model))


class BlockDecoder:
    """Decodes a block of `BlockEncoder`: the same calls, in the same order, with the same weights and tables.

    Any bytes decode to some symbols, so a damaged block is known by its checksum, not here. What a decoder checks is
    that no result leaves its range; it needs memory for the results only.
    """

    def __init__(self, payload: bytes) -> None:
        """Open a block.

        Raises:
            InputError: no encoder writes such bytes.
        """
        if payload.endswith(b"\0"):
            raise InputError("a damaged block: it ends with a zero, which no encoder writes")
        words = np.frombuffer(payload + bytes(-len(payload) % 4), "<u4")
        self._coder = constriction.stream.stack.AnsCoder(words.astype(np.uint32))

    def get(self, n: int, weights: Integers) -> Integers:
        """Return the next n symbols (n,), each 0 ... S - 1, with probabilities weights / 2^24 (S,)."""
        if len(weights) == 1:
            return np.zeros(n, np.int64)
        return self._take(n, make_categorical(np.asarray(weights)))

    def get_uniform(self, n: int, bits: int) -> Integers:
        """Return the next n values (n,), each 0 ... 2^bits - 1, of 0 <= bits <= 41 raw bits."""
        values = np.zeros(n, np.int64)
        for position, width in split_bits(bits):
            values |= self._take(n, make_uniform(width)) << position
        return values

    def get_latents(self, tables: Integers, get: Callable[[int], Table | None]) -> Integers:
        """Return the next quantised latents, in the shape of `tables`, the ids of their tables; see the encoder.

        Raises:
            InputError: a latent of 2^40 or more in magnitude.
        """
        q = np.zeros(np.size(tables), np.int64)
        for number, where in group_tables(np.asarray(tables)):
            table = get(number)
            if table is None:
                continue
            m = self._take(len(where), make_model(table)) - table.half
            low = self.get_uniform(len(where), table.low_bits)
            escaped = m > table.half
            if escaped.any():
                m[escaped] = restore_escapes(self._get_escapes(int(escaped.sum())), table.half)
                # Before the low bits join: they may shift m beyond 64 bits.
                if np.abs(m).max() > LIMIT >> table.low_bits:
                    raise InputError("a damaged block: a quantised latent is out of range")
            q[where] = table.join(m, low)
        if q.size and not -LIMIT < q.min() <= q.max() < LIMIT:
            raise InputError("a damaged block: a quantised latent is out of range")
        return q.reshape(np.shape(tables))

    def finish(self) -> None:
        """Check that the block has been decoded to its end.

        Raises:
            InputError: something is left.
        """
        if not self._coder.is_empty():
            raise InputError("a damaged block: it holds more than its symbols")

    def _get_escapes(self, n: int) -> Integers:
        """Return n positive numbers, each sent as the count of bits after its leading one, and those bits by count."""
        lengths = self.get_uniform(n, LENGTH_BITS)
        if lengths.max() > LONGEST:
            raise InputError("a damaged block: a quantised latent is out of range")
        numbers = np.left_shift(1, lengths)
        for length in np.unique(lengths).tolist():
            chosen = lengths == length
            numbers[chosen] += self.get_uniform(int(chosen.sum()), length)
        return numbers

    def _take(self, n: int, model: Model) -> Integers:
        """Return the next n symbols under one of constriction's models."""
        if n == 0:
            return np.zeros(0, np.int64)
        return self._coder.decode(model, n).astype(np.int64)
