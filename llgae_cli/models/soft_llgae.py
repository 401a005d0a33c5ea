"""Soft LLGAE: gates blend the affine pieces, which share one latent."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from llgae_cli import inference as infer
from llgae_cli.models.base import Code, Model
from llgae_cli.models.llgae import LLGAE

CHUNK = 1024  # rows encoded at once: each row needs its own Gram matrix
FIRST_STEP = 0.5  # first step size of the ascent on w, in the unit of the centres a
GATE_SPREAD = 6.0  # scale of the initial centres: so far apart that at each centre one gate is close to 1


class _Projected(NamedTuple):
    """Products of samples and components that do not depend on the gates; the origin is the mean of the mu_k."""

    squared: Tensor  # (n,), |x|^2
    means: Tensor  # (n, K), x mu_k
    bases: Tensor  # (n, K E), W_k^T x
    mean_gram: Tensor  # (K, K), mu_j mu_k
    mixed: Tensor  # (K, K E), W_k^T mu_j
    base_gram: Tensor  # (K K, E E), W_j^T W_k


class SoftLLGAE(Model):
    """LLGAE with soft gates: the smoothed form in the draft section of CATSMILE-1022.

        x_hat = sum_k g_k (mu_k + W_k b),    g = softmax(-tau |x - mu|^2)     gates from the sample ("data")
                                             g = softmax(-|w - a|^2 / 2)      gates from an embedding ("embedding")

    For given gates each sample has one affine model, with m = sum g_k mu_k and W = sum g_k W_k, and b is computed as in
    LLGAE: by T ascent steps from 0, collapsed into a matrix, or by least squares. With tau -> infinity this is the hard
    model with the nearest mean.

    The decoder needs the gates, so they are part of the code. Gates from the sample are K further numbers: b, then g.
    An embedding w (F,) is F numbers for any K: b, then w. It comes from an ascent too: from the best of the K centres
    a_k, T steps along the gradient of the likelihood, at the b that is best for each w. A step that lowers the
    likelihood is rejected, and the step size halved.

    Parameters mu (K, D), W (K, D, E), and a (K, F) where the gates come from an embedding. The attribute `K` is 1,
    because no sample belongs to one component.
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
        """`gate_dim`: F, the dimension of the embedding; 0: gates from the sample."""
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
        """Set mu to random samples (repeated where K is larger), W uniform in +-1/sqrt(D), and the centres by mu."""
        K = len(self.mu)
        self.mu.copy_(rows[torch.arange(K) % len(rows)])
        self.W.copy_((torch.rand(self.W.shape, generator=generator) * 2 - 1) / self.D**0.5)
        self._place_centres(generator)

    @torch.no_grad()
    def initialise_from(self, affine: LLGAE, rows: Tensor, generator: torch.Generator) -> None:
        """Copy mu and W from a trained LLGAE; centres of components with near means are near each other."""
        self.mu.copy_(affine.mu)
        self.W.copy_(affine.W)
        self._place_centres(generator)

    def _place_centres(self, generator: torch.Generator) -> None:
        """Set the centres a_k to the means in their leading principal coordinates, plus noise."""
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
        """Return codes with k = 0 and b (n, E): the latents, then the gates or their embedding."""
        parts = []
        for rows in x.split(CHUNK):
            p = self._project(rows)
            w = self._embedding(p) if self.gate_dim else None
            g = self.gates(rows) if w is None else self.gates_from_embedding(w)
            c, G = self._blend(p, g)
            b = torch.einsum("nef,nf->ne", self._map(G), c)
            parts.append(torch.cat([b, g if w is None else w], 1))
        b = torch.cat(parts) if parts else x.new_empty(0, self.E)
        return Code(torch.zeros(len(x), dtype=torch.int64, device=x.device), b)

    def decode(self, code: Code) -> Tensor:
        """Return x_hat = sum_k g_k (mu_k + W_k b), shape (n, D)."""
        b, rest = code.b.split([self.latents, self.E - self.latents], 1)
        g = self.gates_from_embedding(rest) if self.gate_dim else rest
        K, D, E = self.W.shape
        # One product for all components: (g_k b_e) times W_ke.
        weighted = (g[:, :, None] * b[:, None, :]).flatten(1)  # (n, K E)
        return torch.addmm(g @ self.mu, weighted, self.W.permute(0, 2, 1).reshape(K * E, D))

    def loss(self, x: Tensor) -> Tensor:
        """Return the mean L2 of x (n, D); differentiable in mu and W, through the steps and the gates.

        An embedding is a constant in the gradient: close to a maximum of the likelihood, its derivative is negligible.
        """
        p = self._project(x)
        g = self.gates_from_embedding(self._embedding(p)) if self.gate_dim else self.gates(x)
        return self._squared_residual(p, g).sum() / x.numel()

    def gates(self, x: Tensor) -> Tensor:
        """Return softmax_k(-tau |x - mu_k|^2), shape (n, K)."""
        m = self.mu.mean(0)  # with this origin, a common offset costs no digits
        x, mu = x - m, self.mu - m
        return torch.softmax(self.tau * (2 * x @ mu.T - mu.square().sum(1)), 1)

    def gates_from_embedding(self, w: Tensor) -> Tensor:
        """Return softmax_k(-|w - a_k|^2 / 2), shape (n, K), for w (n, F)."""
        return torch.softmax(w @ self.a.T - self.a.square().sum(1) / 2, 1)

    def _project(self, x: Tensor) -> _Projected:
        """Return the products with x (n, D), 2 n D K (E + 1) operations: once for all gates that are evaluated."""
        K, D, E = self.W.shape
        m = self.mu.mean(0)
        x, mu = x - m, self.mu - m
        flat = self.W.permute(1, 0, 2).reshape(D, K * E)
        grams = (flat.T @ flat).view(K, E, K, E).permute(0, 2, 1, 3).reshape(K * K, E * E)
        return _Projected(x.square().sum(1), x @ mu.T, x @ flat, mu @ mu.T, mu @ flat, grams)

    def _blend(self, p: _Projected, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return c = W^T (x - m), (n, E), and G = W^T W, (n, E, E), of each sample's affine model for gates g (n, K).

        Operations: 2 n K^2 E (1 + E), independent of D.
        """
        K, _, E = self.W.shape
        c = torch.einsum("nke,nk->ne", (p.bases - g @ p.mixed).view(-1, K, E), g)
        pairs = (g[:, :, None] * g[:, None, :]).flatten(1)  # (n, K K)
        return c, (pairs @ p.base_gram).view(-1, E, E)

    def _map(self, G: Tensor) -> Tensor:
        return infer.MAPS[self.inference](G, self.beta, self.n_step, self.alpha)

    def _squared_residual(self, p: _Projected, g: Tensor) -> Tensor:
        """Return |x - x_hat|^2 of each sample, (n,), as |x - m|^2 - c^T Q c."""
        c, G = self._blend(p, g)
        Q = infer.gain(self._map(G), G)
        from_mean = p.squared - 2 * (g * p.means).sum(1) + (g * (g @ p.mean_gram)).sum(1)
        return from_mean - torch.einsum("ne,nef,nf->n", c, Q, c)

    @torch.no_grad()
    def _embedding(self, p: _Projected) -> Tensor:
        """Return w (n, F): from the best of the centres, T ascent steps on the likelihood, at the best b for each w."""
        n, K = p.means.shape
        squared = torch.stack([self._squared_residual(p, g.expand(n, K)) for g in self.gates_from_embedding(self.a)], 1)
        lowest, k = squared.min(1)
        w = self.a[k]
        step = torch.full_like(lowest, FIRST_STEP)
        detached = _Projected(*(part.detach() for part in p))
        for _ in range(self.n_step):
            with torch.enable_grad():
                at = w.detach().requires_grad_()
                squared = self._squared_residual(detached, self.gates_from_embedding(at)).sum()
                (slope,) = torch.autograd.grad(squared, at)
            direction = slope / torch.linalg.vector_norm(slope, dim=1, keepdim=True).clamp(min=1e-30)
            proposal = w - step[:, None] * direction
            proposed = self._squared_residual(p, self.gates_from_embedding(proposal))
            better = proposed < lowest
            w = torch.where(better[:, None], proposal, w)
            lowest = torch.where(better, proposed, lowest)
            step = torch.where(better, step, step / 2)
        return w
