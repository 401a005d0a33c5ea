"""`llgae bench rate`: rate-distortion curves of our codec, of quantisers of faiss and of image codecs.

Rate: bytes of the complete file of all test rows, times 8, by their number; the model is not counted, and its size is
stated. Distortion: mean squared error between the test rows, which are bytes, and the decoded values, clipped to
0 ... 255 and rounded. Both are measured in one place (`measure`), for all methods alike.
"""

import logging
import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from llgae_cli import experiment, storage
from llgae_cli.bench.rate_peers import Coder, Pixels, check_libraries, make_image_coders, train_quantisers
from llgae_cli.bench.row import Coding, Row
from llgae_cli.codec.codec import Codec
from llgae_cli.config import Config, parse_config, read_config, shipped_folder
from llgae_cli.errors import InputError, printable
from llgae_cli.evaluation.rate import find_pareto_front
from llgae_cli.figures.rate_distortion import Kind
from llgae_cli.tasks import Samples, Task

logger = logging.getLogger(__name__)

OURS, PCA = "llgae", "PCA, our coder"

# Our checkpoints: curve, config, what differs from it, rates of the files. Each is trained for one rate and used for
# the rates around it: where two overlap, the curve takes the better one.
CHECKPOINTS: tuple[tuple[str, str, tuple[str, ...], tuple[float, ...]], ...] = (
    (OURS, "codec.yaml", ("K=640", "embed-dim=24", "bits=40", "epochs=8"), (20, 40)),
    (OURS, "codec.yaml", (), (80,)),
    (OURS, "codec.yaml", ("K=80", "embed-dim=160", "bits=290", "shrinkage=60", "epochs=8"), (120, 160)),
    (OURS, "codec.yaml", ("K=30", "embed-dim=300", "bits=630", "epochs=8"), (230, 290, 400, 500, 630, 800)),
    (PCA, "pca.yaml", ("embed-dim=300", "centring=none", "epochs=8"), (40, 80, 160, 320, 640)),
)
KINDS: dict[str, Kind] = {
    OURS: "ours",
    PCA: "baseline",
    **dict.fromkeys(("PQ", "OPQ", "ResidualQuantizer", "LocalSearchQuantizer"), "quantiser"),
    **dict.fromkeys(("JPEG", "JPEG 2000", "WebP", "AVIF", "JPEG XL"), "image codec"),
}
UNTRAINED_BITS = 80.0  # in the middle of the curve of a checkpoint that was not trained for a rate
COMPARED_BITS = (40, 80, 160, 290, 400, 630, 800)


def measure_rate(task: Task, checkpoints: Sequence[Path] = ()) -> Iterator[Row]:
    """Yield a row for each method and setting, then our curve compared with the best peers at COMPARED_BITS.

    The codecs of `checkpoints` have curves of their own. Raises InputError for a task whose rows are not grey images of
    bytes, where a library of the extra is missing, and as `load_coders`.
    """
    if len(task.shape) != 2 or task.train.stored != "uint8":
        raise InputError(f"rate: measures grey images of bytes, and {task.name} holds none")
    check_libraries()
    H, W = task.shape
    train, test = (read_pixels(samples) for samples in (task.train, task.test))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for coders in (
            load_coders(task, checkpoints),
            make_image_coders(len(test), (H, W)),
            train_quantisers(train),
            train_own_coders(task, train, test, Path(folder)),
        ):
            for coder in coders:
                rows.append(measure(coder, test))
                yield rows[-1]
    yield from compare(rows)


def read_pixels(samples: Samples) -> Pixels:
    """Return the stored bytes of all rows, (n, D)."""
    return samples.stored_rows().cpu().numpy()


def measure(coder: Coder, test: Pixels) -> Row:
    """Code and decode the test rows (n, D) once; return the mean squared error at the rate."""
    logger.info("%s, %s", coder.method, coder.setting)
    began = time.perf_counter()
    data = coder.encode(test)
    coded = time.perf_counter()
    decoded = coder.decode(data)
    times = coder.train_seconds, coded - began, time.perf_counter() - coded
    pixels = np.clip(np.rint(decoded), 0, 255)
    squared = np.square(pixels - test.astype(np.float64)).mean()
    bits = 8 * len(data) / len(test)
    coding = Coding(coder.method, coder.setting, coder.train_rows, coder.model_bytes, *times)
    text = f"{coder.method}, {coder.setting}: mean squared error at {bits:.1f} bits"
    return Row("rate", text, float(squared), "", at=bits, coding=coding)


def train_own_coders(task: Task, train: Pixels, test: Pixels, folder: Path) -> Iterator[Coder]:
    """Yield our codec for every checkpoint and rate of CHECKPOINTS; the checkpoints are trained in `folder`."""
    for name, rows in (("train", train), ("test", test)):
        np.save(folder / f"{name}.npy", rows.reshape(-1, *task.shape))
    for method, file, changes, rates in CHECKPOINTS:
        own = (f"task=npy:{folder}", f"checkpoint-dir={folder}", "figures=false")
        config = read_config([shipped_folder() / file], [*changes, *own])
        logger.info("training %s, K = %d", method, config.K)
        outcome = experiment.train(config)
        assert outcome.checkpoint is not None  # None on further ranks of a distributed training, which this is not
        codec = Codec.load(outcome.checkpoint)
        for bits in rates:
            yield Coder(
                method,
                f"K = {config.K}, E = {config.embed_dim}, for {bits:g} bits",
                partial(codec.encode, bits=bits),
                codec.decode,
                len(train),
                codec.size,
                outcome.seconds,
            )


def load_coders(task: Task, checkpoints: Sequence[Path]) -> list[Coder]:
    """Return the codec of each checkpoint at half of the rate it was trained for, at that rate, and at 3/2 of it.

    Checkpoints of the same model share a curve, as ours do: they may be trained for different rates.

    Raises InputError for a checkpoint without a codec, and for one that was trained on other data.
    """
    coders = []
    for path in checkpoints:
        codec, checkpoint = Codec.load(path), storage.load(path)
        if checkpoint.data.get("fingerprint") != task.fingerprint:
            trained_on = printable(checkpoint.data.get("task"), 60)
            raise InputError(f"{printable(path.name, 200)}: was trained on other data ({trained_on}) than {task.name}")
        config = parse_config(checkpoint.config)
        for bits in (factor * (config.bits or UNTRAINED_BITS) for factor in (0.5, 1, 1.5)):
            coders.append(
                Coder(
                    _name_curve(config),
                    f"K = {config.K}, E = {config.embed_dim}, for {bits:g} bits",
                    partial(_encode, codec, path, bits),
                    codec.decode,
                    config.rows or checkpoint.data.get("N", 0),
                    codec.size,
                    checkpoint.seconds,
                )
            )
    return coders


def _name_curve(config: Config) -> str:
    """Return the name of a checkpoint's curve, which all checkpoints of its model share, whatever their K.

    A `gae` of one component with a guide is an autoencoder, and the name of our own curve is not used twice.
    """
    if config.model == "gae" and config.K == 1 and config.latent_start == "learnt":
        return "autoencoder"
    return f"{config.model} (checkpoint)" if config.model in KINDS else config.model


def _encode(codec: Codec, path: Path, bits: float, test: Pixels) -> bytes:
    """Return the file of the test rows at a rate; InputError names the checkpoint where that is impossible."""
    try:
        return codec.encode(test, bits=bits)
    except InputError as problem:
        raise InputError(f"{printable(path.name, 200)}: {problem}") from None


def find_kind(method: str) -> Kind:
    """Return the kind of a method's curve."""
    return KINDS.get(method, "checkpoint")


def compare(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield our mean squared error at COMPARED_BITS against the least of faiss's quantisers, and of image codecs.

    Then that of each checkpoint's curve, at its own rates, against ours. Between two points of a curve, the logarithm
    of the error is linear in the rate; beyond its ends there is nothing.
    """
    curves = trace_curves((row.coding.method, row.at, row.value) for row in rows if row.coding and row.at)
    ours = curves.get(OURS, [])
    kinds: tuple[Kind, ...] = ("quantiser", "image codec")
    for kind in kinds:
        for bits in COMPARED_BITS:
            own = interpolate(ours, bits)
            reached = {name: interpolate(curve, bits) for name, curve in curves.items() if find_kind(name) == kind}
            errors = {error: name for name, error in reached.items() if error is not None}
            if own is not None and errors:
                least = min(errors)
                text = f"mean squared error at {bits} bits: ours; the best {kind}, {errors[least]}"
                yield Row("rate", text, own, "", least, own / least)
    for name, curve in curves.items():
        for at, error in curve if find_kind(name) == "checkpoint" else ():
            own = interpolate(ours, at)
            if own is not None:
                text = f"mean squared error at {at:.1f} bits: {name}; {OURS}"
                yield Row("rate", text, error, "", own, error / own)


def trace_curves(points: Iterable[tuple[str, float, float]]) -> dict[str, list[tuple[float, float]]]:
    """Return the curve of each method from points (method, bits, mean squared error).

    Its points (bits, error) stand by rising rate; those that another point of the method dominates are left out.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for method, bits, error in points:
        curves.setdefault(method, []).append((bits, error))
    return {name: [those[i] for i in find_pareto_front(those)] for name, those in curves.items()}


def interpolate(curve: Sequence[tuple[float, float]], bits: float) -> float | None:
    """Return the error of a curve (bits, error), by rising bits, at a rate; None outside of the curve.

    Rates within 2 % of an end count as reached, for file sizes vary by that much.
    """
    if not curve or not 0.98 * curve[0][0] <= bits <= 1.02 * curve[-1][0]:
        return None
    at, errors = zip(*curve, strict=True)
    return math.exp(float(np.interp(bits, at, np.log(np.maximum(errors, 1e-9)))))
