"""GAE: any decoder, and the code is found by climbing the likelihood through it."""

from typing import Any

import torch
from torch import Tensor, nn

from llgae_cli.models.base import Code, Model
from llgae_cli.models.llgae import LLGAE
from llgae_cli.models.networks import Network

CLIMBED_ROWS = 512  # rows whose ascent is recorded at once: 2,048 took a quarter longer
TRIED_ROWS = 4096  # rows under components that are decoded at once
PIECES_RATE = 50.0  # learning rate of mu over that of a network: mu is in grey levels, weights are of about one
BESIDE_NETWORK = 0.1  # share of W that a decoder with a network begins with
W_RATE = 0.1  # learning rate of W over that of mu, which is in the samples' own unit: b has unit variance


class GAE(Model):
    """Generative autoencoder with a decoder g (CATSMILE-1022, of which LLGAE is the locally linear case).

        l_k(x, b) = -1/2 |x - g(k, b)|^2 - alpha/2 |b|^2
        b_k(t)    = b_k(t-1) + beta dl_k/db at b_k(t-1),    t = 1 ... T
        k         = argmin_k |x - g(k, b_k(T))|^2
        x_hat     = g(k, b_k(T))

    The ascent begins at b_k(0) = 0 under every component. With `affine`, an LLGAE that is held fixed, it begins from
    that model's code, k and b; with `guide` too, from its k and the b that a network makes of x, a learnt start. Such
    a k is kept.

    `ascent` says what training makes of the steps:
        through   the gradient of the loss passes through all T of them (second derivatives of g)
        given     the b that they come to is taken as given, which is exact at a maximum of l
        later     the loss is taken at the start, and `encode` alone climbs: cheaper, for a learnt start

    `lower_precision`: the networks' products in bfloat16, in `loss` and on the way to a code, never in `decode`.

    decoder(k (n,), b (n, E)) -> (n, D); guide(k (n,), x (n, D)) -> (n, E). With the decoder `Pieces` alone this is
    LLGAE with inference `loop`; with `Pieces` and a network it is the deep LLGAE, x_hat = mu_k + W_k b + network(k, b).
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
        alpha: float = 0.0,
        ascent: str = "through",
        lower_precision: bool = False,
        affine: LLGAE | None = None,
        guide: Network | None = None,
    ):
        super().__init__()
        self.K, self.D, self.E = K, D, E
        self.beta, self.n_step, self.alpha, self.ascent = beta, n_step, alpha, ascent
        self.lower_precision = lower_precision
        self.decoder, self.guide = decoder, guide
        self.affine = affine if affine is None else affine.requires_grad_(False)

    @torch.no_grad()
    def initialise(self, rows: Tensor, generator: torch.Generator) -> None:
        """Random networks, and random mu and W where the decoder has them."""
        self.decoder.initialise(rows, generator)
        if self.guide is not None:
            self.guide.initialise(generator)

    @torch.no_grad()
    def begin_from(self, affine: LLGAE, rows: Tensor, generator: torch.Generator) -> None:
        """Take over mu and W, where the model has any, with W scaled so that each latent has unit variance on `rows`.

        Networks work on latents of that size. The scale is another gauge: W b stays what it is. In a decoder that has a
        network beside the pieces, W begins at a tenth of that: with W whole, a network that adds to the best affine
        model and a guide that must leave its code learn next to nothing (Fashion-MNIST, 600 steps: training mean L2
        720 from 725; begun with a tenth: 625).
        """
        k, b, _ = affine.encode(rows)
        W = affine.W.detach().clone()
        for j in range(self.K):
            own = b[k == j]
            if len(own) > 1:
                W[j] *= own.std(0).clamp(min=1e-6)
        share = 1.0 if self.decoder.network is None else BESIDE_NETWORK
        for pieces, scaled in ((self.affine, W), (self.decoder.pieces, share * W)):
            if pieces is not None:
                pieces.mu.copy_(affine.mu)
                pieces.W.copy_(scaled)
        self.decoder.unit.copy_(rows.std().clamp(min=1e-6))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Mu and W in the samples' own unit; matrices of networks, which may decay; the rest of them."""
        pieces = [] if self.decoder.pieces is None else list(self.decoder.pieces.parameters())
        apart = {id(p) for p in [*pieces, *(() if self.affine is None else self.affine.parameters())]}
        free = [p for p in self.parameters() if id(p) not in apart]
        groups: list[dict[str, Any]] = [
            {"params": pieces[:1], "rate": PIECES_RATE},
            {"params": pieces[1:], "rate": PIECES_RATE * W_RATE},
            {"params": [p for p in free if p.dim() > 1], "decays": True},
            {"params": [p for p in free if p.dim() < 2]},
        ]
        return [group for group in groups if group["params"]]

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """The code of x (n, D): the best of all components, or the one the affine model chooses."""
        with self._precision(x):
            k, b = self._begun(x)
            rows = zip(x.split(CLIMBED_ROWS), k.split(CLIMBED_ROWS), b.split(CLIMBED_ROWS), strict=True)
            parts = [self._climbed(*part) for part in rows] if self.n_step else [b]
            return Code(k, torch.cat(parts) if parts else b)

    def decode(self, code: Code) -> Tensor:
        """g(k, b), shape (n, D)."""
        return self.decoder(code.k, code.b)

    def loss(self, x: Tensor) -> Tensor:
        """Mean L2 of x (n, D); k is chosen without gradient."""
        with self._precision(x):
            k, b = self._begun(x)
            if self.ascent == "through":
                b = self._climbed(x, k, b, through=True)
            elif self.ascent == "given":
                b = b + (self._climbed(x, k, b) - b).detach()
            return (x - self.decoder(k, b)).square().sum() / x.numel()

    def _precision(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.lower_precision)

    def _begun(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The component k (n,) of each sample, and the b (n, E) that its ascent begins at."""
        if self.affine is None:
            return self._best(x), x.new_zeros(len(x), self.E)
        with torch.autocast(x.device.type, enabled=False):  # which component it is depends on the last digits
            k, b, _ = self.affine.encode(x)
        return k, b if self.guide is None else self.guide(k, x / self.decoder.unit).to(x)

    @torch.no_grad()
    def _best(self, x: Tensor) -> Tensor:
        """The component k (n,) that is best after the ascent from b = 0 under each."""
        each = torch.arange(self.K, device=x.device)
        chosen = [each.new_zeros(len(x))] if self.K == 1 else []
        for rows in x.split(max(1, TRIED_ROWS // self.K)) if self.K > 1 else ():
            k, tried = each.repeat(len(rows)), rows.repeat_interleave(self.K, 0)  # every row under every component
            b = self._climbed(tried, k, tried.new_zeros(len(k), self.E))
            squared = (tried - self.decoder(k, b)).square().sum(1)
            chosen.append(squared.view(-1, self.K).argmin(1))
        return torch.cat(chosen) if chosen else each[:0]

    def _climbed(self, x: Tensor, k: Tensor, b: Tensor, through: bool = False) -> Tensor:
        """Latents b after T steps of the ascent; part of the graph where trained `through` them."""
        with torch.enable_grad():
            for _ in range(self.n_step):
                b = b if through and b.requires_grad else b.detach().requires_grad_()
                downhill = (x - self.decoder(k, b)).square().sum() / 2 + self.alpha / 2 * b.square().sum()
                (slope,) = torch.autograd.grad(downhill, b, create_graph=through)
                b = b - self.beta * slope
        return b if through else b.detach()


class Decoder(nn.Module):
    """g(k, b) = mu_k + W_k b + unit * network(k, b), either part left out where it is None.

    `unit` is about the standard deviation of a value, so that networks work with numbers of about one.
    """

    unit: Tensor

    def __init__(self, pieces: LLGAE | None, network: Network | None):
        super().__init__()
        self.pieces, self.network = pieces, network
        self.register_buffer("unit", torch.ones(()))

    @torch.no_grad()
    def initialise(self, rows: Tensor, generator: torch.Generator) -> None:
        """Random pieces and network."""
        self.unit.copy_(rows.std(correction=0).clamp(min=1e-6))
        if self.pieces is not None:
            self.pieces.initialise(rows, generator)
        if self.network is not None:
            self.network.initialise(generator)

    def forward(self, k: Tensor, b: Tensor) -> Tensor:
        """x_hat, shape (n, D)."""
        parts = []
        if self.pieces is not None:
            with torch.autocast(b.device.type, enabled=False):
                parts.append(self.pieces.decode(Code(k, b.to(self.unit))))
        if self.network is not None:
            parts.append(self.unit * self.network(k, b).to(self.unit))
        return sum(parts[1:], start=parts[0])
