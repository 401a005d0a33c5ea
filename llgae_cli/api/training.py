"""Training from Python: a config in, a fitted model out."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from llgae_cli import experiment, interrupts
from llgae_cli.api.fitted_model import FittedModel
from llgae_cli.config import Config, read_config, read_values
from llgae_cli.errors import Interrupted, RunError
from llgae_cli.progress import OnProgress
from llgae_cli.threads import limited_threads


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """Result of a training.

    model       the trained model
    metrics     the figures of `llgae train --json` and, of the test samples, of `llgae eval --json`: mean_l2,
                train_mean_l2, validation_mean_l2, epochs, seconds, explained_variance, psnr, usage, per_class, ...
    checkpoint  the file that was written
    history     one mapping of numbers per epoch
    """

    model: FittedModel
    metrics: dict[str, Any]
    checkpoint: Path
    history: list[dict[str, float]]


def train(
    config: Config | Mapping[str, Any] | str | os.PathLike[str],
    on_progress: OnProgress | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> TrainingResult:
    """Train as the config says, write the checkpoint, and return the model with its metrics.

    `config`: the keys of a config, with dashes or underscores (`{"task": "mnist", "embed_dim": 10}`), a YAML file, or a
    Config. `on_progress` is called with a `Progress` several times a second, one call at a time, perhaps from another
    thread. `resume` is `last` or a checkpoint. The number of torch's threads and its random state on the CPU are
    restored at the end. Ctrl-C saves the last complete epoch, as it does on the command line, and then raises
    KeyboardInterrupt; a second one ends at once. No figures are drawn.

    Raises InputError, with the line that `llgae train` prints, for a wrong config or data, and RunError for a training
    that cannot go on.
    """
    if isinstance(config, Mapping):
        config = read_values(config)
    elif not isinstance(config, Config):
        config = read_config([Path(config)])

    with torch.random.fork_rng(devices=[]), limited_threads(), catch_keyboard():
        outcome = experiment.train(config, None if resume is None else str(resume), on_progress=on_progress)
    if outcome.checkpoint is None or outcome.evaluated is None:
        raise RunError("train: of several processes only the first has a result; start them with llgae train")
    stored = outcome.evaluated.checkpoint
    names = ("mean_l2", "train_mean_l2", "validation_mean_l2", "epochs", "seconds")
    metrics = outcome.evaluated.metrics.plain() | {name: getattr(outcome, name) for name in names}
    model = FittedModel(outcome.evaluated.model, stored, config, outcome.checkpoint)
    return TrainingResult(model, metrics, outcome.checkpoint, stored.history)


@contextmanager
def catch_keyboard() -> Iterator[None]:
    """Within the block, Ctrl-C lets the training save its state; KeyboardInterrupt, which names the file, follows.

    Only where Python's own handler is in place, and in the main thread: others have no handlers.
    """
    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def save_first(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # for a second Ctrl-C
        interrupts.receive(signum)

    interrupts.reset()
    signal.signal(signal.SIGINT, save_first)
    try:
        yield
    except Interrupted as interrupt:
        saved = f"saved {interrupt.saved}; continue with resume='last'" if interrupt.saved else "nothing was saved"
        raise KeyboardInterrupt(saved) from None
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupts.reset()
