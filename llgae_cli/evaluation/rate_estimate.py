"""An estimate of the rate, in bits a sample, for models without a codec: some networks, and runs that are not finished.

As floats a code (k, b) takes

    R_float = log2 K + 32 E

plus log2 of the number of values of each further symbol. This overstates the rate: b needs no 24 bits of precision
when the residual is in the hundreds. So b is expressed in orthonormal coordinates along the component's principal axes
and rounded with step Delta,

    z = R_k^T G_k^(1/2) (b - m_k),    q_e = round(z_e / Delta),    G_k = W_k^T W_k

where m_k is the mean of b in component k over the training samples, and R_k holds the eigenvectors of the covariance
of G_k^(1/2) b there, largest eigenvalue first. (W_k is the decoder's Jacobian at the centre of component k's codes; for
a decoder that is not affine, what follows is an approximation.) Since |W_k (b - b')|^2 = |z - z'|^2, z does not depend
on the basis W_k. Rounding errors are about uniform in +-Delta/2, so each of the E coordinates adds Delta^2 / 12: a mean
L2 of E Delta^2 / (12 D). Delta is chosen so that this is the share SHARE of the model's mean L2,

    Delta = sqrt(12 D SHARE mean_l2 / E),
    R_coded = H(k) + sum_j H(s_j) + sum_e H(q_e)

with the entropies, in bits, of the test samples' k, s_j and q_e, each q_e pooled over the components: one static table
for each. R_coded is an upper bound of the code's entropy (k is not used to predict q, nor one q_e another), and it is
reported with the mean L2 that decoding the rounded code gives. No file holds these bits, and each sample's mean, which
`centring: sample` takes from it, is not among them: the rates of models with a codec (see `rate`) are not estimates.
"""

import math

import torch
from torch import Tensor

from llgae_cli.evaluation.encoding import encode
from llgae_cli.evaluation.latents import Latents
from llgae_cli.evaluation.metrics import entropy
from llgae_cli.evaluation.rate import Rate
from llgae_cli.models import Code, Model
from llgae_cli.tasks import Samples

SHARE = 0.01  # share of the mean L2 that rounding may add
FLOAT_BITS = 32


def count_float_bits(model: Model) -> float:
    """Return log2 K + sum_j log2 (values of symbol j) + 32 E."""
    return math.log2(math.prod((model.K, *model.symbols))) + FLOAT_BITS * model.E


@torch.no_grad()
def estimate_rate(model: Model, test: Samples, mean_l2: float, latents: Latents) -> Rate:
    """Return the estimate on the test samples, whose mean L2 is given; `latents` are those of the training samples."""
    E, D, mean = model.E, model.D, latents.mean
    # A perfect model has no residual to take a share of; any positive step then gives an upper bound.
    step = math.sqrt(12 * D * SHARE * max(mean_l2, 1e-12) / E) if E else 0.0
    to_z, to_b = quantisation_axes(model.jacobian(latents.centres()).cpu(), latents.covariance)
    ks, ss, qs = [], [], []
    squared = 0.0
    for chunk in encode(model, test):
        k, b, s = chunk.code
        ks.append(k.cpu())
        if s is not None:
            ss.append(s.cpu())
        if E:
            centred = b.cpu().double() - mean.double()[ks[-1]]
            q = torch.round(torch.einsum("nef,nf->ne", to_z[ks[-1]], centred) / step)
            qs.append(q.to(torch.int64))
            b = (torch.einsum("nef,nf->ne", to_b[ks[-1]], q * step) + mean.double()[ks[-1]]).to(b)
        squared += float(chunk.squared_residual(Code(k, b, s)).double().sum())
    bits_k = _entropy_of(torch.cat(ks)) + (sum(_entropy_of(s) for s in torch.cat(ss).T) if ss else 0.0)
    coded = bits_k + sum(_entropy_of(q) for q in torch.cat(qs).T) if E else bits_k
    return Rate(count_float_bits(model), bits_k, coded, squared / test.N / D, step, bits_estimated=True)


def quantisation_axes(W: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return R^T G^(1/2) and its inverse G^(-1/2) R, each (K, E, E), for W (K, D, E) and the covariance of b (K, E, E).

    Directions of b that W maps to zero get 0 in both: they do not change the reconstruction.
    """
    W, covariance = W.double(), covariance.cpu().double()
    g, V = torch.linalg.eigh(W.mT @ W)
    low = 1e-12 * g.amax(1, keepdim=True).clamp(min=1e-30) if g.shape[1] else g
    root = torch.where(g > low, g, 0).sqrt()
    inverse = torch.where(g > low, 1 / root.clamp(min=1e-150), 0)
    half = V * root[:, None, :] @ V.mT
    _, R = torch.linalg.eigh(half @ covariance @ half)
    R = R.flip(2)
    return R.mT @ half, (V * inverse[:, None, :]) @ V.mT @ R


def _entropy_of(symbols: Tensor) -> float:
    return entropy(torch.unique(symbols, return_counts=True)[1].double() / len(symbols))
