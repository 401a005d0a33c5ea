"""Run one cell, in a process of its own: train it or continue it, and write its result."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llgae_cli import storage
from llgae_cli.config import Config, read_stored
from llgae_cli.errors import InputError, RunError
from llgae_cli.progress import OnProgress
from llgae_cli.storage import CheckpointName
from llgae_cli.storage.atomic import write_text
from llgae_cli.storage.json_files import validate
from llgae_cli.sweep.folder import result_model, result_name, wait_for_lock
from llgae_cli.sweep.results import read_record

if TYPE_CHECKING:
    from llgae_cli.evaluation import Evaluated

PATIENCE = 120.0  # seconds in which the cell of a sweep that was killed saves and ends


def remove_superseded(config: Config) -> None:
    """Remove all checkpoints of the config but the last: they were only needed to continue from."""
    with suppress(InputError):
        named, _ = storage.list_named(config.checkpoint_dir, config)
        epoch = CheckpointName.parse(named[0].name).epoch if named else 0
        for path in config.checkpoint_dir.glob("S*.pkl"):
            if CheckpointName.parse(path.name).epoch < epoch:
                path.unlink(missing_ok=True)


def run_cell(
    folder: Path,
    until: int | None = None,
    keep_all: bool = False,
    on_epoch: Callable[[dict[str, float], int], None] = lambda record, epochs: None,
    on_progress: OnProgress | None = None,
) -> None:
    """Train the cell in `folder` to its end, or to `until` epochs, and write its result there.

    Continues from its last checkpoint where there is one, and does nothing where the result exists. `keep_all` keeps
    earlier checkpoints; `on_epoch` and `on_progress` are those of `experiment.train`.

    Raises what `experiment.train` raises.
    """
    config = read_stored(folder / "config.yaml").model_copy(update={"checkpoint_dir": folder})
    if until is not None:
        config = config.model_copy(update={"epochs": min(until, config.epochs)})
    with wait_for_lock(folder / "lock", PATIENCE):
        path = folder / result_name(until)
        if read_record(path, result_model(until)) is not None:
            return
        from llgae_cli import experiment

        def complete_epoch(record: dict[str, float], epochs: int) -> None:
            on_epoch(record, epochs)
            if not keep_all:
                remove_superseded(config)

        resume = "last" if _has_checkpoint(folder, config) else None
        outcome = experiment.train(config, resume, PATIENCE, complete_epoch, on_progress)
        if outcome.checkpoint is None or outcome.evaluated is None:  # only the first process of several has one
            raise RunError("a cell of a sweep is one process; do not start it by torchrun")
        if not keep_all:
            remove_superseded(config)
        result = {
            "checkpoint": outcome.checkpoint.name,
            "mean_l2": outcome.mean_l2,
            "train_mean_l2": outcome.train_mean_l2,
            "validation_mean_l2": outcome.validation_mean_l2,
            "epoch": outcome.epochs,
            "seconds": outcome.seconds,
            "threads": config.threads,
            **(_measure_rates(outcome.evaluated) if until is None else {}),
        }
        validate(result_model(until), result, path)
        write_text(path, json.dumps(result, indent=2) + "\n")


def _measure_rates(evaluated: "Evaluated") -> dict[str, Any]:
    """Return the fields of the test samples' rate, and bits and mean L2 of the held-out samples as coded."""
    rates = asdict(evaluated.rate)
    if (held_out := evaluated.validation_rate) is not None:
        rates["validation_bits_coded"] = held_out.bits_coded
        rates["validation_mean_l2_coded"] = held_out.mean_l2_coded
    return rates


def _has_checkpoint(folder: Path, config: Config) -> bool:
    try:
        storage.find_last(folder, config)
    except InputError:
        return False
    return True
