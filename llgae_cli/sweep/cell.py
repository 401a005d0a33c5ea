"""One cell at work, in a process of its own: train or go on, measure, leave the result."""

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llgae_cli import checkpoints
from llgae_cli.checkpoints import CheckpointName
from llgae_cli.config import Config, read_stored
from llgae_cli.errors import InputError, RunError
from llgae_cli.records import validate
from llgae_cli.sweep.folder import held_when_free, result_model, result_name, write_whole
from llgae_cli.sweep.records import read_record

PATIENCE = 120.0  # seconds: an orphan of a killed sweep saves and goes within one of its epochs


class Keeper:
    """An experiment's reporter that passes on, and removes checkpoints that a later one has made useless."""

    def __init__(self, reporter: Any, config: Config, keep_all: bool):
        self.reporter, self.config, self.keep_all = reporter, config, keep_all

    def note(self, message: str) -> None:
        """Something worth a line."""
        self.reporter.note(message)

    def warn(self, message: str) -> None:
        """Something wrong that does not end the run."""
        self.reporter.warn(message)

    def epoch(self, record: dict[str, float], epochs: int) -> None:
        """An epoch is done."""
        self.reporter.epoch(record, epochs)
        self.tidy()

    def tidy(self) -> None:
        """Leave the last checkpoint alone: all but one of those that the sweep itself had asked for are in the way."""
        if self.keep_all:
            return
        with suppress(InputError):
            named, _ = checkpoints.list_named(self.config.checkpoint_dir, self.config)
            epoch = CheckpointName.parse(named[0].name).epoch if named else 0
            for path in self.config.checkpoint_dir.glob("S*.pkl"):
                if CheckpointName.parse(path.name).epoch < epoch:
                    path.unlink(missing_ok=True)


def run_cell(folder: Path, reporter: Any, until: int | None = None, keep_all: bool = False) -> None:
    """Bring the cell in `folder` to its end, or to `until` epochs, and write its result there.

    Goes on from its last checkpoint where there is one, and does nothing where the result is there. Raises what
    `experiment.train` raises.
    """
    config = read_stored(folder / "config.yaml").model_copy(update={"checkpoint_dir": folder})
    if until is not None:
        config = config.model_copy(update={"epochs": min(until, config.epochs)})
    with held_when_free(folder / "lock", PATIENCE):
        path = folder / result_name(until)
        if read_record(path, result_model(until)) is not None:
            return
        from llgae_cli import experiment

        keeper = Keeper(reporter, config, keep_all)
        outcome = experiment.train(config, keeper, "last" if _begun(folder, config) else None, PATIENCE)
        if outcome.checkpoint is None:  # only the first process of several has one
            raise RunError("a cell of a sweep is one process; torchrun does not start sweeps")
        keeper.tidy()
        result = {
            "checkpoint": outcome.checkpoint.name,
            "mean_l2": outcome.mean_l2,
            "train_mean_l2": outcome.train_mean_l2,
            "validation_mean_l2": outcome.validation_mean_l2,
            "epoch": outcome.epochs,
            "seconds": outcome.seconds,
            "threads": config.threads,
            **(_rate(outcome.checkpoint, outcome.mean_l2) if until is None else {}),
        }
        validate(result_model(until), result, path)
        write_whole(path, json.dumps(result, indent=2) + "\n")


def _begun(folder: Path, config: Config) -> bool:
    try:
        checkpoints.find_last(folder, config)
    except InputError:
        return False
    return True


def _rate(path: Path, mean_l2: float) -> dict[str, Any]:
    from llgae_cli import codes, experiment, metrics
    from llgae_cli.rate import measure_rate
    from llgae_cli.restoring import restore
    from llgae_cli.tasks import load_task

    model, checkpoint, config = restore(path)
    task = load_task(config.task, config.data_dir, config.centring, config.seed)
    try:
        latents = codes.latents_of(checkpoint, model, path)
    except InputError:  # saved on a signal, right after the last epoch
        train = experiment.held_out(task.train, config.validation, config.seed)[0]
        _, latents = metrics.measure(model, train, task.peak)
    return asdict(measure_rate(model, task.test, mean_l2, latents))
