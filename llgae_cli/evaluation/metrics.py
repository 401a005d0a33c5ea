"""Metrics of a model on a set of samples: one streamed pass, sums in float64."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from llgae_cli.evaluation.encoding import Coder, encode
from llgae_cli.evaluation.latents import Latents
from llgae_cli.tasks import Samples


@dataclass(frozen=True)
class Metrics:
    """Figures of a model on a set of samples.

    n                    number of samples
    mean_l2              mean over samples and values of (x - x_hat)^2, squared grey levels per pixel
    per_class            the same for each label, None without labels
    explained_variance   1 - sum |x - x_hat|^2 / sum |x - mean x|^2; nan where the samples do not vary
    psnr                 10 log10(peak^2 / mean_l2), decibel
    usage                share of the samples coded by each component, length K
    perplexity           2^entropy of usage: the effective number of components, 1 to K
    bits                 entropy of k plus that of each further symbol, in bits a sample; at most log2 K for k
    empty                components without a sample
    """

    n: int
    mean_l2: float
    per_class: dict[int, float] | None
    explained_variance: float
    psnr: float
    usage: list[float]
    perplexity: float
    bits: float
    empty: int

    def plain(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """Result of a pass over N samples: metrics, statistics of the latents, and k and mean L2 of each sample, (N,)."""

    metrics: Metrics
    latents: Latents
    k: Tensor
    mean_l2: Tensor


@torch.no_grad()
def measure(model: Coder, samples: Samples, peak: float) -> Measured:
    """Encode every sample once; return metrics, statistics of the latents, and k and mean L2 of each sample.

    `peak` is the range of a pixel, for PSNR.
    """
    K, E, N, D = model.K, model.E, samples.N, samples.D
    k, squared = torch.empty(N, dtype=torch.int64), torch.empty(N, dtype=torch.float64)
    count, first, second = torch.zeros(K).double(), torch.zeros(K, E).double(), torch.zeros(K, E, E).double()
    symbols = tuple(torch.zeros(K, values).double() for values in model.symbols)
    total, energy, centre = torch.zeros(D, dtype=torch.float64), 0.0, None
    for chunk in encode(model, samples):
        k[chunk.rows] = here = chunk.code.k.cpu()
        squared[chunk.rows] = chunk.squared_residual().double().cpu()
        b = chunk.code.b.cpu().double()
        count += torch.bincount(here, minlength=K)
        for j, counts in enumerate(symbols):
            values = counts.shape[1]
            pair = here * values + chunk.code.s[:, j].cpu()
            counts += torch.bincount(pair, minlength=K * values).view(K, values)
        first.index_add_(0, here, b)
        for j in here.unique().tolist():
            own = b[here == j]
            second[j] += own.T @ own
        # Sums about a point inside the data: about zero, data far from zero would cancel.
        centre = chunk.x.mean(0) if centre is None else centre
        centred = chunk.x - centre
        total += centred.sum(0).cpu()
        energy += float(centred.square_().sum(1).cpu().double().sum())
    mean_l2 = float(squared.sum()) / N / D
    variance = energy / N / D - float((total / N).square().mean())
    usage = count / N
    bits = entropy(usage)
    metrics = Metrics(
        n=N,
        mean_l2=mean_l2,
        per_class=None if samples.labels is None else _by_label(squared / D, samples.labels.cpu()),
        explained_variance=1 - mean_l2 / variance if variance > 0 else math.nan,
        psnr=psnr(mean_l2, peak),
        usage=usage.tolist(),
        perplexity=2**bits,
        bits=bits + sum(entropy(counts.sum(0) / N) for counts in symbols),
        empty=int((count == 0).sum()),
    )
    mean = first / count.clamp(min=1)[:, None]
    covariance = second / count.clamp(min=1)[:, None, None] - mean[:, :, None] * mean[:, None, :]
    latents = Latents(count.float(), mean.float(), covariance.float(), tuple(counts.float() for counts in symbols))
    return Measured(metrics, latents, k, squared / D)


@torch.no_grad()
def mean_l2(model: Coder, samples: Samples) -> float:
    """Return the mean over samples and values of (x - x_hat)^2, squared grey levels per pixel."""
    return (
        sum(float(chunk.squared_residual().double().sum()) for chunk in encode(model, samples)) / samples.N / samples.D
    )


def psnr(mean_l2: float, peak: float) -> float:
    """Return 10 log10(peak^2 / mean_l2) in decibel; infinite for a perfect reconstruction."""
    return 10 * math.log10(peak**2 / mean_l2) if mean_l2 > 0 else math.inf


def entropy(share: Tensor) -> float:
    """Return -sum p log2 p, in bits, of shares p that add to 1."""
    return float(torch.special.entr(share).sum()) / math.log(2)


def _by_label(mean_l2: Tensor, labels: Tensor) -> dict[int, float]:
    return {int(label): float(mean_l2[labels == label].mean()) for label in labels.unique()}
