"""What all models share: encode(x) -> code, decode(code) -> x_hat, loss(x) -> mean L2."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Code(NamedTuple):
    """The code of n samples.

    k (n,) int64: which component. b (n, E): numbers. s (n, S) int64: further symbols, None where a model has none.
    """

    k: Tensor
    b: Tensor
    s: Tensor | None = None

    def to(self, device: torch.device) -> "Code":
        """Return the code with its tensors on a device."""
        return Code(self.k.to(device), self.b.to(device), None if self.s is None else self.s.to(device))


class Model(nn.Module):
    """A generative autoencoder: a decoder, and a way to find the code of a sample.

    K        values that k takes; 1 for a model without components
    D        values of a sample
    E        numbers in b
    symbols  how many values each further symbol of the code takes, () without
    k_suffix words for titles such as " of the first level", where k counts the components of one of several levels
    """

    K: int
    D: int
    E: int
    symbols: tuple[int, ...] = ()
    k_suffix: str = ""

    def encode(self, x: Tensor) -> Code:
        """The code of x (n, D), found without gradient."""
        raise NotImplementedError

    def decode(self, code: Code) -> Tensor:
        """x_hat (n, D)."""
        raise NotImplementedError

    def residual(self, x: Tensor, code: Code) -> Tensor:
        """X - x_hat with shape (n, D); far from the origin with digits that x_hat, rounded, no longer has."""
        return x - self.decode(code)

    def loss(self, x: Tensor) -> Tensor:
        """Mean L2 of x (n, D), mean over samples and pixels of the squared residual; differentiable."""
        raise NotImplementedError

    def initialise(self, rows: Tensor, generator: torch.Generator) -> None:
        """A random start; `rows` (m, D), at least K, are random training samples."""
        raise NotImplementedError

    def begin_from(self, affine: Any, rows: Tensor, generator: torch.Generator) -> None:
        """Take mu and W from `affine`, a trained LLGAE, in place of random ones; `rows` (m, D) are training samples."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The parameters for an optimiser: `params`, `rate` (in learning rates), `decays` (whether they may)."""
        return [{"params": list(self.parameters())}]

    def step_limit(self) -> float:
        """The largest stable step size of the ascent on b; infinity where it is not known or there is none."""
        return math.inf

    def step_size_problem(self) -> str | None:
        """Return a line where beta is beyond the largest stable step size and the ascent on b diverges, else None."""
        return None

    def jacobian(self, at: Code) -> Tensor:
        """D x_hat / d b at the codes `at` of m rows, shape (m, D, E); what W_k is to an affine decoder."""
        m = len(at.k)
        row = torch.arange(m, device=self.device).repeat_interleave(self.E)
        k, b, s = at.k.to(self.device)[row], at.b.to(next(self.parameters()))[row], at.s

        ways = torch.eye(self.E, device=self.device, dtype=b.dtype).repeat(m, 1)
        with torch.enable_grad():
            b = b.detach().requires_grad_()
            x_hat = self.decode(Code(k, b, None if s is None else s.to(self.device)[row]))
            # J v for all v by two backward passes: J^T u is linear in u, and its slope along v is J v.
            u = torch.zeros_like(x_hat, requires_grad=True)
            (back,) = torch.autograd.grad(x_hat, b, u, create_graph=True)
            (along,) = torch.autograd.grad(back, u, ways)
        return along.view(m, self.E, self.D).mT

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device
