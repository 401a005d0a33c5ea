"""Checkpoints of one task in numbers: quality, rate and time."""

import logging
import statistics
import time
from collections.abc import Sequence
from typing import Any

from llgae_cli.evaluation.encoding import CHUNK
from llgae_cli.evaluation.evaluated import Evaluated, name_models
from llgae_cli.evaluation.same_rate import Coded
from llgae_cli.models import Model
from llgae_cli.tasks import Samples

TIMED_SAMPLES = 10_000
TIMED_SECONDS = 10.0  # after which a pass ends with the chunk in hand: networks take a minute and more for all samples
PASSES = 3

logger = logging.getLogger(__name__)


def compare(evaluated: Sequence[Evaluated], coded: Sequence[Coded] = ()) -> list[dict[str, Any]]:
    """Return a row of plain values for each checkpoint, measured on the test samples except `train_mean_l2`.

    name             unique in tables and pictures
    K, E             components in the config, and numbers in b
    bits_float       of a code with b as 32-bit floats, at `mean_l2`
    bits_coded       of a code as the codec writes it at the model's own step, with `mean_l2_coded` (see `rate`)
    bits_estimated   whether these two are estimates, for a model without a codec (see `rate_estimate`)
    train_seconds    time spent training, on the machine that trained it, with `train_threads` (0: torch's choice)
    encode_seconds   a sample, measured here (see `time_encoding`)
    psnr             decibel

    With `coded`, one for each checkpoint, also `file_samples`, `file_bits` and `file_mean_squared_error` (see `Coded`).
    """
    rows = []
    for one, name in zip(evaluated, name_models(evaluated), strict=True):
        logger.info("measuring %s", name)
        row = {
            "checkpoint": str(one.path),
            "name": name,
            "model": one.config.model,
            "K": one.config.K,
            "E": one.model.E,
            "parameters": sum(parameter.numel() for parameter in one.model.parameters()),
            "bits_float": one.rate.bits_float,
            "bits_coded": one.rate.bits_coded,
            "bits_estimated": one.rate.bits_estimated,
            "mean_l2": one.metrics.mean_l2,
            "mean_l2_coded": one.rate.mean_l2_coded,
            "train_mean_l2": one.train_mean_l2,
            "train_seconds": one.checkpoint.seconds,
            "train_threads": one.config.threads,
            "encode_seconds": time_encoding(one.model, one.task.test),
            "psnr": one.metrics.psnr,
        }
        rows.append(row)
    for row, file in zip(rows, coded, strict=True) if coded else ():
        row["file_samples"], row["file_bits"] = file.n, file.bits
        row["file_mean_squared_error"] = file.mean_squared_error
    return rows


def time_encoding(model: Model, samples: Samples) -> float:
    """Return the seconds to encode a sample: median of `PASSES` passes over at most `TIMED_SAMPLES`, in chunks.

    A pass that has taken `TIMED_SECONDS` ends with its chunk. Reading and centring the samples is not counted. One
    chunk before the first pass warms up.
    """
    passes = []
    for turn in range(PASSES + 1):
        seconds, done = 0.0, 0
        for _, x in samples.chunks(CHUNK):
            x = x[: TIMED_SAMPLES - done]
            began = time.perf_counter()
            model.encode(x)
            seconds += time.perf_counter() - began
            done += len(x)
            if done == TIMED_SAMPLES or turn == 0 or seconds > TIMED_SECONDS:
                break
        passes.append(seconds / done)
    return statistics.median(passes[1:])
