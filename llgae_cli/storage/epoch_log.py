"""The figures of each epoch as they are measured, for other programs: JSON lines, or TensorBoard's event files."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from typing import Any, Protocol

from llgae_cli.config import Config
from llgae_cli.errors import InputError
from llgae_cli.regular_files import open_own
from llgae_cli.storage.atomic import make_folder
from llgae_cli.storage.names import slug

OnEpoch = Callable[[dict[str, float], int], None]  # row of the history, largest number of epochs

FOLDER = "logs"  # in the checkpoint folder


class EpochLog(Protocol):
    """Receives the row of the history after each epoch."""

    def write(self, row: Mapping[str, float]) -> None:
        """Add a row. Of several with one epoch, as after a resumed run, the last counts."""

    def close(self) -> None:
        """Write what is buffered."""


@contextmanager
def log_epochs(config: Config, on_epoch: OnEpoch, active: bool = True) -> Iterator[OnEpoch]:
    """Yield a function that calls `on_epoch` and, if `active`, also writes the log that the config asks for.

    Raises InputError where a package is missing.
    """
    log = LOGS[config.log](config) if active and config.log in LOGS else None

    def write(record: dict[str, float], epochs: int) -> None:
        on_epoch(record, epochs)
        if log is not None:
            log.write(record)

    with closing(log) if log is not None else nullcontext():
        yield write


def name_of_log(config: Config) -> str:
    """Return the name of a run's log: its task, model, K, E, and the digest of its config."""
    return f"{slug(config.task)}-{config.model}-K{config.K}-E{config.embed_dim}-cfg{config.identity()}"


class JsonLines:
    """One line a row, appended to checkpoint-dir/logs/NAME.jsonl: a JSON object of numbers, with the key `epoch`."""

    def __init__(self, config: Config):
        self.path = config.checkpoint_dir / FOLDER / f"{name_of_log(config)}.jsonl"
        make_folder(self.path.parent)

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row; that of epoch 1 begins the file anew."""
        with os.fdopen(open_own(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as file:
            if row["epoch"] == 1:
                file.truncate(0)
            file.write(json.dumps(dict(row)).encode() + b"\n")

    def close(self) -> None:
        """Do nothing: every line is written at once."""


class TensorBoard:
    """Scalars in checkpoint-dir/logs/NAME/, one for each figure of a row, over epochs."""

    def __init__(self, config: Config):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("log: tensorboard needs the package tensorboard: pip install 'llgae[tracking]'") from None
        self.folder, self._writer_type = config.checkpoint_dir / FOLDER / name_of_log(config), SummaryWriter
        make_folder(self.folder)
        self.writer: Any = None

    def write(self, row: Mapping[str, float]) -> None:
        """Add a row. TensorBoard drops points from this epoch on that an earlier process has written."""
        epoch = int(row["epoch"])
        if self.writer is None:
            self.writer = self._writer_type(str(self.folder), purge_step=epoch)
        for name, value in row.items():
            if name != "epoch":
                self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self.writer is not None:
            self.writer.close()


LOGS: dict[str, Callable[[Config], EpochLog]] = {"jsonl": JsonLines, "tensorboard": TensorBoard}
