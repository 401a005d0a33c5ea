"""The interface that all models share: encode(x) -> code, decode(code) -> x_hat, loss(x) -> mean L2."""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from llgae_cli.models.llgae import LLGAE


class Code(NamedTuple):
    """The code of n samples.

    k  (n,) int64, the component
    b  (n, E), the latents
    s  (n, S) int64, further symbols; None for models without any
    """

    k: Tensor
    b: Tensor
    s: Tensor | None = None

    def to(self, device: torch.device) -> "Code":
        """Return the code with its tensors on a device."""
        return Code(self.k.to(device), self.b.to(device), None if self.s is None else self.s.to(device))


class Parts(NamedTuple):
    """A decoder x_hat = mu_k + W_k b + unit * network(k, b); a part that it does not have is None.

    mu (K, D); W (K, D, E); unit (); network(k (n,), b (n, E)) -> (n, D)
    """

    mu: Tensor | None
    W: Tensor | None
    unit: Tensor | None = None
    network: nn.Module | None = None


class Model(nn.Module):
    """A generative autoencoder: a decoder, and inference of the code of a sample.

    K        number of components; 1 for a model without
    D        number of values of a sample
    E        number of latents
    symbols  number of values of each further symbol of the code; () without
    k_suffix completes "component" in titles, for instance " of the first level" of a residual model
    """

    K: int
    D: int
    E: int
    symbols: tuple[int, ...] = ()
    k_suffix: str = ""

    def encode(self, x: Tensor) -> Code:
        """Return the code of x (n, D), without gradient."""
        raise NotImplementedError

    def decode(self, code: Code) -> Tensor:
        """Return x_hat (n, D)."""
        raise NotImplementedError

    def residual(self, x: Tensor, code: Code) -> Tensor:
        """Return x - x_hat, shape (n, D); models keep digits here that x - x_hat loses for x far from the origin."""
        return x - self.decode(code)

    def loss(self, x: Tensor) -> Tensor:
        """Return the mean L2 of x (n, D): mean over samples and values of the squared residual; differentiable."""
        raise NotImplementedError

    def begin_epoch(self, done: int) -> None:
        """Prepare for an epoch of training after `done` epochs, where the loss is not the same in all of them."""

    def denoising_loss(self, x: Tensor, noisy: Tensor) -> Tensor:
        """Return the mean L2 of x (n, D) reconstructed from `noisy` (n, D), x plus noise; autoencoders only."""
        raise NotImplementedError

    def rate_loss(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean L2 of x (n, D) with latents that are quantised, and their mean bits; both differentiable.

        u (n, E), uniform in [-1/2, 1/2], stands for the rounding in units of the steps. Models with a `rate` only.
        """
        raise NotImplementedError

    def initialise(self, rows: Tensor, generator: torch.Generator) -> None:
        """Set random parameters; `rows` (m, D), at least K, are random training samples."""
        raise NotImplementedError

    def initialise_from(self, affine: Any, rows: Tensor, generator: torch.Generator) -> None:
        """Copy mu and W from `affine`, a trained LLGAE, after `initialise`; `rows` (m, D) are training samples."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return groups for an optimiser: `params`, `rate` (over the learning rate), `decays` (by weight decay)."""
        return [{"params": list(self.parameters())}]

    def step_limit(self) -> float:
        """Return the largest stable step size of the ascent on b; infinity where unknown and without ascent."""
        return math.inf

    def step_size_problem(self) -> str | None:
        """Return a line where beta is beyond the largest stable step size and the ascent on b diverges, else None."""
        return None

    def as_llgae(self) -> "LLGAE | None":
        """Return the model if it is an LLGAE, K affine subspaces and nothing else, else None."""
        return None

    def decoder_parts(self) -> "Parts | None":
        """Return the parts of x_hat = mu_k + W_k b + unit * network(k, b), or None for another decoder."""
        return None

    def jacobian(self, at: Code) -> Tensor:
        """Return the derivative of x_hat by b at the codes `at` of m rows, (m, D, E): W_k for an affine decoder."""
        at, b = at.to(self.device), at.b.to(next(self.parameters()))
        if b.shape[1] == 0:
            return b.new_zeros(len(b), self.D, 0)
        with torch.enable_grad():
            b = b.detach().requires_grad_()
            x_hat = self.decode(at._replace(b=b))
            # Column e of J from two backward passes: (J^T u)_e is linear in u, with J's column e as its derivative.
            u = torch.zeros_like(x_hat, requires_grad=True)
            (product,) = torch.autograd.grad((x_hat * u).sum(), b, create_graph=True)
            columns = [torch.autograd.grad(each.sum(), u, retain_graph=True)[0] for each in product.T]
        return torch.stack(columns, 2)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device
