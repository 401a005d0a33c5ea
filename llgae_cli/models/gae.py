"""GAE: any decoder; the code comes from gradient ascent on the likelihood through it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llgae_cli.models.base import Code, Model, Parts
from llgae_cli.models.latent_rate import LatentRate
from llgae_cli.models.llgae import LLGAE
from llgae_cli.models.networks import Network
from llgae_cli.models.second_order import invert_curvature, minimise
from llgae_cli.threads import run_parallel, run_single_threaded

CURVATURE_DRAWS = 4  # of each component; twice as many gain next to nothing
PART_ROWS = 512  # rows of one ascent, or of one decoding
PART_PAIRS = 1536  # of a row and a component in one ascent, at most
RIVAL = 1.6  # two fifths of Fashion-MNIST's images have a rival, for K = 11; two rivals gain most of what all would
DECODED_ROWS = 4096  # pairs of a row and a component that are decoded at once
PIECES_RATE = 50.0  # learning rate of mu over that of a network: mu is in grey levels, weights are about one
SCALE_WITH_NETWORK = 0.1  # initial scale of W in a decoder with a network
W_RATE = 0.1  # learning rate of W over that of mu


class GAE(Model):
    """Generative autoencoder with a decoder g (CATSMILE-1022, of which LLGAE is the locally linear case).

        l_k(x, b) = -1/2 |x - g(k, b)|^2 - alpha/2 |b|^2
        b_k(t)    = b_k(t-1) + beta dl_k/db at b_k(t-1),    t = 1 ... T
        k         = argmin_k |x - g(k, b_k(T))|^2
        x_hat     = g(k, b_k(T))

    The ascent starts at b_k(0) = 0 under every component. With `affine`, a fixed LLGAE, it starts at that model's code
    and keeps its k. With `guide` too, b(0) is the output of a network. With `tries` above 1, `encode` considers the
    next components of the affine model too, where their squared residual is below RIVAL times the least. It keeps the
    code of the greatest l; by BFGS only the best component takes all steps.

    `ascent` is the treatment of the T steps in training:
        through   the gradient of the loss passes through all steps (second derivatives of g)
        given     the result of the steps is a constant in the gradient, which is exact at a maximum of l; a guide
                  learns from the slope of l at b(0), which the first step has computed
        later     the loss is that of b(0), and only `encode` takes the steps: cheaper, for a guide
    It holds after `ascent_from` epochs, until then `later`. Training takes `training_steps` in place of T, if given.

    `method` is that of the ascent in `encode`, where it starts at the code of `affine` or the guide:
        gradient  the T steps above
        bfgs      at most T quasi-Newton steps, until the next one is expected to change l by less than `tolerance` of
                  it, see `second_order`; l never falls, but for rounding

    `lower_precision`: compute the products of the networks in bfloat16, in `loss` and `encode`, not in `decode`.

    `rate`: steps and densities of quantised latents, for training for a bit rate by `rate_loss`.

    decoder(k (n,), b (n, E)) -> (n, D); guide(k (n,), x (n, D)) -> (n, E). With affine pieces and no network, this is
    LLGAE with inference `loop`; with both it is the deep LLGAE, x_hat = mu_k + W_k b + network(k, b).
    """

    def __init__(
        self,
        decoder: "Decoder",
        K: int,
        D: int,
        E: int,
        *,
        beta: float = 0.01,
        n_step: int = 5,
        tries: int = 1,
        alpha: float = 0.0,
        ascent: str = "through",
        ascent_from: int = 0,
        training_steps: int | None = None,
        method: str = "gradient",
        tolerance: float = 1e-4,
        lower_precision: bool = False,
        affine: LLGAE | None = None,
        guide: Network | None = None,
        rate: LatentRate | None = None,
    ):
        super().__init__()
        self.K, self.D, self.E = K, D, E
        self.beta, self.n_step, self.tries, self.alpha, self.ascent = beta, n_step, tries, alpha, ascent
        self.method, self.tolerance, self.lower_precision = method, tolerance, lower_precision
        self.ascent_from, self.training_steps = ascent_from, n_step if training_steps is None else training_steps
        self.ascends = ascent != "later"  # in the present epoch of training
        self.decoder, self.guide, self.rate = decoder, guide, rate
        self.affine = affine if affine is None else affine.requires_grad_(False)
        self._curvature: tuple[dict[str, Tensor], Tensor] | None = None  # the parameters, and the result for them

    @torch.no_grad()
    def initialise(self, rows: Tensor, generator: torch.Generator) -> None:
        """Draw random networks, and random mu and W where the decoder has them."""
        self.decoder.initialise(rows, generator)
        if self.guide is not None:
            self.guide.initialise(generator)

    @torch.no_grad()
    def initialise_from(self, affine: LLGAE, rows: Tensor, generator: torch.Generator) -> None:
        """Copy mu and W, where the model has any, with W scaled so that each latent has unit variance on `rows`.

        Networks need latents of that size. The scale is only another gauge: W b does not change. In a decoder with a
        network, W is a tenth of that. At full scale, the network starts at the best affine model and the guide at its
        code, and both learn very little (Fashion-MNIST, 600 steps: training mean L2 720 from 725; with a tenth: 625).
        """
        k, b, _ = affine.encode(rows)
        W = affine.W.detach().clone()
        for j in range(self.K):
            own = b[k == j]
            if len(own) > 1:
                W[j] *= own.std(0).clamp(min=1e-6)
        scale = 1.0 if self.decoder.network is None else SCALE_WITH_NETWORK
        for pieces, scaled in ((self.affine, W), (self.decoder.pieces, scale * W)):
            if pieces is not None:
                pieces.mu.copy_(affine.mu)
                pieces.W.copy_(scaled)
        self.decoder.unit.copy_(rows.std().clamp(min=1e-6))
        if self.rate is not None:
            self.rate.initialise(k)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return groups for mu, W, the matrices of networks, which decay, and all others."""
        pieces = [] if self.decoder.pieces is None else list(self.decoder.pieces.parameters())
        affine = {id(p) for p in [*pieces, *(() if self.affine is None else self.affine.parameters())]}
        free = [p for p in self.parameters() if id(p) not in affine]
        constant = {id(p) for p in (() if self.rate is None else self.rate.parameters())}
        groups: list[dict[str, Any]] = [
            {"params": pieces[:1], "rate": PIECES_RATE},
            {"params": pieces[1:], "rate": PIECES_RATE * W_RATE},
            {"params": [p for p in free if p.dim() > 1 and id(p) not in constant], "decays": True},
            {"params": [p for p in free if p.dim() < 2 or id(p) in constant]},
        ]
        return [group for group in groups if group["params"]]

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Return the code of x (n, D): k is the best of all components, or of those that the affine model proposes."""
        second_order = self.method == "bfgs" and self.affine is not None and self.n_step > 0
        P = self._initial_curvature() if second_order else None
        tries = 1 if self.affine is None else min(self.tries, self.K)
        size = min(PART_ROWS, max(1, PART_PAIRS // tries))
        parts = _compute_in_parts(lambda part: self._encode_rows(part, tries, P), x, size=size)
        return Code(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _encode_rows(self, x: Tensor, tries: int, P: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the codes of x (n, D): k (n,), and b (n, E) by BFGS if the inverse curvature P (K, E, E) is given."""
        with self._precision(x):
            near, candidates = self._list_candidates(x, tries)
            sample, column = near.nonzero().T  # pairs of a row and a component
            rows, k = x[sample], candidates[near]
            b = self._initial_latents(rows, k)
            if P is None:
                b = self.ascend(rows, k, b, self.n_step)
                energies = self._energy(rows, k, b) if tries > 1 else None
        if P is not None:
            energy, energy_only = partial(self._energy_and_slope, rows, k), partial(self._energy_of_rows, rows, k)
            # The algebra of BFGS needs all digits. The context also keeps the weights that those within it convert.
            with torch.autocast(x.device.type, enabled=False):
                b, _, energies = minimise(energy, b, P[k], self.n_step, self.tolerance, energy_only, sample)
        if energies is None:
            return k, b
        energies = energies.nan_to_num(torch.inf)
        every = torch.full_like(near, torch.inf, dtype=energies.dtype).masked_scatter(near, energies)
        best = column == every.argmin(1)[sample]
        return k[best], b[best]

    def _list_candidates(self, x: Tensor, tries: int) -> tuple[Tensor, Tensor]:
        """Return which of `tries` components may be the best for x (n, D), and these components, both (n, tries).

        The first one is the initial component, the others are the next ones of the affine model.
        """
        k = self._initial_component(x)[:, None]
        if self.affine is None or tries == 1:
            return torch.ones_like(k, dtype=torch.bool), k
        with torch.autocast(x.device.type, enabled=False):
            squared = self.affine.measure_all(x)
        nearest = squared.scatter(1, k, -1.0).topk(tries, largest=False)  # k itself is the first
        near = nearest.values < RIVAL * squared.gather(1, k)
        near[:, 0] = True  # also where a distance overflows
        return near, nearest.indices

    def decode(self, code: Code) -> Tensor:
        """Return g(k, b), shape (n, D)."""
        if torch.is_grad_enabled() or code.b.device.type != "cpu":
            return self.decoder(code.k, code.b)
        return torch.cat(_compute_in_parts(self.decoder, code.k, code.b, size=PART_ROWS))

    def decoder_parts(self) -> Parts:
        """Return mu and W, where the decoder has them, and its network."""
        pieces, network = self.decoder.pieces, self.decoder.network
        mu, W = (None, None) if pieces is None else (pieces.mu, pieces.W)
        return Parts(mu, W, self.decoder.unit, network)

    def begin_epoch(self, done: int) -> None:
        """Take the ascent in training after `ascent_from` epochs."""
        self.ascends = self.ascent != "later" and done >= self.ascent_from

    def loss(self, x: Tensor) -> Tensor:
        """Return the mean L2 of x (n, D); k is chosen without gradient."""
        with self._precision(x):
            k, b = self._initial_code(x)
            if not self.ascends or self.training_steps == 0:
                return self._mean_l2(x, k, b)
            if self.ascent == "given":
                return self._mean_l2_given(x, k, b)
            return self._mean_l2(x, k, self.ascend(x, k, b, self.training_steps, through=True))

    def rate_loss(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean L2 of x (n, D) with noise on the latents, and the mean bits of these; see `LatentRate`."""
        assert self.rate is not None
        with self._precision(x):
            k, b = self._initial_code(x)
            b = self.rate.add_noise(k, b, u)
            return self._mean_l2(x, k, b), self.rate.bits(k, b).mean()

    def _precision(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.lower_precision)

    def _mean_l2(self, x: Tensor, k: Tensor, b: Tensor) -> Tensor:
        """Return the mean L2 of x (n, D) at the code k (n,), b (n, E)."""
        return (x - self.decoder(k, b)).square().sum() / x.numel()

    def _mean_l2_given(self, x: Tensor, k: Tensor, b: Tensor) -> Tensor:
        """Return the mean L2 after the ascent from b (n, E); its gradient by b is that of -2 l / (n D) at b."""
        slope = self._slope(x, k, b)
        end = self.ascend(x, k, b.detach() - self.beta * slope, self.training_steps - 1)
        pull = (slope * b).sum() * (2 / x.numel())
        return self._mean_l2(x, k, end) + (pull - pull.detach())

    def _initial_code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the component k (n,) of each sample, and the b (n, E) that its ascent starts at."""
        k = self._initial_component(x)
        return k, self._initial_latents(x, k)

    def _initial_component(self, x: Tensor) -> Tensor:
        """Return the component (n,) of x (n, D): that of the affine model, or the best one after the ascent from 0."""
        if self.affine is None:
            return self._best_component(x)
        with torch.autocast(x.device.type, enabled=False):  # the choice of k needs all digits
            return self.affine.choose(x)

    def _initial_latents(self, x: Tensor, k: Tensor) -> Tensor:
        """Return the b (n, E) that the ascent of x (n, D) under k (n,) starts at."""
        if self.affine is None:
            return x.new_zeros(len(x), self.E)
        if self.guide is not None:
            return self.guide(k, x / self.decoder.unit).to(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.affine.encode_in(x, k)

    @torch.no_grad()
    def _best_component(self, x: Tensor) -> Tensor:
        """Return the component k (n,) that is best after the ascent from b = 0 under each."""
        each = torch.arange(self.K, device=x.device)
        chosen = [each.new_zeros(len(x))] if self.K == 1 else []
        for rows in x.split(max(1, DECODED_ROWS // self.K)) if self.K > 1 else ():
            k, pairs = each.repeat(len(rows)), rows.repeat_interleave(self.K, 0)  # every row with every component
            b = self.ascend(pairs, k, pairs.new_zeros(len(k), self.E), self.n_step)
            chosen.append(self._squared_residual(pairs, k, b).view(-1, self.K).argmin(1))
        return torch.cat(chosen) if chosen else each[:0]

    def _initial_curvature(self) -> Tensor:
        """Return the inverse of the mean J^T J + alpha I of each component, damped, (K, E, E).

        The mean is over samples drawn from the affine model, J the Jacobian where their ascent starts. It is computed
        in one thread, and kept until a parameter changes.
        """
        state, kept = self.state_dict(), self._curvature
        if kept is None or not all(_are_equal(kept[0][name], value) for name, value in state.items()):
            P = run_single_threaded(self._compute_initial_curvature, self.device.type == "cpu")
            self._curvature = kept = {name: value.clone() for name, value in state.items()}, P
        return kept[1]

    @torch.no_grad()
    def _compute_initial_curvature(self) -> Tensor:
        assert self.affine is not None
        mu = self.affine.mu
        k = torch.arange(self.K, device=mu.device).repeat_interleave(CURVATURE_DRAWS)
        b = torch.randn(len(k), self.E, generator=torch.Generator().manual_seed(0)).to(mu)  # they have unit variance
        with self._precision(mu):
            J = self.jacobian(Code(k, self._initial_latents(self.affine.decode(Code(k, b)), k)))
        return invert_curvature(J.to(mu).unflatten(0, (self.K, CURVATURE_DRAWS)), self.alpha)

    def _energy(self, x: Tensor, k: Tensor, b: Tensor) -> Tensor:
        """Return -l of x (n, D) at k (n,) and b (n, E), shape (n,)."""
        return self._squared_residual(x, k, b) / 2 + self.alpha / 2 * b.square().sum(1)

    def _squared_residual(self, x: Tensor, k: Tensor, b: Tensor) -> Tensor:
        """Return |x - g(k, b)|^2 of x (n, D), shape (n,)."""
        return (x - self.decoder(k, b)).square().sum(1)

    def _energy_of_rows(self, x: Tensor, k: Tensor, rows: Tensor, b: Tensor) -> Tensor:
        """Return -l (m,) of the given rows of x (n, D) at b (m, E) under their k (n,)."""
        with self._precision(x):
            return self._energy(x[rows], k[rows], b)

    def _energy_and_slope(self, x: Tensor, k: Tensor, rows: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return -l (m,) of the given rows of x (n, D) at b (m, E) under their k (n,), and its gradient by b."""
        with torch.enable_grad():
            b = b.detach().requires_grad_()
            energy = self._energy_of_rows(x, k, rows, b)
            (slope,) = torch.autograd.grad(energy.sum(), b)
        return energy.detach(), slope

    def ascend(self, x: Tensor, k: Tensor, b: Tensor, steps: int, through: bool = False) -> Tensor:
        """Return the latents after ascent steps from b (n, E) under k (n,); differentiable with `through`."""
        for _ in range(steps if len(b) else 0):
            b = b - self.beta * self._slope(x, k, b, through)
        return b if through else b.detach()

    def _slope(self, x: Tensor, k: Tensor, b: Tensor, through: bool = False) -> Tensor:
        """Return the gradient of -l by b, (n, E); differentiable with `through`."""
        with torch.enable_grad():
            b = b if through and b.requires_grad else b.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self._energy(x, k, b).sum(), b, create_graph=through)
        return slope


class Decoder(nn.Module):
    """Decoder g(k, b) = mu_k + W_k b + unit * network(k, b), without the part that is None.

    `unit` is about the standard deviation of a value, so that the network works with numbers of about one.
    """

    unit: Tensor

    def __init__(self, pieces: LLGAE | None, network: Network | None):
        super().__init__()
        self.pieces, self.network = pieces, network
        self.register_buffer("unit", torch.ones(()))

    @torch.no_grad()
    def initialise(self, rows: Tensor, generator: torch.Generator) -> None:
        """Draw random pieces and a random network; set `unit` from `rows` (m, D)."""
        self.unit.copy_(rows.std(correction=0).clamp(min=1e-6))
        if self.pieces is not None:
            self.pieces.initialise(rows, generator)
        if self.network is not None:
            self.network.initialise(generator)

    def forward(self, k: Tensor, b: Tensor) -> Tensor:
        """Return x_hat, shape (n, D)."""
        parts = []
        if self.pieces is not None:
            with torch.autocast(b.device.type, enabled=False):
                parts.append(self.pieces.decode(Code(k, b.to(self.unit))))
        if self.network is not None:
            parts.append(self.unit * self.network(k, b).to(self.unit))
        return sum(parts[1:], start=parts[0])


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return (one.device, one.dtype) == (other.device, other.dtype) and torch.equal(one, other)


def _compute_in_parts(compute: Callable[..., Any], *rows: Tensor, size: int) -> list[Any]:
    """Return compute(*rows) without gradient, `size` rows at a time, in parallel on the CPU."""
    parts: list[Any] = []
    run_parallel(
        torch.no_grad()(lambda part: compute(*part)),
        list(zip(*(each.split(size) for each in rows), strict=True)),
        parts.append,
        rows[0].device.type == "cpu",
    )
    return parts
