"""Soft LLGAE: the pieces blend into each other, by gates, and share one latent."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from llgae_cli import inference as infer
from llgae_cli.models.base import Code, Model
from llgae_cli.models.llgae import LLGAE

CHUNK = 1024  # rows encoded at once: each has a Gram matrix of its own
FIRST_STEP = 0.5  # of the ascent on w, in units of the spread of the centres
GATE_SPREAD = 6.0  # of the first centres: far enough apart that each has gates close to one of its own


class _Projected(NamedTuple):
    """What inference needs of samples and components, whatever the gates; all seen from the mean of the mu_k."""

    squared: Tensor  # (n,), |x|^2
    means: Tensor  # (n, K), x mu_k
    bases: Tensor  # (n, K E), W_k^T x
    mean_gram: Tensor  # (K, K), mu_j mu_k
    mixed: Tensor  # (K, K E), W_k^T mu_j
    base_gram: Tensor  # (K K, E E), W_j^T W_k


class SoftLLGAE(Model):
    """LLGAE with soft gates, the smoothed form in the draft section of CATSMILE-1022.

        x_hat = sum_k g_k (mu_k + W_k b),    g = softmax(-tau |x - mu|^2)     gates from the sample ("data")
                                             g = softmax(-|w - a|^2 / 2)      gates from an embedding ("embedding")

    For given gates this is one affine model a sample, m = sum g_k mu_k and W = sum g_k W_k, so b is found as in LLGAE:
    T ascent steps from 0 that collapse into a matrix, or least squares. With tau -> infinity it is the hard model
    that takes the nearest mean.

    The decoder needs the gates, so they are part of the code. Gates from the sample are K further numbers: b, then g.
    An embedding w (F,) is F numbers whatever K is: b, then w. It is found by ascent as well: from the best of the K
    centres a_k, T steps along the gradient of the likelihood with b solved for, each step halved where it would fall.

    Parameters mu (K, D), W (K, D, E), and a (K, F) where the gates come from an embedding. In the contract's terms
    this model has no components (its K is 1), for no sample belongs to one.
    """

    mu: nn.Parameter
    W: nn.Parameter
    a: nn.Parameter

    def __init__(
        self,
        K: int,
        D: int,
        E: int,
        *,
        tau: float = 1e-5,
        gate_dim: int = 0,
        beta: float = 0.01,
        n_step: int = 5,
        alpha: float = 0.0,
        inference: str = "collapse",
    ):
        """`gate_dim` F: numbers in the embedding; 0 takes the gates from the sample."""
        super().__init__()
        self.K, self.D, self.E = 1, D, E + (gate_dim or K)
        self.latents, self.gate_dim, self.tau = E, gate_dim, tau
        self.beta, self.n_step, self.alpha, self.inference = beta, n_step, alpha, inference
        self.mu = nn.Parameter(torch.zeros(K, D))
        self.W = nn.Parameter(torch.zeros(K, D, E))
        if gate_dim:
            self.a = nn.Parameter(torch.zeros(K, gate_dim))

    @torch.no_grad()
    def initialise(self, rows: Tensor, generator: torch.Generator) -> None:
        """Mu_k random samples (repeated where K is more), W uniform in +-1/sqrt(D), a normal."""
        K = len(self.mu)
        self.mu.copy_(rows[torch.arange(K) % len(rows)])
        self.W.copy_((torch.rand(self.W.shape, generator=generator) * 2 - 1) / self.D**0.5)
        self._place_centres(generator)

    @torch.no_grad()
    def begin_from(self, affine: LLGAE, rows: Tensor, generator: torch.Generator) -> None:
        """Take mu and W from a trained LLGAE; centres of nearby components lie near each other."""
        self.mu.copy_(affine.mu)
        self.W.copy_(affine.W)
        self._place_centres(generator)

    def _place_centres(self, generator: torch.Generator) -> None:
        """The centres a_k: the means in their leading principal coordinates, and noise where those are too few."""
        if not self.gate_dim:
            return
        a = torch.randn(self.a.shape, generator=generator).to(self.a) * 0.1
        centred = self.mu - self.mu.mean(0)
        U, S, _ = torch.linalg.svd(centred, full_matrices=False)
        F = min(self.gate_dim, len(S))
        a[:, :F] += (U * S)[:, :F] / (S[0] / len(S) ** 0.5).clamp(min=1e-12) * GATE_SPREAD
        self.a.copy_(a)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Code with k = 0 and b (n, E): the latents, then the gates or their embedding."""
        parts = []
        for rows in x.split(CHUNK):
            p = self._projected(rows)
            w = self._embedding(p) if self.gate_dim else None
            g = self.gates(rows) if w is None else self.embedded_gates(w)
            c, G = self._blended(p, g)
            b = torch.einsum("nef,nf->ne", self._map(G), c)
            parts.append(torch.cat([b, g if w is None else w], 1))
        b = torch.cat(parts) if parts else x.new_empty(0, self.E)
        return Code(torch.zeros(len(x), dtype=torch.int64, device=x.device), b)

    def decode(self, code: Code) -> Tensor:
        """x_hat = sum_k g_k (mu_k + W_k b), shape (n, D)."""
        b, rest = code.b.split([self.latents, self.E - self.latents], 1)
        g = self.embedded_gates(rest) if self.gate_dim else rest
        K, D, E = self.W.shape
        # One product for all components: (g_k b_e) against W_ke.
        weighted = (g[:, :, None] * b[:, None, :]).flatten(1)  # (n, K E)
        return torch.addmm(g @ self.mu, weighted, self.W.permute(0, 2, 1).reshape(K * E, D))

    def loss(self, x: Tensor) -> Tensor:
        """Mean L2 of x (n, D); differentiable in mu, W, through the steps and the gates.

        An embedding is found without gradient and taken as given: it is close to a maximum, where it does not matter.
        """
        p = self._projected(x)
        g = self.embedded_gates(self._embedding(p)) if self.gate_dim else self.gates(x)
        return self._left(p, g).sum() / x.numel()

    def gates(self, x: Tensor) -> Tensor:
        """softmax_k(-tau |x - mu_k|^2), shape (n, K)."""
        m = self.mu.mean(0)  # seen from here, a common offset costs no digits
        x, mu = x - m, self.mu - m
        return torch.softmax(self.tau * (2 * x @ mu.T - mu.square().sum(1)), 1)

    def embedded_gates(self, w: Tensor) -> Tensor:
        """softmax_k(-|w - a_k|^2 / 2), shape (n, K), for w (n, F)."""
        return torch.softmax(w @ self.a.T - self.a.square().sum(1) / 2, 1)

    def _projected(self, x: Tensor) -> _Projected:
        """The products with x (n, D): 2 n D K (E + 1) operations, once, however many gates are then tried."""
        K, D, E = self.W.shape
        m = self.mu.mean(0)
        x, mu = x - m, self.mu - m
        flat = self.W.permute(1, 0, 2).reshape(D, K * E)
        grams = (flat.T @ flat).view(K, E, K, E).permute(0, 2, 1, 3).reshape(K * K, E * E)
        return _Projected(x.square().sum(1), x @ mu.T, x @ flat, mu @ mu.T, mu @ flat, grams)

    def _blended(self, p: _Projected, g: Tensor) -> tuple[Tensor, Tensor]:
        """For gates g (n, K): c = W^T (x - m), (n, E), and G = W^T W, (n, E, E), of the affine model they make.

        Operations: 2 n K^2 E (1 + E), none with D.
        """
        K, _, E = self.W.shape
        c = torch.einsum("nke,nk->ne", (p.bases - g @ p.mixed).view(-1, K, E), g)
        pairs = (g[:, :, None] * g[:, None, :]).flatten(1)  # (n, K K)
        return c, (pairs @ p.base_gram).view(-1, E, E)

    def _map(self, G: Tensor) -> Tensor:
        return infer.MAPS[self.inference](G, self.beta, self.n_step, self.alpha)

    def _left(self, p: _Projected, g: Tensor) -> Tensor:
        """|x - x_hat|^2 of each sample, (n,): |x - m|^2 - c^T Q c."""
        c, G = self._blended(p, g)
        Q = infer.gain(self._map(G), G)
        off = p.squared - 2 * (g * p.means).sum(1) + (g * (g @ p.mean_gram)).sum(1)
        return off - torch.einsum("ne,nef,nf->n", c, Q, c)

    @torch.no_grad()
    def _embedding(self, p: _Projected) -> Tensor:
        """The w (n, F) of samples: from the best of the centres, T steps up the likelihood, b solved for at each."""
        n, K = p.means.shape
        tried = torch.stack([self._left(p, g.expand(n, K)) for g in self.embedded_gates(self.a)], 1)
        lowest, k = tried.min(1)
        w = self.a[k]
        step = torch.full_like(lowest, FIRST_STEP)
        for _ in range(self.n_step):
            with torch.enable_grad():
                at = w.detach().requires_grad_()
                (slope,) = torch.autograd.grad(self._left(_detached(p), self.embedded_gates(at)).sum(), at)
            way = slope / torch.linalg.vector_norm(slope, dim=1, keepdim=True).clamp(min=1e-30)
            onward = w - step[:, None] * way
            there = self._left(p, self.embedded_gates(onward))
            better = there < lowest
            w = torch.where(better[:, None], onward, w)
            lowest = torch.where(better, there, lowest)
            step = torch.where(better, step, step / 2)
        return w


def _detached(p: _Projected) -> _Projected:
    return _Projected(*(part.detach() for part in p))
