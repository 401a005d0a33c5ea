"""What all models share: encode(x) -> code, decode(code) -> x_hat, loss(x) -> mean L2."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Code(NamedTuple):
    """The code of n samples.

    k (n,) int64: which component. b (n, E): numbers. s (n, S) int64: further symbols, None where a model has none.
    """

    k: Tensor
    b: Tensor
    s: Tensor | None = None


class Model(nn.Module):
    """A generative autoencoder: a decoder, and a way to find the code of a sample.

    K        values that k takes; 1 for a model without components
    D        values of a sample
    E        numbers in b
    symbols  how many values each further symbol of the code takes, () without
    """

    K: int
    D: int
    E: int
    symbols: tuple[int, ...] = ()

    def encode(self, x: Tensor) -> Code:
        """The code of x (n, D), found without gradient."""
        raise NotImplementedError

    def decode(self, code: Code) -> Tensor:
        """x_hat (n, D)."""
        raise NotImplementedError

    def loss(self, x: Tensor) -> Tensor:
        """Mean L2 of x (n, D), mean over samples and pixels of the squared residual; differentiable."""
        raise NotImplementedError

    def initialise(self, rows: Tensor, generator: torch.Generator) -> None:
        """A random start; `rows` (m, D) are random training samples, K of them or all there are."""
        raise NotImplementedError

    def step_limit(self) -> float:
        """The largest stable step size of the ascent on b; infinity where it is not known or there is none."""
        return math.inf

    def jacobian(self, at: Code) -> Tensor:
        """D x_hat / d b at the codes `at` of m rows, shape (m, D, E); what W_k is to an affine decoder."""
        m = len(at.k)
        row = torch.arange(m, device=self.device).repeat_interleave(self.E)
        k, b, s = at.k.to(self.device)[row], at.b.to(next(self.parameters()))[row], at.s

        def decoded(b: Tensor) -> Tensor:
            return self.decode(Code(k, b, None if s is None else s.to(self.device)[row]))

        ways = torch.eye(self.E, device=self.device, dtype=b.dtype).repeat(m, 1)
        along = torch.func.jvp(decoded, (b,), (ways,))[1]
        return along.detach().view(m, self.E, self.D).mT

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device
