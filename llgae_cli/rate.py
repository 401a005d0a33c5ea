"""The rate of a model's code: bits a sample, as floats and as they would be once quantised and entropy-coded.

As floats a code (k, b) takes

    R_float = log2 K + 32 E

(and log2 of the number of its values for each further symbol).

That is no fair price: b needs no 24 bits of precision where the model leaves a residual of hundreds. So b is taken
to orthonormal coordinates of the component's principal axes and rounded,

    z = R_k^T G_k^(1/2) (b - m_k),    q_e = round(z_e / Delta),    G_k = W_k^T W_k

with m_k the mean of b in component k over the training samples and R_k the eigenvectors of the covariance of
G_k^(1/2) b there, largest variance first. (W_k is the decoder's Jacobian at the centre of component k's codes; for
one that is not affine the next lines are an approximation.) |W_k (b - b')|^2 = |z - z'|^2, so z does not depend on the
gauge of W, and
rounding, whose error is about uniform in +-Delta/2, adds Delta^2 / 12 to each of the E coordinates: a mean L2 of
E Delta^2 / (12 D). Delta is chosen so that this is the share SHARE of the model's mean L2,

    Delta = sqrt(12 D SHARE mean_l2 / E).

    R_coded = H(k) + sum_j H(s_j) + sum_e H(q_e)

with the entropies of the test samples' k, s_j and q_e, in bits, each q_e pooled over the components: one static table
for each of them, that a decoder keeps beside the model. It bounds the entropy of the code from above (k is not
used to predict q, nor one q_e another), and it comes with the mean L2 that decoding the rounded code really has.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llgae_cli import metrics
from llgae_cli.codes import centres
from llgae_cli.metrics import CHUNK, Latents
from llgae_cli.models import Code, Model
from llgae_cli.tasks import Samples

SHARE = 0.01  # of the mean L2, that rounding may add
FLOAT_BITS = 32


@dataclass(frozen=True)
class Rate:
    """Bits a sample; `bits_k` counts further symbols in. `step`: Delta.

    `mean_l2_coded`: of the decoded rounded codes, squared grey levels per pixel.
    """

    bits_float: float
    bits_k: float
    bits_coded: float
    mean_l2_coded: float
    step: float


def bits_float(model: Model) -> float:
    """log2 K + sum_j log2 (values of symbol j) + 32 E."""
    return math.log2(math.prod((model.K, *model.symbols))) + FLOAT_BITS * model.E


@torch.no_grad()
def measure_rate(model: Model, test: Samples, mean_l2: float, latents: Latents) -> Rate:
    """The rate on the test samples; `latents` are the training samples'."""
    E, D, mean = model.E, model.D, latents.mean
    # A perfect model leaves no residual to take a share of; any positive step then bounds the rate from above.
    step = math.sqrt(12 * D * SHARE * max(mean_l2, 1e-12) / E) if E else 0.0
    to_z, to_b = axes(model.jacobian(centres(latents)).cpu(), latents.covariance)
    ks, ss, qs = [], [], []
    squared = 0.0
    for _, x in test.chunks(CHUNK):
        k, b, s = model.encode(x)
        ks.append(k.cpu())
        if s is not None:
            ss.append(s.cpu())
        if E:
            own = b.cpu().double() - mean.double()[ks[-1]]
            q = torch.round(torch.einsum("nef,nf->ne", to_z[ks[-1]], own) / step)
            qs.append(q.to(torch.int64))
            rounded = torch.einsum("nef,nf->ne", to_b[ks[-1]], q * step) + mean.double()[ks[-1]]
            b = rounded.to(b)
        squared += float(model.residual(x, Code(k, b, s)).square_().sum(1).double().sum())
    bits_k = entropy(torch.cat(ks)) + (sum(entropy(s) for s in torch.cat(ss).T) if ss else 0.0)
    coded = bits_k + sum(entropy(q) for q in torch.cat(qs).T) if E else bits_k
    return Rate(bits_float(model), bits_k, coded, squared / test.N / D, step)


def axes(W: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """R^T G^(1/2) and its inverse G^(-1/2) R, each (K, E, E), from W (K, D, E) and the covariance of b (K, E, E).

    Directions in which W has no length get 0 both ways: b does not matter there.
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


def entropy(symbols: Tensor) -> float:
    """-sum p log2 p of the values' shares in `symbols` (n,), in bits."""
    return metrics.entropy(torch.unique(symbols, return_counts=True)[1].double() / len(symbols))


def pareto(points: list[tuple[float, float]]) -> list[int]:
    """The points (rate, distortion) that no other beats: as good in both, better in one. By rising rate."""
    front: list[int] = []
    lowest = math.inf
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if points[i][1] < lowest:
            front.append(i)
            lowest = points[i][1]
    return front
