"""The peers of `llgae bench rate`: the quantisers of faiss, and image codecs on a mosaic of all images."""

import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from llgae_cli.errors import InputError

Pixels = NDArray[np.uint8]
MISSING = "the peers of rate need faiss and pillow-jxl-plugin: pip install 'llgae[bench]'"

# Bits of the quantisers; all codebooks have 256 vectors, so a code of M bytes has M codebooks. The rotation of OPQ and
# LocalSearchQuantizer get fewer rows and rounds than they could use, for the benchmark is to end within a quarter of
# an hour.
SIZE = 256
PRODUCT_BITS = (24, 40, 80, 160, 320)
OPTIMISED_BITS = (40, 80, 160)
ROTATION_ROWS, ROTATION_ROUNDS = 20_000, 5
RESIDUAL_BITS = (24, 40, 80, 160)
TRAINING_BEAM, CODING_BEAM = 4, 16
LOCAL_BITS = (40, 80)
LOCAL_ROWS = 20_000

# What is varied for each image codec, and how Pillow is called: all for the least squared error at a rate, not for the
# best look. JPEG gets flat quantisation tables (at 630 bits 310, with the tables for viewers 400), AVIF tune=psnr (at
# 565 bits 137 in place of 170) and speed 4 (119).
JPEG_STEPS = (255, 200, 150, 110, 80)
JPEG_2000_DECIBELS = (13, 15, 17, 19.5, 22, 24, 26.5)
WEBP_QUALITIES = (0, 2, 4, 8, 16)
AVIF_QUALITIES = (0, 4, 10, 18, 30)
JXL_QUALITIES = (1, 16, 20, 28)


@dataclass(frozen=True)
class Coder:
    """A method at one setting: `encode` maps rows (n, D) to a complete file, `decode` the file to values (n, D).

    The other fields are those of `row.Coding`.
    """

    method: str
    setting: str
    encode: Callable[[Pixels], bytes]
    decode: Callable[[bytes], NDArray[Any]]
    train_rows: int = 0
    model_bytes: int = 0
    train_seconds: float = 0.0


def check_libraries() -> None:
    """Raise InputError where faiss or an image codec is missing; register JPEG XL with Pillow."""
    try:
        import faiss  # noqa: F401
        import pillow_jxl  # noqa: F401 - registers JPEG XL
    except ImportError:
        raise InputError(MISSING) from None
    Image.init()
    if missing := {"JPEG", "JPEG2000", "WEBP", "AVIF", "JXL"} - Image.SAVE.keys():
        raise InputError(f"this build of Pillow does not write {', '.join(sorted(missing))}")


def train_quantisers(train: Pixels) -> Iterator[Coder]:
    """Yield faiss's quantisers, each trained on rows (N, D): PQ, OPQ, ResidualQuantizer, LocalSearchQuantizer.

    Their files are the codes of all rows, M bytes each, without a header.
    """
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    for bits in PRODUCT_BITS:
        yield train_product_quantiser(train, bits // 8)
    for bits in OPTIMISED_BITS:
        yield train_rotated_quantiser(train, bits // 8)
    yield from train_residual_quantisers(train, [bits // 8 for bits in RESIDUAL_BITS])
    for bits in LOCAL_BITS:
        yield train_local_search_quantiser(train[:LOCAL_ROWS], bits // 8)


def train_product_quantiser(train: Pixels, M: int) -> Coder:
    """Return product quantisation: M parts of each row, of D / M neighbouring values, with a codebook each.

    Where M does not divide D, zeros are appended to the rows.
    """
    import faiss

    D = train.shape[1]
    padded = math.ceil(D / M) * M
    began = time.perf_counter()
    quantiser: Any = faiss.ProductQuantizer(padded, M, 8)  # Any: faiss's stubs have the C++ signature of decode
    quantiser.train(to_floats(train, padded))
    return Coder(
        "PQ",
        f"{M} x 8 bits",
        lambda x: quantiser.compute_codes(to_floats(x, padded)).tobytes(),
        lambda data: quantiser.decode(split_codes(data, M))[:, :D],
        len(train),
        4 * SIZE * padded,
        time.perf_counter() - began,
    )


def train_rotated_quantiser(train: Pixels, M: int) -> Coder:
    """Return optimised product quantisation (OPQ; Ge, He, Ke, Sun 2013): a rotation, then product quantisation.

    The rotation starts at the identity: from faiss's random start it ends, after 50 rounds, above plain PQ. It is
    trained on the first ROTATION_ROWS rows, the codebooks then on all.
    """
    import faiss

    D = train.shape[1]
    padded = math.ceil(D / M) * M
    began = time.perf_counter()
    rotation = faiss.OPQMatrix(D, M, padded)
    rotation.niter, rotation.niter_pq_0 = ROTATION_ROUNDS, 20  # of 50 and 40: the time
    faiss.copy_array_to_vector(np.eye(padded, dtype=np.float32).ravel(), rotation.A)
    x = to_floats(train, D)
    rotation.train(x[:ROTATION_ROWS])
    quantiser: Any = faiss.ProductQuantizer(padded, M, 8)
    quantiser.train(rotation.apply(x))
    return Coder(
        "OPQ",
        f"{M} x 8 bits",
        lambda x: quantiser.compute_codes(rotation.apply(to_floats(x, D))).tobytes(),
        lambda data: rotation.reverse_transform(quantiser.decode(split_codes(data, M))),
        len(train),
        4 * (SIZE * padded + D * padded),
        time.perf_counter() - began,
    )


def train_residual_quantisers(train: Pixels, sizes: list[int]) -> Iterator[Coder]:
    """Yield residual quantisers with M codebooks, for each M of `sizes`, from one training of the largest.

    Codebooks are trained one after another, so the first M of the largest quantiser are those that a training with M
    codebooks gives. The training keeps the TRAINING_BEAM best codes of each row, the coding CODING_BEAM.
    """
    import faiss

    D = train.shape[1]
    began = time.perf_counter()
    largest = faiss.ResidualQuantizer(D, max(sizes), 8)
    largest.max_beam_size = TRAINING_BEAM
    largest.train(to_floats(train, D))
    took = time.perf_counter() - began
    codebooks = faiss.vector_to_array(largest.codebooks)
    for M in sizes:
        quantiser = faiss.ResidualQuantizer(D, M, 8)
        faiss.copy_array_to_vector(codebooks[: M * SIZE * D].copy(), quantiser.codebooks)
        quantiser.is_trained = True
        quantiser.max_beam_size = CODING_BEAM
        yield wrap_additive_quantiser("ResidualQuantizer", quantiser, D, M, len(train), took * M / max(sizes))


def train_local_search_quantiser(train: Pixels, M: int) -> Coder:
    """Return local search quantisation (LSQ++; Martinez, Zakhmi, Hoos, Little 2018): a sum of M codebooks' vectors."""
    import faiss

    D = train.shape[1]
    began = time.perf_counter()
    quantiser = faiss.LocalSearchQuantizer(D, M, 8)
    quantiser.train_iters, quantiser.train_ils_iters = 10, 4  # of 25 and 8: the time
    quantiser.train(to_floats(train, D))
    return wrap_additive_quantiser("LocalSearchQuantizer", quantiser, D, M, len(train), time.perf_counter() - began)


def wrap_additive_quantiser(method: str, quantiser: Any, D: int, M: int, rows: int, seconds: float) -> Coder:
    """Return the coder of a quantiser with M codebooks of 256 vectors in D dimensions."""
    return Coder(
        method,
        f"{M} x 8 bits",
        lambda x: quantiser.compute_codes(to_floats(x, D)).tobytes(),
        lambda data: quantiser.decode(split_codes(data, M)),
        rows,
        4 * M * SIZE * D,
        seconds,
    )


def to_floats(x: Pixels, D: int) -> NDArray[np.float32]:
    """Return rows as float32, with zeros appended up to D values."""
    return np.pad(x.astype(np.float32), ((0, 0), (0, D - x.shape[1])))


def split_codes(data: bytes, M: int) -> NDArray[np.uint8]:
    """Return the codes (n, M) of a file."""
    return np.frombuffer(data, np.uint8).reshape(-1, M)


def make_image_coders(n: int, shape: tuple[int, int]) -> Iterator[Coder]:
    """Yield JPEG, JPEG 2000, WebP, AVIF and JPEG XL for a mosaic of n images of shape (H, W), for all settings.

    The file holds one mosaic, ceil(sqrt(n)) images wide, in the order of the rows and without gaps. Of the layouts
    tried on Fashion-MNIST it is the best for every codec: mosaics of 100 images cost 1 to 20 % more bits, edges
    repeated up to a multiple of 8 pixels 5 to 10 %. Sorting images by similarity saves 2 to 3 % (10 to 25 bits), which
    is about what storing the order takes (12 bits an image).
    """
    settings: list[tuple[str, str, str, dict[str, Any]]] = []
    for step in JPEG_STEPS:
        settings.append(
            ("JPEG", f"step {step}", "JPEG", {"qtables": [[step] * 64], "optimize": True, "progressive": True})
        )
    for decibels in JPEG_2000_DECIBELS:
        options = {"quality_mode": "dB", "quality_layers": [decibels], "irreversible": True}
        settings.append(("JPEG 2000", f"{decibels:g} dB", "JPEG2000", options))
    for quality in WEBP_QUALITIES:
        settings.append(("WebP", f"quality {quality}", "WEBP", {"quality": quality, "method": 6}))
    for quality in AVIF_QUALITIES:
        options = {"quality": quality, "subsampling": "4:0:0", "speed": 4, "advanced": {"tune": "psnr"}}
        settings.append(("AVIF", f"quality {quality}", "AVIF", options))
    for quality in JXL_QUALITIES:
        settings.append(("JPEG XL", f"quality {quality}", "JXL", {"quality": quality, "effort": 7}))
    for method, setting, kind, options in settings:
        encode = partial(encode_mosaic, shape=shape, kind=kind, options=options)
        yield Coder(method, setting, encode, partial(decode_mosaic, n=n, shape=shape))


def encode_mosaic(x: Pixels, shape: tuple[int, int], kind: str, options: dict[str, Any]) -> bytes:
    """Return a file of the mosaic of rows x (n, H W); `kind` and `options` are those of Pillow's `Image.save`."""
    buffer = io.BytesIO()
    Image.fromarray(arrange_mosaic(x, shape)).save(buffer, kind, **options)
    return buffer.getvalue()


def decode_mosaic(data: bytes, n: int, shape: tuple[int, int]) -> Pixels:
    """Return the n rows (n, H W) of a file of `encode_mosaic`."""
    with Image.open(io.BytesIO(data)) as image:
        return cut_mosaic(np.asarray(image.convert("L")), n, shape)


def arrange_mosaic(x: Pixels, shape: tuple[int, int]) -> Pixels:
    """Return the mosaic of n images, rows of x (n, H W): ceil(sqrt(n)) to a line, missing ones at the end black."""
    H, W = shape
    across = math.ceil(math.sqrt(len(x)))
    down = math.ceil(len(x) / across)
    cells = np.zeros((down * across, H, W), np.uint8)
    cells[: len(x)] = x.reshape(-1, H, W)
    return cells.reshape(down, across, H, W).swapaxes(1, 2).reshape(down * H, across * W)


def cut_mosaic(mosaic: Pixels, n: int, shape: tuple[int, int]) -> Pixels:
    """Return the rows (n, H W) of a mosaic; inverse of `arrange_mosaic`."""
    H, W = shape
    cells = mosaic.reshape(mosaic.shape[0] // H, H, mosaic.shape[1] // W, W).swapaxes(1, 2)
    return cells.reshape(-1, H * W)[:n]
