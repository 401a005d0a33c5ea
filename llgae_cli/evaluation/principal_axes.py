"""Principal axes of a component's codes, which do not depend on the basis that W happens to have.

W_k stands for the decoder's Jacobian at the centre of component k's codes; for an affine decoder that is W_k itself.
Replacing W by W R with an invertible R changes no reconstruction, so the columns of W mean nothing by themselves. With
C_k the covariance of the latents b in component k,

    B_k = L R,  where L L^T = C_k and the columns of R are the eigenvectors of L^T W^T W L, largest eigenvalue first,
    b   = mean_k + B_k a

gives coordinates a that are uncorrelated with unit variance ("standard deviations"), and images W B_j that are
orthogonal: the principal axes of W C W^T, the covariance of the reconstructions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PrincipalAxes:
    """`mean` (K, E): centre of the latents. `B` (K, E, E): b = mean + B a. `variance` (K, E): |W B_j|^2, descending.

    `variance` sums over the D values, in squared grey levels. All are float64.
    """

    mean: Tensor
    B: Tensor
    variance: Tensor

    def walk(self, k: int, j: int, steps: Tensor) -> Tensor:
        """Return latents b (len(steps), E) along axis j of component k, `steps` in standard deviations."""
        return self.mean[k] + steps.to(self.B)[:, None] * self.B[k, :, j]

    def coordinates(self, k: int, b: Tensor) -> Tensor:
        """Return a (n, E) with b = mean + B a, in standard deviations; 0 along axes without variance."""
        return (b.to(self.B) - self.mean[k]) @ torch.linalg.pinv(self.B[k]).T


@torch.no_grad()
def principal_axes(W: Tensor, mean: Tensor, covariance: Tensor) -> PrincipalAxes:
    """Return the principal axes for W (K, D, E) and latents of mean (K, E) and covariance (K, E, E).

    The sign is such that the entry of W B_j with the largest magnitude is positive. E = 0 gives empty tensors.
    """
    W, mean, covariance = W.detach().cpu().double(), mean.double(), covariance.double()
    if W.shape[2] == 0:
        return PrincipalAxes(mean, covariance, mean)
    eigenvalues, V = torch.linalg.eigh((covariance + covariance.mT) / 2)
    L = V * eigenvalues.clamp(min=0).sqrt()[:, None, :]  # rounding may leave an eigenvalue just below zero
    variance, R = torch.linalg.eigh(L.mT @ (W.mT @ W) @ L)
    B = L @ R.flip(-1)
    images = W @ B  # (K, D, E)
    peak = images.gather(1, images.abs().argmax(1, keepdim=True))
    return PrincipalAxes(mean, B * torch.where(peak < 0, -1.0, 1.0), variance.flip(-1).clamp(min=0))
