"""How checkpoints of one task stand beside each other: quality, size of the code, and time."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llgae_cli import codes, experiment, metrics
from llgae_cli.errors import InputError, printable
from llgae_cli.figures import Subject, look, names
from llgae_cli.figures.subject import UNFINISHED
from llgae_cli.models import Model
from llgae_cli.rate import measure_rate
from llgae_cli.restoring import restore
from llgae_cli.tasks import Samples, Task

TIMED_SAMPLES = 10_000
PASSES = 3


@dataclass(frozen=True)
class Standing:
    """A checkpoint in numbers, all of them of the test samples but `train_mean_l2`.

    name             what tables and pictures call it; no two alike
    K, E             the config's components, and the numbers in b
    bits_float       of a code with b as 32-bit floats, at `mean_l2`
    bits_coded       of a code with b rounded and entropy-coded, at `mean_l2_coded` (see `rate`)
    train_seconds    time spent training, on whatever machine that was, with `train_threads` (0: as many as torch chose)
    encode_seconds   a sample, measured here (see `encode_seconds`)
    psnr             decibel
    """

    checkpoint: str
    name: str
    model: str
    K: int
    E: int
    parameters: int
    bits_float: float
    bits_coded: float
    mean_l2: float
    mean_l2_coded: float
    train_mean_l2: float
    train_seconds: float
    train_threads: int
    encode_seconds: float
    psnr: float

    def plain(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def look_at_all(paths: Sequence[Path], data_dir: Path | None = None) -> list[Subject]:
    """The checkpoints on the test samples of their one task, the lowest mean L2 first.

    Raises InputError where they were trained on different data or centred differently, and as `look`.
    """
    first: dict[str, Any] | None = None
    for path in paths:
        _, checkpoint, config = restore(path)
        data = {**checkpoint.data, "task": config.task, "centring": config.centring}
        first = first or data
        for key, what in (("fingerprint", "data"), ("centring", "centring")):
            if data.get(key) != first.get(key):
                raise InputError(
                    f"{printable(path.name, 200)}: other {what} ({printable(data['task'], 60)}, {data.get(key)}) than "
                    f"{printable(paths[0].name, 200)}'s ({printable(first['task'], 60)}, {first.get(key)}); "
                    "compare checkpoints of one task"
                )
    task: Task | None = None
    subjects = []
    for path in paths:
        subjects.append(_completed(look(path, data_dir, task)))
        task = subjects[0].task
    return sorted(subjects, key=lambda subject: subject.evaluation.mean_l2)


def measure(subjects: Sequence[Subject], note: Callable[[str], None]) -> list[Standing]:
    """A row for each subject, in their order; `note` is told of each before its turn."""
    rows = []
    for subject, name in zip(subjects, names(subjects), strict=True):
        note(f"measuring {name}")
        model, test, mean_l2 = subject.model, subject.task.test, subject.evaluation.mean_l2
        rate = measure_rate(model, test, mean_l2, subject.latents)
        train_mean_l2 = subject.checkpoint.train_mean_l2
        rows.append(
            Standing(
                checkpoint=str(subject.path),
                name=name,
                model=subject.config.model,
                K=subject.config.K,
                E=model.E,
                parameters=sum(parameter.numel() for parameter in model.parameters()),
                bits_float=rate.bits_float,
                bits_coded=rate.bits_coded,
                mean_l2=mean_l2,
                mean_l2_coded=rate.mean_l2_coded,
                train_mean_l2=metrics.mean_l2(model, _train(subject)) if train_mean_l2 is None else train_mean_l2,
                train_seconds=subject.checkpoint.seconds,
                train_threads=subject.config.threads,
                encode_seconds=encode_seconds(model, test),
                psnr=subject.evaluation.psnr,
            )
        )
    return rows


def encode_seconds(model: Model, samples: Samples) -> float:
    """Seconds to encode a sample: the median of PASSES passes over at most TIMED_SAMPLES, in chunks.

    Reading and centring the samples is not counted. One chunk before the first pass warms up.
    """
    passes = []
    for turn in range(PASSES + 1):
        seconds, done = 0.0, 0
        for _, x in samples.chunks(metrics.CHUNK):
            x = x[: TIMED_SAMPLES - done]
            began = time.perf_counter()
            model.encode(x)
            seconds += time.perf_counter() - began
            done += len(x)
            if done == TIMED_SAMPLES or turn == 0:
                break
        passes.append(seconds / done)
    return statistics.median(passes[1:])


def _completed(subject: Subject) -> Subject:
    """The subject; of an unfinished run's checkpoint with the spread of the training samples' codes, as a finished has.

    The test samples' own would price their code too low.
    """
    if UNFINISHED not in subject.warnings:
        return subject
    _, latents = metrics.measure(subject.model, _train(subject), subject.task.peak)
    warnings = tuple(line for line in subject.warnings if line != UNFINISHED)
    done = f"an unfinished run's checkpoint, after epoch {subject.checkpoint.epoch} of {subject.config.epochs}"
    directions = codes.directions_of(subject.model, latents)
    return replace(subject, latents=latents, directions=directions, warnings=(*warnings, done))


def _train(subject: Subject) -> Samples:
    return experiment.held_out(subject.task.train, subject.config.validation, subject.config.seed)[0]


def threads() -> int:
    """CPU threads that encoding was timed with."""
    return torch.get_num_threads()
