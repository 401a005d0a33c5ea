"""Codecs of random models, made without training: a model is sound or not whatever it was trained on."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from llgae_cli.codec.codec import Codec
from llgae_cli.codec.exact import SCALES, SPREADS, ExactDecoder, Level, Step
from llgae_cli.codec.fit import fit_codec
from llgae_cli.codec.grid import Grid
from llgae_cli.codec.model import CodecModel
from llgae_cli.models import DECODERS, ENCODERS, GAE, LLGAE, Decoder
from llgae_cli.tasks import Samples


def make_codec(rows: np.ndarray, K: int = 3, E: int = 2, L: int = 1, V: int = 0, seed: int = 0, A: int = 2) -> Codec:
    """Return a codec for rows (n, D): L levels of K components at random rows, V shifts, and A activity classes."""
    x = rows.astype(np.float64)
    n, D = x.shape
    draw = np.random.default_rng(seed)
    origin = x.mean(0) if not V else np.full(D, x.mean())
    radius = max(float(np.sqrt(((x - np.rint(origin)) ** 2).sum(1).max())), 1e-9)
    rest, levels = x, []
    for level in range(L):
        mu = rest[draw.integers(n, size=K)] * (0.9 if level else 1.0)
        U = np.linalg.qr(draw.normal(size=(K, D, E)))[0] if E else np.zeros((K, D, 0))
        nearest = ((rest[:, None] - mu) ** 2).sum(2).argmin(1)
        rest = rest - mu[nearest]
        z = np.einsum("nd,nde->ne", rest, U[nearest])
        rest = rest - np.einsum("ne,nde->nd", z, U[nearest])
        spread = z.std(0) + radius * 2.0**-12 if E else np.zeros(0)
        scale = np.broadcast_to(np.rint(SCALES * np.log2(spread)), (K, E)).astype(np.int64)
        level = Level.round(mu, U, draw.integers(4, size=(K, E)), scale - draw.integers(40, size=(K, E)))
        levels.append(replace(level, activity=draw.integers(-8, 9, size=(A, SPREADS))))
    counts = tuple(draw.integers(1, 100, K * A) for _ in range(L))
    places = np.stack([np.roll(np.arange(D), v) for v in range(V)]) if V else None
    symbols = draw.integers(0, 50, (K, V)) if V else None
    step = Step.nearest(radius / 40)
    return Codec(CodecModel(ExactDecoder(tuple(levels), places), counts, symbols, Grid.fit(origin, radius), step))


def recode(codec: Codec, x: np.ndarray, settings: object, block_rows: int = 256) -> tuple[list[bytes], np.ndarray]:
    """Return the payloads of rows x (n, D), and the rows that they decode to; the encoder knows these, too."""
    payloads, values = codec.code_blocks(x, settings, block_rows)  # type: ignore[arg-type]
    starts = range(0, len(x), block_rows)
    parts = [
        codec.decode_block(payload, min(block_rows, len(x) - start), x.dtype, settings)  # type: ignore[arg-type]
        for start, payload in zip(starts, payloads, strict=True)
    ]
    decoded = np.concatenate(parts) if parts else x[:0]
    assert decoded.dtype == values.dtype and decoded.tobytes() == values.tobytes()
    return payloads, decoded


def make_curved_rows(shape: tuple[int, ...], n: int, K: int = 3, seed: int = 0) -> np.ndarray:
    """Return rows (n, D) of bytes: K waves, shifted and scaled at random, with noise."""
    draw, at = np.random.default_rng(seed), np.arange(math.prod(shape))
    k, phase, size = draw.integers(K, size=(n, 1)), draw.uniform(0, 3, (n, 1)), draw.uniform(20, 60, (n, 1))
    x = draw.normal(120, 15, (n, 1)) + size * np.sin(phase + at * (1.5 + k) / 5) + draw.normal(0, 3, (n, len(at)))
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def make_deep(
    kind: str, shape: tuple[int, ...], K: int = 3, E: int = 4, centring: str = "none", optional: bool = True
) -> GAE:
    """Return a deep LLGAE, trained for about a second on curved rows; `kind` is that of its networks.

    `optional`: with affine pieces in the decoder and with a guide.
    """
    D, generator = math.prod(shape), torch.Generator().manual_seed(1)
    x = Samples(make_curved_rows(shape, 400), centring=centring).rows(slice(None))
    affine, guide = LLGAE(K, D, E, inference="least-squares"), ENCODERS[kind](K, E, shape, 12, 3)
    affine.initialise(x[torch.randperm(len(x), generator=generator)], generator)
    for _ in range(5):  # k-means
        k = torch.cdist(x, affine.mu).argmin(1)
        for j in range(K):
            affine.mu.data[j] = x[k == j].mean(0)
            affine.W.data[j] = torch.linalg.svd(x[k == j] - affine.mu[j], full_matrices=False)[2][:E].T
    decoder = Decoder(LLGAE(K, D, E) if optional else None, DECODERS[kind](K, E, shape, 12, 3))
    model = GAE(decoder, K, D, E, ascent="later", affine=affine, guide=guide if optional else None)
    model.initialise(x, generator)
    model.initialise_from(affine, x, generator)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(60):
        rows = x[torch.randint(len(x), (100,), generator=generator)]
        optimiser.zero_grad()
        model.loss(rows).backward()
        optimiser.step()
    return model


def make_deep_codec(kind: str, shape: tuple[int, ...], centring: str = "none", **options: Any) -> Codec:
    """Return the codec of a deep LLGAE."""
    model = make_deep(kind, shape, centring=centring, **options)
    fitted = fit_codec(model, Samples(make_curved_rows(shape, 400), centring=centring))
    assert fitted is not None
    return Codec(fitted)
