"""The choice of a row's code: component and integers q that minimise J = |x - x_hat|^2 + lambda R.

The result depends on the model, the step and the row alone: everything that decides is computed from integers, which
float64 holds exactly, or by single operations that IEEE 754 defines to the last bit. Rows and offsets are rounded to a
grid 2^-g such that |y| <= 2^25 for y = (x - origin) 2^g; bases have 20 fraction bits; so the products U^T y stay below
2^53 and are exact in any order.

1. Shortlist: the score of a component is J_k of `training.mixture`, in which a latent of variance v costs
   theta z^2 / v + theta ln(v / theta) or z^2. The components with the least scores from their first latents alone,
   those of the largest variances, are on the shortlist, the lower index first among equals.
2. Candidates: those of the shortlist with the least scores from all latents. Where no component has more latents of
   weight than the shortlist looks at, they are the first of the shortlist.
3. Choice: for each candidate every latent is rounded to the nearest q or the one next to it toward zero, whichever
   costs less by the densities' tables, in each activity class; the candidate and class with the least J are used.

Levels of a residual model are coded one after the other, each with what the levels before it left.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llgae_cli.codec.costs import LARGEST_Q, list_coded, place_costs, tabulate_costs
from llgae_cli.codec.density import COST_UNIT, Integers, exp2_negative, integer_log2
from llgae_cli.codec.exact import BASIS_BITS, ExactDecoder, Floats, Level, Step, group_rows
from llgae_cli.codec.grid import Grid
from llgae_cli.training.expected_rate import TRADE_OFF

LOG2_THETA = -269687  # 2^16 log2(TRADE_OFF / (2 ln 2)): theta = lambda / (2 ln 2), over Delta^2
# Fashion-MNIST, K = 30 to 400 and 40 to 630 bits: J is at most 0.01 % above that of a search without a shortlist.
FIRST_LATENTS = 16
SHORTLIST = 12
CANDIDATES = 3
KEY_SHIFT = 4  # bits of the scores that keys leave out
TILE, TILE_ROWS = 512, 512  # a product's vectors and rows: 2 MB
COSTS, ROWS_AT_ONCE = 1 << 15, 128  # latents whose costs are computed together, which a cache holds; rows at least


@dataclass(frozen=True, eq=False)
class Codes:
    """Codes of n rows: symbols k (n, L), s (n,) or None, q (n, E). A symbol is k A + a (see `exact`).

    cost  (n,) their bits, in units of 2^-16
    J     (n,) |x - x_hat|^2 + lambda R, float64
    """

    k: Integers
    s: Integers | None
    q: Integers
    cost: Integers
    J: Floats

    def take(self, rows: Integers | NDArray[np.bool_]) -> "Codes":
        """Return the codes of some rows."""
        return Codes(
            self.k[rows], None if self.s is None else self.s[rows], self.q[rows], self.cost[rows], self.J[rows]
        )

    @classmethod
    def join(cls, parts: list["Codes"]) -> "Codes":
        """Return the codes of all parts."""
        s = None if parts[0].s is None else np.concatenate([part.s for part in parts if part.s is not None])
        k, q, cost, J = (np.concatenate([getattr(part, name) for part in parts]) for name in ("k", "q", "cost", "J"))
        return cls(k, s, q, cost, J)


class LevelEncoder:
    """Chooses the symbol k A + a and q of one level. `weights` (K A,) are the symbols' probabilities times 2^24."""

    def __init__(self, level: Level, weights: Integers, grid: Grid, is_first: bool):
        self.level, self.grid, self.weights = level, grid, weights
        origin = grid.origin if is_first else np.zeros_like(grid.origin)
        self.m = torch.from_numpy(np.rint((level.mu - origin) * 2.0**grid.bits))  # (K, D)
        self.squared = self.m.square().sum(1)
        self.U = torch.from_numpy(level.U * 2.0**BASIS_BITS)  # (K, D, E)
        self.z0 = torch.bmm(self.m[:, None, :], self.U)[:, 0]  # (K, E)

    def prepare(self, step: Step, shift: int) -> "Prepared":
        """Return what depends on the step."""
        return Prepared(self, step, shift)

    def project(self, y: Tensor, j: int) -> Tensor:
        """Return the latents z = U_j^T (y - m_j), (n, E), in the rows' own units."""
        return (y @ self.U[j]).sub_(self.z0[j]).mul_(2.0 ** -(BASIS_BITS + self.grid.bits))

    def project_pairs(self, y: Tensor, components: Tensor) -> Tensor:
        """Return the latents of rows y (n, D) under each of their `components` (n, M), (n, M, E)."""
        n, M = components.shape
        z = torch.empty(n * M, self.level.E, dtype=torch.float64)
        for j, at in group_rows(components.flatten().numpy(), self.level.K):
            pairs = torch.from_numpy(at)
            z[pairs] = self.project(y[pairs // M], j)
        return z.view(n, M, self.level.E)

    def distances(self, y: Tensor) -> Tensor:
        """Return |y - m_k|^2, (n, K)."""
        return (y @ self.m.T).mul_(-2).add_(y.square().sum(1, keepdim=True)).add_(self.squared)


@dataclass(frozen=True, eq=False)
class Measured:
    """Candidates (n, M) of n rows, the preferred ones first; latents z (n, M, E); distances |y - m_k|^2 (n, M)."""

    candidates: Tensor
    z: Tensor
    distance: Tensor


class Prepared:
    """A level at a step: weights and constants of the scores, and tables of costs."""

    def __init__(self, encoder: LevelEncoder, step: Step, shift: int):
        self.encoder, self.step = encoder, step
        level = encoder.level
        K, E = level.K, level.E
        self.unit = 4.0**encoder.grid.bits  # J in units of the squared grid
        self.trade_off = TRADE_OFF * step.value * step.value
        excess = level.log2_variances(shift) - (2 * step.log2 + LOG2_THETA)
        excess = np.clip(excess, 0, 40 * COST_UNIT)  # 2^16 log2(v / theta)
        weight = 1 - exp2_negative(excess << 10) * 2.0**-40  # 1 - theta / v, exact
        price = self.trade_off / COST_UNIT * self.unit
        bits = 24 * COST_UNIT - integer_log2(encoder.weights)  # of the symbols
        self.bits, self.price = torch.from_numpy(bits), torch.from_numpy(np.rint(bits * price))
        bits_k = 24 * COST_UNIT - integer_log2(encoder.weights.reshape(K, -1).sum(1))
        constant = torch.from_numpy(np.rint(excess.sum(1) * (self.trade_off / 2 / COST_UNIT * self.unit)))
        self.constant = constant + torch.from_numpy(np.rint(bits_k * price))
        self.weight = torch.from_numpy(weight)
        ids, inverse = np.unique(level.table_ids(step, shift), return_inverse=True)
        inverse = inverse.reshape(K * level.A, E)
        self.costs = tabulate_costs(ids)
        self.flat_costs = self.costs.flatten()
        self.first_cost = torch.from_numpy(inverse * self.costs.shape[1])  # of each symbol's latents, in `costs`
        # Zero for latents that are skipped.
        self.coded = torch.from_numpy(list_coded()[ids][inverse].astype(np.float64))

    @cached_property
    def used(self) -> Tensor:
        """Number of latents with a weight above zero, of each component, (K,)."""
        return (self.weight > 0).sum(1)

    @cached_property
    def tiles(self) -> list[tuple[Tensor, Tensor, int]]:
        """Groups of t components: these (t,), a matrix (e t, D + 1), and the number e of their first latents.

        The rows of the matrix are sqrt(w) u of the first latents of all t components, then of the second ones, and so
        on, rounded as bases are. Its last column is minus their products with m_k.
        """
        encoder, tiles = self.encoder, []
        used = self.used.clamp(max=FIRST_LATENTS)
        order = torch.argsort(used, stable=True)
        for some in order.split(max(1, TILE // max(1, int(used.max())))):
            e = int(used[some].max())
            chosen = torch.argsort(self.weight[some], dim=1, descending=True, stable=True)[:, :e]  # (t, e)
            U = encoder.U[some].gather(2, chosen[:, None, :].expand(-1, encoder.U.shape[1], -1))
            U = U.mul_(self.weight[some].gather(1, chosen).sqrt()[:, None]).round_()  # (t, D, e)
            columns = torch.cat([U, -torch.bmm(encoder.m[some][:, None, :], U)], 1)
            tiles.append((some, columns.permute(2, 0, 1).flatten(0, 1).contiguous(), e))
        return tiles

    def measure(self, y: Tensor) -> Measured:
        """Return the candidates of rows y (n, D): the M = min(CANDIDATES, K) components of least score."""
        encoder, K, M = self.encoder, self.encoder.level.K, min(CANDIDATES, self.encoder.level.K)
        distance = encoder.distances(y)
        every = torch.arange(K).expand(len(y), K)
        if K <= SHORTLIST:
            listed = every
        else:
            score = self._score_by_first(y, distance)
            if int(self.used.max()) <= FIRST_LATENTS:
                candidates = self._find_least(score, every, M)
                return Measured(candidates, encoder.project_pairs(y, candidates), distance.gather(1, candidates))
            listed = self._find_least(score, every, SHORTLIST)
        z = encoder.project_pairs(y, listed)
        score = distance.gather(1, listed) + self.constant[listed]
        for m in range(listed.shape[1]):  # one by one: each fits a cache
            score[:, m] -= (z[:, m].square() * self.unit).mul_(self.weight[listed[:, m]]).round_().sum(1)
        candidates = self._find_least(score, listed, M)
        places = (listed[:, None, :] == candidates[:, :, None]).to(torch.int8).argmax(2)
        kept = z.gather(1, places[:, :, None].expand(-1, -1, z.shape[2]))
        return Measured(candidates, kept, distance.gather(1, candidates))

    def _score_by_first(self, y: Tensor, distance: Tensor) -> Tensor:
        """Return the scores of rows y (n, D) from their first latents, (n, K)."""
        lowered = torch.zeros(self.encoder.level.K, len(y), dtype=torch.float64)
        columns = torch.cat([y, y.new_ones(len(y), 1)], 1).T  # (D + 1, n)
        product = torch.empty(max(m.shape[0] for _, m, _ in self.tiles) * TILE_ROWS, dtype=torch.float64)
        for low in range(0, len(y), TILE_ROWS):
            part = columns[:, low : low + TILE_ROWS]
            for some, matrix, e in self.tiles:
                if e:
                    squares = product[: len(matrix) * part.shape[1]].view(len(matrix), -1)
                    torch.mm(matrix, part, out=squares)
                    squares = squares.square_().view(e, -1)
                    while len(squares) > 1:  # pair by pair: the rounding of a sum depends on the order of its terms
                        half = len(squares) // 2
                        squares[:half] += squares[-half:]
                        squares = squares[: len(squares) - half]
                    lowered[some, low : low + TILE_ROWS] = squares.view(len(some), -1)
        return (distance + self.constant).sub_(lowered.T, alpha=4.0**-BASIS_BITS)

    def _find_least(self, score: Tensor, components: Tensor, M: int) -> Tensor:
        """Return the M components (n, M) of least score, the best first, for scores of `components`, both (n, m)."""
        # Score and component in one integer, so that there are no ties. Scores are below 2^54.
        bits = max(1, (self.encoder.level.K - 1).bit_length())
        keys = (score.to(torch.int64) >> max(KEY_SHIFT, bits - 9) << bits) + components
        return keys.topk(M, dim=1, largest=False, sorted=True).values & ((1 << bits) - 1)

    def choose(self, measured: Measured) -> tuple[Integers, Integers, Integers, Integers]:
        """Return symbols (n,), q (n, E), J (n,) in units of the squared grid, and the cost (n,) in 2^-16 bit."""
        fields = (measured.candidates, measured.z, measured.distance)
        rows = max(ROWS_AT_ONCE, COSTS // max(1, measured.z[:1].numel()))
        parts = [self._choose(*part) for part in zip(*(field.split(rows) for field in fields), strict=True)]
        symbol, q, J, cost = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
        return symbol, q, J, cost

    def _choose(self, candidates: Tensor, z: Tensor, distance: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n, M = candidates.shape
        A, first = self.encoder.level.A, candidates * self.encoder.level.A
        # No row with a larger q has exact sums.
        nearest = torch.round(z / self.step.value).clamp_(-LARGEST_Q, LARGEST_Q)
        choices = [self._price(z, q) for q in (nearest, nearest - torch.sign(nearest))]
        totals = torch.empty(n, M, A, dtype=torch.int64)
        for a in range(A):
            symbol = first + a
            table, coded = self.first_cost[symbol], self.coded[symbol]
            J = torch.minimum(*(self._weigh(choice, table)[0] for choice in choices)).mul_(coded)
            totals[:, :, a] = (distance + self.price[symbol]).to(torch.int64) + J.to(torch.int64).sum(2)
        best = (totals.flatten(1) * (M * A) + torch.arange(M * A)).min(1).values % (M * A)  # integers without ties
        row, m = torch.arange(n), best // A
        symbol = first[row, m] + best % A
        table, coded = self.first_cost[symbol], self.coded[symbol]
        choices = [Choice(*(field[row, m] for field in choice)) for choice in choices]
        (J, bits), (lower_J, lower_bits) = (self._weigh(choice, table) for choice in choices)
        lower = lower_J < J
        q = torch.where(lower, choices[1].q, choices[0].q).mul_(coded)
        cost = torch.where(lower, lower_bits, bits).mul_(coded).to(torch.int64).sum(1) + self.bits[symbol]
        return symbol, q.to(torch.int64), totals.flatten(1)[row, best], cost

    def _price(self, z: Tensor, q: Tensor) -> "Choice":
        part = q * self.step.value
        places = place_costs(q.abs()).clamp_(max=self.costs.shape[1] - 1)
        return Choice(q, part * (part - 2 * z), places)

    def _weigh(self, choice: "Choice", table: Tensor) -> tuple[Tensor, Tensor]:
        """Return J = (z - Delta q)^2 - z^2 + lambda R in whole units of the squared grid, and R.

        `table` is where the latents' tables begin in the flattened costs.
        """
        bits = self.flat_costs.index_select(0, (choice.places + table).flatten()).view_as(table)
        return (bits * (self.trade_off / COST_UNIT)).add_(choice.error).mul_(self.unit).round_(), bits


class Choice(NamedTuple):
    """Integers q for latents z, their error (z - Delta q)^2 - z^2, and the places of |q| in a table of costs."""

    q: Tensor
    error: Tensor
    places: Tensor


class RowEncoder(Protocol):
    """Chooses the codes of rows y (n, D) on the grid.

    What depends on the step is in `prepared`; `measured` is what does not, for the same rows.
    """

    def prepare(self, step: Step, shift: int) -> list[Any]:
        """Return what depends on the step and the shift of the densities' scales."""
        ...

    def measure(self, y: Floats, prepared: list[Any]) -> Any:
        """Return what the choices at several steps have in common; None where there is nothing."""
        ...

    def choose(self, y: Floats, prepared: list[Any], measured: Any = None) -> Codes:
        """Return the codes of rows y."""
        ...

    def refine(self, y: Floats, codes: Codes, step: Step, shift: int) -> Integers:
        """Return q (n, E) at another step, with the symbols and shifts of the codes of rows y."""
        ...


class Encoder:
    """Chooses the codes of rows under an exact decoder.

    weights  (K A,) of each level's symbols
    symbols  (K, V) weights of the shifts, given k, or None
    """

    def __init__(self, decoder: ExactDecoder, weights: tuple[Integers, ...], symbols: Integers | None, grid: Grid):
        self.decoder, self.grid, self.symbols = decoder, grid, symbols
        self.levels = [
            LevelEncoder(level, own, grid, i == 0)
            for i, (level, own) in enumerate(zip(decoder.levels, weights, strict=True))
        ]
        if decoder.places is not None:
            self.inverse = np.argsort(decoder.places, axis=1, kind="stable")

    def prepare(self, step: Step, shift: int) -> list[Prepared]:
        """Return all levels prepared for a step."""
        return [level.prepare(step, shift) for level in self.levels]

    def measure(self, y: Floats, prepared: list[Prepared]) -> Measured | None:
        """Return what the first level's choice needs and does not depend on the step but by the candidates.

        None where codes have a shift.
        """
        if self.decoder.places is not None:
            return None
        return prepared[0].measure(torch.from_numpy(y))

    def choose(self, y: Floats, prepared: list[Prepared], measured: Measured | None = None) -> Codes:
        """Return the codes of rows y (n, D) on the grid; `measured` is what `measure` returned for them."""
        if self.decoder.places is not None:
            return self._choose_shift(y, prepared[0])
        ks, qs, cost, rest = [], [], np.zeros(len(y), np.int64), y
        for i, (level, own) in enumerate(zip(self.decoder.levels, prepared, strict=True)):
            if measured is None or i:
                measured = own.measure(torch.from_numpy(rest))
            before = cost * (own.trade_off / COST_UNIT)
            k, q, J, bits_of_level = own.choose(measured)
            ks.append(k)
            qs.append(q)
            cost = cost + bits_of_level
            if i + 1 < len(prepared):
                part = level.decode(k, q, own.step) - (self.grid.origin if i == 0 else 0.0)
                rest = rest - np.rint(part * 2.0**self.grid.bits)
        return Codes(np.stack(ks, 1), None, np.concatenate(qs, 1), cost, before + J / prepared[0].unit)

    def refine(self, y: Floats, codes: Codes, step: Step, shift: int) -> Integers:
        """Return q (n, E) of rows y on the grid, at another step, with the components and shifts of their codes."""
        if codes.s is not None:
            y = np.take_along_axis(y, self.inverse[codes.s], 1)
        qs, rest = [], y
        for i, own in enumerate(self.levels):
            allowed = list_coded()[own.level.table_ids(step, shift)]
            q = np.zeros((len(y), own.level.E), np.int64)
            for j, at in group_rows(codes.k[:, i] // own.level.A, own.level.K):
                z = own.project(torch.from_numpy(rest[at]), j).numpy()
                q[at] = np.rint(np.clip(z / step.value, -(2.0**38), 2.0**38))
            q *= allowed[codes.k[:, i]]
            qs.append(q)
            if i + 1 < len(self.levels):
                part = own.level.decode(codes.k[:, i], q, step) - (self.grid.origin if i == 0 else 0.0)
                rest = rest - np.rint(part * 2.0**self.grid.bits)
        return np.concatenate(qs, 1)

    def _choose_shift(self, y: Floats, own: Prepared) -> Codes:
        """Return the codes with the best of all shifts, the first of equal ones."""
        assert self.symbols is not None
        best: tuple[Integers, ...] | None = None
        cost_s = 24 * COST_UNIT - integer_log2(self.symbols)  # (K, V)
        for v, places in enumerate(self.inverse):
            undone = torch.from_numpy(np.ascontiguousarray(y[:, places]))
            k, q, J, cost = own.choose(own.measure(undone))
            of_k = cost_s[k // own.encoder.level.A, v]
            J = J + np.rint(of_k * (own.trade_off / COST_UNIT * own.unit)).astype(np.int64)
            cost = cost + of_k
            new = k, q, J, cost, np.full(len(k), v)
            if best is None:
                best = new
            else:
                better = best[2] > J
                best = tuple(
                    np.where(better if a.ndim == 1 else better[:, None], b, a) for a, b in zip(best, new, strict=True)
                )
        assert best is not None
        k, q, J, cost, s = best
        return Codes(k[:, None], s, q, cost, J / own.unit)
