"""The leading directions of a component: axes of its own spread, in place of W's columns, which no one can compare.

W_k is what the decoder does near the centre of component k's codes: its Jacobian there, which for an affine decoder
is the same everywhere.

W may be replaced by W R for any invertible R without changing what the model can draw. A gradient-trained W has an
arbitrary R; a closed-form one has none left. With C_k the covariance of a component's latents,

    B_k = L R,  where L L^T = C_k and R holds the eigenvectors of L^T W^T W L, largest first,
    b   = mean_k + B_k a

makes the coordinates a uncorrelated with unit variance ("standard deviations"), and the pictures W B_j orthogonal:
they are the principal axes of W C W^T, the spread of what the component draws.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Directions:
    """`mean` (K, E): centre of the latents. `B` (K, E, E): b = mean + B a. `variance` (K, E): |W B_j|^2, descending.

    `variance` sums over the D values, in squared grey levels. All float64.
    """

    mean: Tensor
    B: Tensor
    variance: Tensor

    def walk(self, k: int, j: int, steps: Tensor) -> Tensor:
        """B (len(steps), E): from the centre of component k along direction j, `steps` in standard deviations."""
        return self.mean[k] + steps.to(self.B)[:, None] * self.B[k, :, j]

    def coordinates(self, k: int, b: Tensor) -> Tensor:
        """A (n, E) with b = mean + B a, in standard deviations; 0 along directions that have no spread."""
        return (b.to(self.B) - self.mean[k]) @ torch.linalg.pinv(self.B[k]).T


@torch.no_grad()
def principal(W: Tensor, mean: Tensor, covariance: Tensor) -> Directions:
    """The directions of W (K, D, E) for latents of mean (K, E) and covariance (K, E, E), signs fixed.

    The sign is such that the entry of W B_j with the largest magnitude is positive. E = 0 gives empty tensors.
    """
    W, mean, covariance = W.detach().cpu().double(), mean.double(), covariance.double()
    if W.shape[2] == 0:
        return Directions(mean, covariance, mean)
    spread, V = torch.linalg.eigh((covariance + covariance.mT) / 2)
    L = V * spread.clamp(min=0).sqrt()[:, None, :]  # rounding may leave an eigenvalue just below zero
    variance, R = torch.linalg.eigh(L.mT @ (W.mT @ W) @ L)
    B = L @ R.flip(-1)
    drawn = W @ B  # (K, D, E)
    peak = drawn.gather(1, drawn.abs().argmax(1, keepdim=True))
    return Directions(mean, B * torch.where(peak < 0, -1.0, 1.0), variance.flip(-1).clamp(min=0))
