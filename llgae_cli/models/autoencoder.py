"""The ordinary and the denoising autoencoder, for comparison: an encoder network and a decoder network."""

import torch
from torch import Tensor, nn

from llgae_cli.models.base import Code, Model, Parts
from llgae_cli.models.networks import Network


class Autoencoder(Model):
    """Autoencoder b = encoder((x - mu) / unit), x_hat = mu + unit * decoder(b), without components (K = 1).

    With `denoising_loss` it is the denoising autoencoder (Vincent et al., 2008), which the source document compares its
    model with. Parameters: the networks and mu (D,), initially the mean of the samples. `unit` is about the standard
    deviation of a value, so that the networks work with numbers of about one.
    """

    unit: Tensor

    def __init__(self, encoder: Network, decoder: Network, D: int, E: int, lower_precision: bool = False):
        """`lower_precision`: compute the products of the networks in bfloat16, except in `decode`."""
        super().__init__()
        self.lower_precision = lower_precision
        self.K, self.D, self.E = 1, D, E
        self.encoder, self.decoder = encoder, decoder
        self.mu = nn.Parameter(torch.zeros(D))
        self.register_buffer("unit", torch.ones(()))

    @torch.no_grad()
    def initialise(self, rows: Tensor, generator: torch.Generator) -> None:
        """Draw random networks; set mu and unit from `rows` (m, D)."""
        self.mu.copy_(rows.mean(0))
        self.unit.copy_(rows.std(correction=0).clamp(min=1e-6))
        self.encoder.initialise(generator)
        self.decoder.initialise(generator)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Return codes with k = 0 and b (n, E), for x (n, D)."""
        with self._precision(x):
            return Code(self._k(x), self._b(x))

    def decode(self, code: Code) -> Tensor:
        """Return x_hat = mu + unit * decoder(b), shape (n, D)."""
        return self.mu + self.unit * self.decoder(code.k, code.b).to(self.unit)

    def decoder_parts(self) -> Parts:
        """Return mu, as that of the only component, and the decoder network."""
        return Parts(self.mu[None], None, self.unit, self.decoder)

    def loss(self, x: Tensor) -> Tensor:
        """Return the mean L2 of x (n, D)."""
        return self.denoising_loss(x, x)

    def denoising_loss(self, x: Tensor, noisy: Tensor) -> Tensor:
        """Return the mean L2 of x (n, D) reconstructed from `noisy`, x plus noise."""
        with self._precision(x):
            b = self._b(noisy)
            return (x - self.decode(Code(self._k(x), b))).square().sum() / x.numel()

    def _precision(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.lower_precision)

    def _k(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def _b(self, x: Tensor) -> Tensor:
        return self.encoder(self._k(x), (x - self.mu) / self.unit).to(x)
