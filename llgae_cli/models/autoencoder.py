"""The ordinary autoencoder, to compare with: an encoder network, a decoder network; with noise, the denoising one."""

import torch
from torch import Tensor, nn

from llgae_cli.models.base import Code, Model
from llgae_cli.models.networks import Network


class Autoencoder(Model):
    """b = encoder(x), x_hat = mu + decoder(b): trained end to end on the mean L2, codes without components (K = 1).

    Trained to rebuild x from x plus noise it is the denoising autoencoder (Vincent et al., 2008), which the source
    document contrasts itself with. mu (D,) begins at the mean; `unit`, about the standard deviation of a value, keeps
    what the networks see and make near one.
    """

    unit: Tensor

    def __init__(self, encoder: Network, decoder: Network, D: int, E: int, lower_precision: bool = False):
        """`lower_precision`: the networks' products in bfloat16, but never in `decode`."""
        super().__init__()
        self.lower_precision = lower_precision
        self.K, self.D, self.E = 1, D, E
        self.encoder, self.decoder = encoder, decoder
        self.mu = nn.Parameter(torch.zeros(D))
        self.register_buffer("unit", torch.ones(()))

    @torch.no_grad()
    def initialise(self, rows: Tensor, generator: torch.Generator) -> None:
        """Random networks; mu and unit from `rows` (m, D)."""
        self.mu.copy_(rows.mean(0))
        self.unit.copy_(rows.std(correction=0).clamp(min=1e-6))
        self.encoder.initialise(generator)
        self.decoder.initialise(generator)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Code with k = 0 and b = encoder(x), shape (n, E)."""
        with self._precision(x):
            return Code(self._k(x), self._b(x))

    def decode(self, code: Code) -> Tensor:
        """x_hat = mu + decoder(b), shape (n, D)."""
        return self.mu + self.unit * self.decoder(code.k, code.b).to(self.unit)

    def loss(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """Mean L2 of x (n, D) rebuilt from `seen`, which is x unless it is a noisy copy."""
        with self._precision(x):
            b = self._b(x if seen is None else seen)
            return (x - self.decode(Code(self._k(x), b))).square().sum() / x.numel()

    def _precision(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.lower_precision)

    def _k(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def _b(self, x: Tensor) -> Tensor:
        return self.encoder(self._k(x), (x - self.mu) / self.unit).to(x)
