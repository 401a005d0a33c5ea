"""Metrics of a model on a set of samples: one streamed pass, sums in float64."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llgae_cli import distributed
from llgae_cli.evaluation.encoding import CHUNK, Coder, encode, encode_rows, list_chunks
from llgae_cli.evaluation.latents import Latents
from llgae_cli.models import Code
from llgae_cli.tasks import Samples, list_positions, take_part
from llgae_cli.threads import run_parallel

ALONE = 30_000  # samples; more would take longer than the time that a preempted process has
INT8_K = 128  # components that an int8 can number
LABEL_ROWS = 1 << 20  # samples at a time in the mean of each label


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
    """Result of a pass over N samples: metrics and statistics of the latents, and of each sample k and |x - x_hat|^2.

    Of 10^8 samples a byte each is 100 MB, so neither takes more than it needs. k (N,) is int8 up to K = 128 and int32
    above: convert what is used as an index. `squared` (N,) is float32; sums of it are float64.
    """

    metrics: Metrics
    latents: Latents
    k: Tensor
    squared: Tensor


@torch.no_grad()
def measure(model: Coder, samples: Samples, peak: float, advance: Callable[[float], None] | None = None) -> Measured:
    """Encode every sample once; return metrics, statistics of the latents, and k and |x - x_hat|^2 of each sample.

    `peak` is the range of a pixel, for PSNR. `advance` is called with the share of the work that a chunk was. Under
    torchrun all processes call it, each encodes its part, and all get the result.
    """
    K, E, N, D = model.K, model.E, samples.N, samples.D
    k, squared = torch.zeros(N, dtype=torch.int8 if K <= INT8_K else torch.int32), torch.zeros(N)
    count, first, second = torch.zeros(K).double(), torch.zeros(K, E).double(), torch.zeros(K, E, E).double()
    symbols = tuple(torch.zeros(K, values).double() for values in model.symbols)
    total, energy = torch.zeros(D, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    centre = _find_centre(samples)

    @torch.no_grad()
    def code(rows: slice) -> tuple[slice, Code, Tensor, Tensor, Tensor]:
        chunk = encode_rows(model, samples, rows)
        centred = chunk.x - centre
        return rows, chunk.code, chunk.squared_residual(), centred.sum(0), centred.square_().sum(1)

    def add(coded: tuple[slice, Code, Tensor, Tensor, Tensor]) -> None:
        rows, own_code, own_squared, own_total, own_energy = coded
        k[rows] = here = own_code.k.cpu()
        squared[rows] = own_squared.cpu()
        b = own_code.b.cpu().double()
        count.add_(torch.bincount(here, minlength=K))
        for j, counts in enumerate(symbols):
            values = counts.shape[1]
            assert own_code.s is not None  # a model with symbols codes them
            pair = here * values + own_code.s[:, j].cpu()
            counts += torch.bincount(pair, minlength=K * values).view(K, values)
        first.index_add_(0, here, b)
        order = torch.argsort(here)
        used, sizes = torch.unique_consecutive(here[order], return_counts=True)
        for j, own in zip(used.tolist(), b[order].split(sizes.tolist()), strict=True):
            second[j].addmm_(own.T, own)
        total.add_(own_total.cpu())
        energy.add_(own_energy.cpu().double().sum())
        if advance is not None:
            advance(1 / len(chunks))

    chunks = list_chunks(model, samples, *take_part(samples).ranges)
    run_parallel(code, chunks, add, samples.device.type == "cpu")
    distributed.sum_([k, squared, count, first, second, *symbols, total, energy])
    mean_l2 = _sum(squared) / N / D
    variance = float(energy) / N / D - float((total / N).square().mean())
    usage = count / N
    bits = entropy(usage)
    metrics = Metrics(
        n=N,
        mean_l2=mean_l2,
        per_class=None if samples.labels is None else _by_label(squared, samples.labels.cpu(), D),
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
    return Measured(metrics, latents, k, squared)


@torch.no_grad()
def mean_l2(model: Coder, samples: Samples, advance: Callable[[float], None] | None = None) -> float:
    """Return the mean over samples and values of (x - x_hat)^2, squared grey levels per pixel.

    `advance` is called with the share of the work that a chunk was. Under torchrun all processes call it, each encodes
    its part, and all get the result.
    """
    total = torch.zeros((), dtype=torch.float64)

    @torch.no_grad()
    def code(rows: slice) -> Tensor:
        return encode_rows(model, samples, rows).squared_residual().double().sum().cpu()

    def add(squared: Tensor) -> None:
        total.add_(squared)
        if advance is not None:
            advance(1 / len(chunks))

    chunks = list_chunks(model, samples, *take_part(samples).ranges)
    run_parallel(code, chunks, add, samples.device.type == "cpu")
    distributed.sum_([total])
    return float(total) / samples.N / samples.D


@torch.no_grad()
def mean_l2_alone(model: Coder, samples: Samples) -> tuple[float, int]:
    """Return a mean L2 that takes seconds and needs no other process, and the number of samples that it is of.

    They are those that this process can read; of more than ALONE, every n-th. NaN where there are none.
    """
    ranges = (range(samples.N),) if samples.held is None else samples.held
    step = max(1, -(-sum(map(len, ranges)) // ALONE))
    parts = [samples.part(here.start, here.stop) for here in ranges]
    parts = [part.every(step) for part in parts] if step > 1 else parts
    n = sum(part.N for part in parts)
    squared = sum(float(chunk.squared_residual().double().sum()) for part in parts for chunk in encode(model, part))
    return squared / n / samples.D if n else math.nan, n


def _find_centre(samples: Samples) -> Tensor:
    """Return a point inside the data, (D,), the same on all processes; float32.

    Sums about zero would cancel for data far from zero.
    """
    part = take_part(samples).samples
    x = part.rows(slice(0, CHUNK))
    if not distributed.is_active():
        return x.mean(0)
    n, total = torch.tensor(float(len(x))), x.sum(0)
    distributed.sum_([n, total])
    return total / float(n)


def keep_held(samples: Samples, measured: Measured) -> tuple[Samples, Measured]:
    """Return the samples that this process can read, with their k and residuals; the metrics stay those of all."""
    if samples.held is None:
        return samples, measured
    part = take_part(samples)
    at = list_positions(part.ranges)
    return part.samples, replace(measured, k=measured.k[at], squared=measured.squared[at])


def psnr(mean_l2: float, peak: float) -> float:
    """Return 10 log10(peak^2 / mean_l2) in decibel; infinite for a perfect reconstruction."""
    return 10 * math.log10(peak**2 / mean_l2) if mean_l2 > 0 else math.inf


def entropy(share: Tensor) -> float:
    """Return -sum p log2 p, in bits, of shares p that add to 1."""
    return float(torch.special.entr(share).sum()) / math.log(2)


def _sum(values: Tensor) -> float:
    """Return the sum of values (N,) in float64.

    By numpy, which converts some thousand at a time: torch would make a copy of all, and its sum depends on the number
    of threads.
    """
    return float(values.numpy().sum(dtype=np.float64))


def _by_label(squared: Tensor, labels: Tensor, D: int) -> dict[int, float]:
    """Return the mean L2 of the samples of each label, in its order."""
    sums: dict[int, tuple[int, float]] = {}
    for own, own_squared in zip(labels.split(LABEL_ROWS), squared.split(LABEL_ROWS), strict=True):
        for label in own.unique().tolist():
            part = own_squared[own == label]
            n, total = sums.get(label, (0, 0.0))
            sums[label] = n + len(part), total + _sum(part)
    return {label: total / n / D for label, (n, total) in sorted(sums.items())}
