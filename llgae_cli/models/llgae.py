"""LLGAE: K affine subspaces mu_k + W_k b; the code (k, b) comes from ascent on the likelihood, not from a network."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llgae_cli import inference as infer
from llgae_cli.models.base import Code, Model, Parts


class LLGAE(Model):
    """Locally linear generative autoencoder (CATSMILE-1022); K = 1 is LGAE (PCA), E = 0 is k-means.

        b_k   = T ascent steps of size beta on -1/2 |x - mu_k - W_k b|^2 - alpha/2 |b|^2, from b = 0
        k     = argmin_k |x - mu_k - W_k b_k|^2
        x_hat = mu_k + W_k b_k

    Parameters mu (K, D) and W (K, D, E). `inference` is the method that computes b: see `inference.INFERENCES`.
    """

    mu: nn.Parameter
    W: nn.Parameter

    def __init__(
        self,
        K: int,
        D: int,
        E: int,
        *,
        beta: float = 0.01,
        n_step: int = 5,
        alpha: float = 0.0,
        inference: str = "collapse",
        near_zero: bool = False,
    ):
        """Build a model of zeros. `near_zero` is how `initialise` draws its parameters."""
        super().__init__()
        self.K, self.D, self.E = K, D, E
        self.beta, self.n_step, self.alpha, self.inference = beta, n_step, alpha, inference
        self.near_zero = near_zero
        self.mu = nn.Parameter(torch.zeros(K, D))
        self.W = nn.Parameter(torch.zeros(K, D, E))

    @torch.no_grad()
    def initialise(self, rows: Tensor, generator: torch.Generator) -> None:
        """Set mu to the first K rows, which are random samples, and W uniform in +-1/sqrt(D), as in a linear layer.

        With `near_zero`, as in the author's program: mu uniform in +-1/sqrt(D), W uniform in +-1/sqrt(D E K).
        """
        W = torch.rand(self.W.shape, generator=generator) * 2 - 1
        if self.near_zero:
            mu = torch.rand(self.mu.shape, generator=generator) * 2 - 1
            self.mu.copy_(mu / self.D**0.5)
            self.W.copy_(W / max(1, self.W.numel()) ** 0.5)
            return
        self.mu.copy_(rows[: self.K])
        self.W.copy_(W / nn.init.calculate_gain("linear") / self.D**0.5)

    @torch.no_grad()
    def initialise_from(self, affine: "LLGAE", rows: Tensor, generator: torch.Generator) -> None:
        """Copy mu and W."""
        self.load_state_dict(affine.state_dict())

    def step_limit(self) -> float:
        """Return 2 / max eigenvalue of W^T W + alpha; infinity for least squares, which takes no steps."""
        if self.inference == "least-squares":
            return float("inf")
        return infer.step_limit(self.W.detach(), self.alpha)

    def step_size_problem(self) -> str | None:
        """Return a line where T > 1 ascent steps of size beta diverge, else None."""
        limit = self.step_limit()
        if self.n_step <= 1 or self.beta <= limit * (1 + 1e-6):
            return None
        return (
            f"beta: {self.beta:g} is beyond {limit:.4g} = 2 / max eigenvalue of W^T W + alpha: the ascent on b diverges"
        )

    def as_llgae(self) -> "LLGAE":
        """Return the model itself."""
        return self

    def decoder_parts(self) -> Parts:
        """Return mu and W."""
        return Parts(self.mu, self.W)

    def jacobian(self, at: Code) -> Tensor:
        """Return W_k, shape (m, D, E)."""
        return self.W.detach()[at.k]

    def maps(self) -> tuple[Tensor, Tensor]:
        """Return P, Q (K, E, E): b = P c and |x - mu - W b|^2 = |x - mu|^2 - c^T Q c, for c = W^T (x - mu)."""
        G = self.W.mT @ self.W
        P = self._map(G)
        return P, infer.gain(P, G)

    def _map(self, G: Tensor) -> Tensor:
        return infer.MAPS[self.inference](G, self.beta, self.n_step, self.alpha)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Return the code of x (n, D): the best component k (n,) and its latents b (n, E)."""
        if self.inference == "loop":
            parts = [self._encode_by_loop(part) for part in x.split(max(1, infer.LOOP_VALUES // (self.K * self.D)))]
            return Code(*(torch.cat(column) for column in zip(*parts, strict=True)))
        P, Q = self.maps()
        k = infer.nearest(x, self.mu, self.W, Q, self._map)
        return Code(k, self.encode_in(x, k, P))

    @torch.no_grad()
    def choose(self, x: Tensor) -> Tensor:
        """Return the best component k (n,) of x (n, D), as `encode` does."""
        if self.inference == "loop":
            return self.encode(x).k
        return infer.nearest(x, self.mu, self.W, self.maps()[1], self._map)

    @torch.no_grad()
    def measure_all(self, x: Tensor) -> Tensor:
        """Return |x - mu_k - W_k b_k|^2 of x (n, D) under all components, (n, K), from differences of squares."""
        if self.inference == "loop":
            return self.encode_all(x)[1]
        origin = self.mu.mean(0)
        centred = x - origin
        lower = infer.relative_distances(centred, self.mu - origin, *infer.fold(self.W, self.maps()[1]))
        return (lower + centred.square().sum(1, keepdim=True)).clamp(min=0)

    def _encode_by_loop(self, x: Tensor) -> tuple[Tensor, Tensor]:
        b, squared = self.encode_all(x)
        k = squared.argmin(1)
        return k, b[torch.arange(len(x), device=x.device), k]

    def encode_in(self, x: Tensor, k: Tensor, P: Tensor | None = None) -> Tensor:
        """Return the latents b (n, E) of x (n, D) in the given components k (n,); differentiable.

        Without gradients, float32 latents depend on their row alone, to the last bit.
        """
        P = self.maps()[0] if P is None else P
        is_float32 = x.dtype == self.W.dtype == torch.float32
        if is_float32 and not torch.is_grad_enabled() and x.device.type != "mps":  # which has no float64
            return infer.project_exactly(x, k, self.mu, self.W, P)
        return self._by_component(k, lambda j, rows: (x[rows] - self.mu[j]) @ self.W[j] @ P[j].T)

    def decode(self, code: Code) -> Tensor:
        """Return x_hat = mu_k + W_k b, shape (n, D)."""
        return self._by_component(code.k, lambda j, rows: torch.addmm(self.mu[j], code.b[rows], self.W[j].T))

    def residual(self, x: Tensor, code: Code) -> Tensor:
        """Return (x - mu_k) - W_k b, shape (n, D)."""
        return self._by_component(
            code.k, lambda j, rows: torch.addmm(x[rows] - self.mu[j], code.b[rows], self.W[j].T, alpha=-1)
        )

    def loss(self, x: Tensor, k: Tensor | None = None) -> Tensor:
        """Return the mean L2 of x (n, D); differentiable in mu, W and x.

        k is chosen without gradient, or given. The gradient passes only through the component k, including its T steps,
        which the (E, E) matrix Q contains.
        """
        if self.inference == "loop":
            squared = self.encode_all(x)[1]
            return (squared.min(1).values if k is None else squared.gather(1, k[:, None])).sum() / x.numel()
        _, Q = self.maps()
        if k is None:
            with torch.no_grad():
                k = infer.nearest(x, self.mu, self.W, Q, self._map)
        return _SquaredResidual.apply(self.mu, self.W, Q, x, k) / x.numel()

    def encode_all(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return b (n, K, E) and squared residuals (n, K) under all components, by the loop of the source document."""
        b = infer.loop(x, self.mu, self.W, self.beta, self.n_step, self.alpha)
        x_hat = self.mu + torch.einsum("kde,nke->nkd", self.W, b)
        return b, (x[:, None] - x_hat).square().sum(2)

    def _by_component(self, k: Tensor, compute: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Return the results of compute(j, rows) for each component j in use, in the order of the rows of k (n,)."""
        order = torch.argsort(k)
        counts = torch.bincount(k, minlength=self.K).tolist()
        used = [(j, rows) for j, rows in enumerate(order.split(counts)) if len(rows)]
        used = used or [(0, order)]  # without rows, one empty part of the right width
        return _restore_order([compute(j, rows) for j, rows in used], order)


def _restore_order(parts: list[Tensor], order: Tensor) -> Tensor:
    """Return the rows of all parts, sorted by `order`, in the original order, with one copy."""
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return torch.cat(parts).index_select(0, inverse)


class _SquaredResidual(torch.autograd.Function):
    """Computes sum_i |r_i|^2 - c_i^T Q_k c_i with r = x - mu_k and c = W_k^T r, with gradients in mu, W, Q and x.

    The gradients are written out, because autograd's overhead a component is three times the arithmetic:
        dQ_k = -sum c c^T,   dW_k = -2 sum r (Q_k c)^T,   dmu_k = -2 (sum r - W_k Q_k sum c),   dx = 2 (r - W_k Q_k c)
    """

    @staticmethod
    def forward(ctx, mu, W, Q, x, k):  # type: ignore[no-untyped-def]
        K, E = W.shape[0], W.shape[2]
        order = torch.argsort(k)
        k = k[order]
        counts = torch.bincount(k, minlength=K).tolist()
        r = torch.index_select(x, 0, order).sub_(mu.index_select(0, k))
        c = x.new_empty(len(x), E)
        second = W.new_zeros(K, E, E)
        for j, (r_j, c_j) in enumerate(zip(r.split(counts), c.split(counts), strict=True)):
            if len(r_j):
                torch.mm(r_j, W[j], out=c_j)
                torch.mm(c_j.T, c_j, out=second[j])
        ctx.save_for_backward(W, Q, r, c, k, second, order)
        ctx.counts = counts
        # By rounding, the residual of a perfect fit may come out slightly negative.
        return (torch.linalg.vector_norm(r, dim=1).square().sum() - (Q * second).sum()).clamp(min=0)

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        W, Q, r, c, k, second, order = ctx.saved_tensors
        K, E = W.shape[0], W.shape[2]
        Qc = (c[:, None, :] @ Q.index_select(0, k))[:, 0] if E else c  # Q is symmetric
        dW = torch.zeros_like(W)
        for j, (r_j, Qc_j) in enumerate(zip(r.split(ctx.counts), Qc.split(ctx.counts), strict=True)):
            if len(r_j) and E:
                torch.mm(r_j.T, Qc_j, out=dW[j])
        winners = torch.nn.functional.one_hot(k, K).to(r.dtype)  # (n, K); a product sums over a component's rows
        inside = (W @ (winners.T @ Qc)[:, :, None])[:, :, 0]
        dmu = winners.T @ r - inside
        dx = None
        if ctx.needs_input_grad[3]:
            parts = zip(r.split(ctx.counts), Qc.split(ctx.counts), W, strict=True)
            dx = 2 * upstream * _restore_order([r_j - Qc_j @ W_j.T for r_j, Qc_j, W_j in parts], order)
        return -2 * upstream * dmu, -2 * upstream * dW, -upstream * second, dx, None
