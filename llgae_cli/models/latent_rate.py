"""The rate of quantised latents as a loss, for networks that are trained for a bit rate."""

import math

import torch
from torch import Tensor, nn

STEP, SPREAD = 0.1, 0.4  # initial, for latents that a guide network gives when it is new
LEAST = 1e-9  # probability of a cell, at least: a latent far outside would have an infinite cost


class LatentRate(nn.Module):
    """A quantiser step and a density for each latent of each component.

        q = round((b - location) / step)
        R = bits of k + sum_e -log2 [F(r_e + step_e / 2) - F(r_e - step_e / 2)],    r = b - location

    F is the distribution function of the logistic distribution with scale `spread`. Rounding has no gradient, so in
    training b + step u stands for the rounded latents, with u uniform in [-1/2, 1/2]: its density at a point is the
    probability of the cell around it. Source: Balle, Laparra and Simoncelli, End-to-end Optimized Image Compression,
    ICLR 2017.

    Steps and spreads are stored as logarithms; all are (K, E). `bits_k` is the entropy of k.
    """

    bits_k: Tensor

    def __init__(self, K: int, E: int):
        super().__init__()
        self.log_step = nn.Parameter(torch.full((K, E), math.log(STEP)))
        self.location = nn.Parameter(torch.zeros(K, E))
        self.log_spread = nn.Parameter(torch.full((K, E), math.log(SPREAD)))
        self.register_buffer("bits_k", torch.zeros(()))

    @torch.no_grad()
    def initialise(self, k: Tensor) -> None:
        """Set the initial values; `k` (m,) are components of training samples."""
        self.log_step.fill_(math.log(STEP))
        self.location.zero_()
        self.log_spread.fill_(math.log(SPREAD))
        share = torch.bincount(k, minlength=len(self.location)) / max(1, len(k))
        self.bits_k.copy_(-torch.special.xlogy(share, share).sum() / math.log(2))

    def add_noise(self, k: Tensor, b: Tensor, u: Tensor) -> Tensor:
        """Return b + step u, for components k (n,), latents b (n, E) and u (n, E) in [-1/2, 1/2]."""
        return b + self.log_step.exp()[k] * u

    def bits(self, k: Tensor, b: Tensor) -> Tensor:
        """Return R of each sample (n,), for components k (n,) and latents b (n, E)."""
        half, spread = self.log_step.exp()[k] / 2, self.log_spread.exp()[k]
        distance = (b - self.location[k]).abs()  # both terms are then below 1/2, where sigmoid keeps its digits
        mass = torch.sigmoid((half - distance) / spread) - torch.sigmoid((-half - distance) / spread)
        return self.bits_k - mass.clamp(min=LEAST).log2().sum(1)
