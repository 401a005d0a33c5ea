"""The choice of a row's code under a decoder with a network: integers q that make J = |x - x_hat|^2 + lambda R small.

1. Start: the component k of the affine model, and the latents of the guide, or of the affine model without a guide.
2. Optimum: BFGS on |x - g(k, z)|^2 + lambda R(z) from there, with the bits R(z) = -sum_e log2 p_e(z_e) by logistic
   densities p_e of the latents' variances, and lambda of the model's own step. Without R an optimum may lie far from
   those of the training rows, where a decoder bends and rounding costs much. P is the inverse curvature of the sum.
3. Rounding: with the squared error as the quadratic form of P^-1 around the optimum, one latent after the other is
   rounded, the stiffest first. Moving latent e by d costs d^2 / P_ee when the latents that are not rounded yet move to
   their optimum,

       z' = z + P_e d / P_ee,    P' = P - P_e P_e^T / P_ee,

   and each takes the q of its neighbours that costs the least with its bits (Babai's nearest plane, with rates).
   The curvature of R is in P too, so latents that hardly count are rounded to zero more often.
4. Refinement: the slope at the rounded latents gives a new optimum z - P slope, which is rounded in the same way. Of
   the roundings the one with the least J is kept, now with the decoder's own squared error.

With `centring: sample` the constant row is one more latent, the last one, which is rounded on its own for what the
others leave. Everything is in floats: a code may depend on the machine and on the rows beside it, its decoded values
do not.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from hashlib import blake2b
from threading import Lock

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from llgae_cli.codec.costs import LARGEST_Q, list_coded, place_costs, tabulate_costs
from llgae_cli.codec.density import COST_UNIT, Integers, integer_log2
from llgae_cli.codec.encoder import LOG2_THETA, Codes
from llgae_cli.codec.exact import ExactDecoder, Floats, Step
from llgae_cli.codec.grid import Grid
from llgae_cli.codec.network import LATENT_BITS
from llgae_cli.codec.network_start import Start
from llgae_cli.errors import InputError
from llgae_cli.models.networks import MLP, ConvDecoder, Network
from llgae_cli.models.second_order import minimise
from llgae_cli.threads import check_cancelled, run_parallel
from llgae_cli.training.expected_rate import TRADE_OFF

ROWS = 128  # that BFGS moves together
STEPS = 12  # of BFGS
TOLERANCE = 3e-5  # of BFGS; with 3e-4, J of a deep LLGAE is 0.1 % higher
OCTAVES = (-20, 40)  # range of log2(variance of a latent / theta): constants have no variance
LARGEST_OCTAVE = 100  # of |log2 theta|: float32 holds products at such a scale
REFINEMENTS = 1
KEPT = 1 << 13  # rows whose optima are kept: a search for settings codes the same rows many times
CURVATURES = (1e-2, 1e2)  # range of the eigenvalues of P, whose mean is about 1
LEAST = 1e-6  # of P_ee, by which costs are divided


@dataclass(frozen=True, eq=False)
class Optimum:
    """Components k (n,) of n rows, latents z (n, E) without the constant row's, inverse curvatures P (n, E, E)."""

    k: Tensor
    z: Tensor
    P: Tensor

    @classmethod
    def join(cls, parts: list["Optimum"]) -> "Optimum":
        """Return all rows of the parts."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def take(self, rows: slice) -> "Optimum":
        """Return some of the rows."""
        return Optimum(self.k[rows], self.z[rows], self.P[rows])


class PreparedNetwork:
    """A level with a network at a step: the costs of its symbols and latents."""

    def __init__(self, decoder: ExactDecoder, weights: Integers, step: Step, shift: int):
        level = decoder.levels[0]
        self.step, self.trade_off = step, TRADE_OFF * step.value * step.value
        tables = level.table_ids(step, shift)  # (K A, E)
        ids, inverse = np.unique(tables, return_inverse=True)
        costs = tabulate_costs(ids)
        self.bits = torch.from_numpy((24 * COST_UNIT - integer_log2(weights)) / COST_UNIT)  # of the symbols
        self.places = costs.shape[1]
        self.costs = costs.flatten() / COST_UNIT
        self.first_cost = torch.from_numpy(inverse.reshape(tables.shape) * self.places)
        self.coded = torch.from_numpy(list_coded()[tables])

    def price(self, q: Tensor, first_cost: Tensor) -> Tensor:
        """Return the bits of q under the tables whose costs begin at `first_cost`, of the same shape."""
        places = place_costs(q.abs()).clamp_(max=self.places - 1)
        return self.costs.take(places + first_cost)


class NetworkEncoder:
    """Chooses the codes of rows under a decoder with a network; the interface is that of `encoder.Encoder`.

    weights  (K A,) of the symbols
    start    arrays of `Start`
    step     the model's own; None: the search leaves R out
    """

    def __init__(
        self, decoder: ExactDecoder, weights: Integers, grid: Grid, start: Mapping[str, np.ndarray], step: Step | None
    ):
        level = decoder.levels[0]
        assert level.network is not None
        self.decoder, self.weights, self.grid, self.level = decoder, weights, grid, level
        self.E, self.centred = level.network.E, level.E > level.network.E
        self.mu = torch.from_numpy(level.mu).float()
        self.U = torch.from_numpy(level.U[:, :, : self.E]).float().mT.contiguous()  # (K, E, D)
        self.T = torch.from_numpy(level.network.T * 2.0**-level.network.T_bits).float()
        self.centre = torch.from_numpy(level.network.centre * 2.0**-LATENT_BITS).float()
        try:
            with torch.random.fork_rng(devices=()):  # building a network draws numbers that are not used
                self.network = _build_network(level.network.sides, level.network.parameters())
                self.start = Start.build(start, level.network.sides, level.K, decoder.D, self.E)
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise InputError("the codec's arrays for encoding are damaged") from None
        self._inverse = torch.linalg.pinv(self.T.double()).float()
        self.theta, self.spread = 0.0, torch.ones(level.K, self.E)  # spread: scales of the logistic densities
        if step is not None:
            log2_theta = (2 * step.log2 + LOG2_THETA) / COST_UNIT
            if abs(log2_theta) > LARGEST_OCTAVE:
                raise InputError("the codec's arrays for encoding are damaged")
            octaves = np.clip(level.log2_variances()[:, : self.E] / COST_UNIT - log2_theta, *OCTAVES)
            self.theta = 2.0**log2_theta
            self.spread = torch.from_numpy(np.sqrt(3 * self.theta * np.exp2(octaves)) / math.pi).float()
        self._kept: OrderedDict[bytes, Optimum] = OrderedDict()
        self._lock = Lock()

    def prepare(self, step: Step, shift: int) -> list[PreparedNetwork]:
        """Return the level prepared for a step."""
        return [PreparedNetwork(self.decoder, self.weights, step, shift)]

    def measure(self, y: Floats, prepared: list[PreparedNetwork]) -> Optimum:
        """Return the optima of rows y (n, D) on the grid; they depend on the model's own step only."""
        keys = [blake2b(row.data, digest_size=16).digest() for row in np.ascontiguousarray(y)]
        with self._lock:
            found = [self._kept.get(key) for key in keys]
        new = np.array([i for i, one in enumerate(found) if one is None], np.int64)
        if len(new):
            optimum = self._find_optimum(self._restore(y[new]))
            with self._lock:
                for j, i in enumerate(new.tolist()):
                    found[i] = self._kept[keys[i]] = optimum.take(slice(j, j + 1))
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        if not keys:
            return self._find_optimum(self._restore(y))
        return Optimum.join([one for one in found if one is not None])

    def choose(self, y: Floats, prepared: list[PreparedNetwork], measured: Optimum | None = None) -> Codes:
        """Return the codes of rows y (n, D) on the grid; `measured` is what `measure` returned for them."""
        optimum = self.measure(y, prepared) if measured is None else measured
        x = self._restore(y)
        symbol, q = self._choose_class(optimum, prepared[0])
        q, J, bits = self._refine(x, optimum, symbol, q, prepared[0])
        cost = torch.round(bits * COST_UNIT).to(torch.int64)
        return Codes(symbol[:, None].numpy(), None, q.to(torch.int64).numpy(), cost.numpy(), J.numpy())

    @torch.no_grad()
    def measure_latents(self, y: Floats) -> tuple[Integers, Floats, Floats]:
        """Return components (n,) and latents (n, E), the constant row's too, of rows y, and squared errors (n,)."""
        optimum, x = self._find_optimum(self._restore(y)), self._restore(y)
        parts = zip(x.split(ROWS), optimum.k.split(ROWS), optimum.z.split(ROWS), strict=True)
        r, along = (torch.cat(column) for column in zip(*(self._residual(*part) for part in parts), strict=True))
        z = torch.cat([optimum.z, along[:, None]], 1) if self.centred else optimum.z
        return optimum.k.numpy(), z.double().numpy(), r.double().square().sum(1).numpy()

    def refine(self, y: Floats, codes: Codes, step: Step, shift: int) -> Integers:
        """Return q (n, E) of rows y on the grid, at another step, with the symbols of their codes."""
        prepared = self.prepare(step, shift)
        symbol = torch.from_numpy(codes.k[:, 0])
        optimum = self.measure(y, prepared)
        q, _ = _round(optimum, symbol, prepared[0])
        q, _, _ = self._refine(self._restore(y), optimum, symbol, q, prepared[0])
        return q.to(torch.int64).numpy()

    def _restore(self, y: Floats) -> Tensor:
        """Return rows on the grid in their own units, float32."""
        return torch.from_numpy((y * 2.0**-self.grid.bits + self.grid.origin).astype(np.float32))

    # -- the decoder in floats ----------------------------------------------------------------------------------------

    def _decode(self, k: Tensor, z: Tensor) -> Tensor:
        """Return g(k, z) without the constant row's part, (n, D)."""
        affine = torch.bmm(z[:, None, :], self.U[k])[:, 0]
        b = self.centre[k] + torch.bmm(self.T[k], z[:, :, None])[:, :, 0]
        return self.mu[k] + affine + self.network(k, b)

    def _residual(self, x: Tensor, k: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x - g(k, z) without its part along the constant row where that is a latent, and this part, (n,)."""
        r = x - self._decode(k, z)
        if not self.centred:
            return r, r.new_zeros(len(r))
        mean = r.mean(1).nan_to_num(0.0, 0.0, 0.0)
        return r - mean[:, None], mean * r.shape[1] ** 0.5

    def _energy(self, x: Tensor, k: Tensor, rows: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return half of |x - g(k, z)|^2 + lambda R(z) for the given rows of x (n, D) and k (n,), and its slope by z.

        z is (m, E). R is the bits of z by the logistic densities, less those of 0.
        """
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = self._residual(x[rows], k[rows], z)[0].square().sum(1) / 2
            ratio = z.abs() / self.spread[k[rows]]
            value = value + self.theta * (ratio + 2 * softplus(-ratio) - 2 * math.log(2)).sum(1)
            (slope,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), slope

    # -- steps of the choice ------------------------------------------------------------------------------------------

    def _find_optimum(self, x: Tensor) -> Optimum:
        """Return the optima of rows x (n, D)."""
        parts: list[Optimum] = []
        run_parallel(self._find_optimum_of_rows, x.split(ROWS), parts.append)
        return Optimum.join(parts)

    @torch.no_grad()
    def _find_optimum_of_rows(self, x: Tensor) -> Optimum:
        check_cancelled()
        k, b = self.start.encode(x - x.mean(1, keepdim=True) if self.centred else x)  # as the model was trained
        z = torch.bmm(self._inverse[k], (b - self.centre[k])[:, :, None])[:, :, 0]
        z = z.nan_to_num_(0.0, 0.0, 0.0)  # of a guide that overflows
        curvature = 1 + self.theta / 2 / self.spread.square()  # of J^T J, whose mean is about 1, and of R at 0
        z, P, _ = minimise(partial(self._energy, x, k), z, torch.diag_embed(1 / curvature[k]), STEPS, TOLERANCE)
        values, axes = torch.linalg.eigh(P)  # rounding errors of float32 may leave P indefinite
        return Optimum(k, z, (axes * values.clamp(*CURVATURES)[:, None, :]) @ axes.mT)

    def _choose_class(self, optimum: Optimum, prepared: PreparedNetwork) -> tuple[Tensor, Tensor]:
        """Return the symbols k A + a (n,) of least J by the quadratic form, and q (n, E) under them."""
        A = self.level.A
        tried = []
        for a in range(A):
            symbol = optimum.k * A + a
            q, J = _round(optimum, symbol, prepared)
            tried.append((q, J + prepared.trade_off * prepared.bits[symbol]))
        best = torch.stack([J for _, J in tried]).argmin(0)
        q = torch.stack([q for q, _ in tried])[best, torch.arange(len(best))]
        return optimum.k * A + best, q

    def _refine(
        self, x: Tensor, optimum: Optimum, symbol: Tensor, q: Tensor, prepared: PreparedNetwork
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best of q (n, E) and its refinements with the constant row's latent, J (n,) and bits (n,)."""
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        run_parallel(
            lambda rows: self._refine_rows(x[rows], optimum.take(rows), symbol[rows], q[rows], prepared),
            [slice(low, low + ROWS) for low in range(0, max(len(x), 1), ROWS)],
            parts.append,
        )
        q, J, bits = (torch.cat(column) for column in zip(*parts, strict=True))
        return q, J, bits

    @torch.no_grad()
    def _refine_rows(
        self, x: Tensor, optimum: Optimum, symbol: Tensor, q: Tensor, prepared: PreparedNetwork
    ) -> tuple[Tensor, Tensor, Tensor]:
        check_cancelled()
        best: tuple[Tensor, Tensor, Tensor] | None = None
        for left in range(REFINEMENTS, -1, -1):
            z = (q * prepared.step.value).float()
            with torch.set_grad_enabled(left > 0):
                z.requires_grad_(left > 0)
                r, along = self._residual(x, optimum.k, z)
                squared = r.square().sum(1)
                half = squared.sum() / 2
            error, whole = squared.detach().double(), q
            if self.centred:
                last, last_error = self._round_constant(along.detach().double(), symbol, prepared)
                whole, error = torch.cat([q, last[:, None]], 1), error + last_error
            bits = prepared.bits[symbol] + prepared.price(whole, prepared.first_cost[symbol]).sum(1)
            J = error + prepared.trade_off * bits
            if best is None:
                best = whole, J, bits
            else:
                lower = best[1] > J
                best = (
                    torch.where(lower[:, None], whole, best[0]),
                    torch.where(lower, J, best[1]),
                    torch.where(lower, bits, best[2]),
                )
            if left:
                (slope,) = torch.autograd.grad(half, z)
                moved = z.detach() - torch.bmm(optimum.P, slope[:, :, None])[:, :, 0]
                q, _ = _round(Optimum(optimum.k, moved, optimum.P), symbol, prepared)
        assert best is not None
        return best

    def _round_constant(self, z: Tensor, symbol: Tensor, prepared: PreparedNetwork) -> tuple[Tensor, Tensor]:
        """Return q (n,) of the constant row's latents z (n,), and their squared errors (n,)."""
        first, coded = prepared.first_cost[symbol, -1], prepared.coded[symbol, -1]
        q = _choose_neighbour(z, torch.ones_like(z), first, coded, prepared)[0]
        return q, (q * prepared.step.value - z).square()


def _round(optimum: Optimum, symbol: Tensor, prepared: PreparedNetwork) -> tuple[Tensor, Tensor]:
    """Return q (n, E), float64, one latent rounded after the other, and J (n,) by the quadratic form of P^-1."""
    E = optimum.z.shape[1]
    z, P = optimum.z.double(), optimum.P.double()
    order = torch.argsort(P.diagonal(dim1=1, dim2=2), dim=1, stable=True)  # (n, E), the stiffest latents first
    z = z.gather(1, order)
    P = P.gather(1, order[:, :, None].expand_as(P)).gather(2, order[:, None, :].expand_as(P))
    first = prepared.first_cost[symbol][:, :E].gather(1, order)
    coded = prepared.coded[symbol][:, :E].gather(1, order)
    q, J = torch.zeros_like(z), z.new_zeros(len(z))
    for e in range(E):
        p = P[:, e, e].clamp(min=LEAST)
        q[:, e], cost = _choose_neighbour(z[:, e], p, first[:, e], coded[:, e], prepared)
        J += cost
        moved = (q[:, e] * prepared.step.value - z[:, e]) / p
        column = P[:, e, e:].clone()
        z[:, e:] += column * moved[:, None]
        P[:, e:, e:] -= column[:, :, None] * (column / p[:, None])[:, None, :]
    return torch.zeros_like(q).scatter_(1, order, q), J


def _choose_neighbour(
    z: Tensor, p: Tensor, first: Tensor, coded: Tensor, prepared: PreparedNetwork
) -> tuple[Tensor, Tensor]:
    """Return the q (n,) next to latents z (n,) of least (z - Delta q)^2 / p + lambda R, and this cost.

    0 for latents that are skipped. `first` is where the costs of their tables begin.
    """
    step = prepared.step.value
    nearest = torch.round(z / step).clamp_(-LARGEST_Q, LARGEST_Q)
    choices = torch.stack([nearest, nearest - torch.sign(nearest), torch.zeros_like(nearest)])
    costs = (choices * step - z).square() / p + prepared.trade_off * prepared.price(choices, first.expand_as(choices))
    cost, best = costs.min(0)
    q = torch.where(coded, choices.gather(0, best[None])[0], 0.0)
    return q, torch.where(coded, cost, z.square() / p)


def _build_network(sides: tuple[int, ...], parameters: Mapping[str, Floats]) -> Network:
    """Return the network with these parameters, in float32."""
    (K, width), (_, E) = (parameters[f"{name}.weight"].shape for name in ("k", "first"))
    network: Network
    if sides:
        network = ConvDecoder(K, E, sides, width, parameters["out.weight"].shape[1])
    else:
        network = MLP(K, E, len(parameters["out.weight"]), width)
    network.load_state_dict({name: torch.from_numpy(value).float() for name, value in parameters.items()})
    return network.requires_grad_(False)
