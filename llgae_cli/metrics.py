"""What a model is worth on a set of samples: one streamed pass, float64 sums."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from llgae_cli.tasks import Samples

CHUNK = 2048


class Coder(Protocol):
    """What is measured: anything that encodes to (k, b) and has a residual."""

    K: int
    E: int
    symbols: tuple[int, ...]

    def encode(self, x: Tensor) -> Any:
        """The code of x, with attributes k (n,), b (n, E) and s (n, S) or None."""

    def residual(self, x: Tensor, code: Any) -> Tensor:
        """X - x_hat (n, D)."""


@dataclass(frozen=True)
class Evaluation:
    """A model on a set of samples.

    mean_l2              mean over samples and pixels of (x - x_hat)^2, squared grey levels per pixel
    per_class            the same for each label, None without labels
    explained_variance   1 - sum |x - x_hat|^2 / sum |x - mean x|^2; nan where the samples do not vary
    psnr                 10 log10(peak^2 / mean_l2), decibel
    usage                share of the samples coded by each component, length K
    perplexity           2^entropy of usage: how many components are in effect used, 1 to K
    bits                 entropy of k, and of each further symbol: bits for them with an ideal code; at most log2 K
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
        """Plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Latents:
    """How component k's codes spread: count (K,), mean (K, E) and covariance (K, E, E) of b, at the winners.

    `symbols`: for each further symbol how often component k goes with each of its values, (K, values).
    """

    count: Tensor
    mean: Tensor
    covariance: Tensor
    symbols: tuple[Tensor, ...] = ()


@torch.no_grad()
def measure(model: Coder, samples: Samples, peak: float) -> tuple[Evaluation, Latents]:
    """Encode and decode every sample once. `peak` is the range of a pixel, for PSNR."""
    K, E = model.K, model.E
    squared = torch.empty(samples.N, dtype=torch.float64)  # one mean squared residual a sample
    count, first, second = torch.zeros(K).double(), torch.zeros(K, E).double(), torch.zeros(K, E, E).double()
    symbols = tuple(torch.zeros(K, values).double() for values in model.symbols)
    total, energy, centre = torch.zeros(samples.D, dtype=torch.float64), 0.0, None
    for here, x in samples.chunks(CHUNK):
        code = model.encode(x)
        squared[here] = model.residual(x, code).square_().mean(1).double().cpu()
        k, b = code.k.cpu(), code.b.cpu().double()
        count += torch.bincount(k, minlength=K)
        for j, seen in enumerate(symbols):
            values = seen.shape[1]
            seen += torch.bincount(k * values + code.s[:, j].cpu(), minlength=K * values).view(K, values)
        first.index_add_(0, k, b)
        for j in k.unique().tolist():
            own = b[k == j]
            second[j] += own.T @ own
        centre = x.mean(0) if centre is None else centre  # a fixed one, amid the data: no digits are lost to an offset
        apart = x - centre
        total += apart.sum(0).cpu()
        energy += float(apart.square_().sum(1).cpu().double().sum())
    mean_l2 = float(squared.mean())
    variance = energy / samples.N / samples.D - float((total / samples.N).square().mean())
    usage = count / samples.N
    bits = entropy(usage)
    evaluation = Evaluation(
        n=samples.N,
        mean_l2=mean_l2,
        per_class=None if samples.labels is None else _by_label(squared, samples.labels.cpu()),
        explained_variance=1 - mean_l2 / variance if variance > 0 else math.nan,
        psnr=psnr(mean_l2, peak),
        usage=usage.tolist(),
        perplexity=2**bits,
        bits=bits + sum(entropy(seen.sum(0) / samples.N) for seen in symbols),
        empty=int((count == 0).sum()),
    )
    mean = first / count.clamp(min=1)[:, None]
    covariance = second / count.clamp(min=1)[:, None, None] - mean[:, :, None] * mean[:, None, :]
    return evaluation, Latents(count.float(), mean.float(), covariance.float(), tuple(seen.float() for seen in symbols))


@torch.no_grad()
def mean_l2(model: Coder, samples: Samples) -> float:
    """Mean over samples and pixels of (x - x_hat)^2, squared grey levels per pixel."""
    total = 0.0
    for _, x in samples.chunks(CHUNK):
        total += float(model.residual(x, model.encode(x)).square_().sum(1).double().sum())
    return total / samples.N / samples.D


def psnr(mean_l2: float, peak: float) -> float:
    """10 log10(peak^2 / mean_l2) in decibel; infinite for a perfect reconstruction."""
    return 10 * math.log10(peak**2 / mean_l2) if mean_l2 > 0 else math.inf


def entropy(share: Tensor) -> float:
    """-sum p log2 p of shares that add to 1, in bits."""
    return float(torch.special.entr(share).sum()) / math.log(2)


def _by_label(squared: Tensor, labels: Tensor) -> dict[int, float]:
    return {int(label): float(squared[labels == label].mean()) for label in labels.unique()}
