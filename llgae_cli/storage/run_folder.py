"""The checkpoint folder of a run: its lock, and saving into a folder that may be removed meanwhile."""

from pathlib import Path
from typing import Any

from llgae_cli.config import Config
from llgae_cli.errors import RunError, show_path
from llgae_cli.storage.atomic import check_writable, clean_temporaries
from llgae_cli.storage.checkpoint import Checkpoint
from llgae_cli.storage.checkpoint_file import save
from llgae_cli.storage.locks import Lock, clean_locks
from llgae_cli.storage.names import name_of


class RunFolder:
    """The folder that a run writes its checkpoints to.

    `saved` is the path of the last one, which may be of an earlier run; `written` is that of this run's last one.
    """

    def __init__(self, config: Config):
        self.config, self.path = config, config.checkpoint_dir
        self.lock = Lock.of_run(self.path, config)
        self.saved: Path | None = None
        self.written: Path | None = None

    def prepare(self) -> None:
        """Check that the folder can be written, and remove the temporary files and locks of killed runs."""
        check_writable(self.path)
        clean_temporaries(self.path)
        clean_locks(self.path)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint under its name and return its path.

        Raises RunError where it cannot be written, and where the folder was removed since the run began. In that case
        the folder is made again and the checkpoint is saved, but the run's lock and its earlier checkpoints are lost,
        so the run must not go on.
        """
        name = name_of(self.config, checkpoint.epoch, checkpoint.mean_l2)
        removed = not self.path.is_dir()
        try:
            self.saved = self.written = save(checkpoint, self.path, name)
        except RunError as error:
            if self.path.is_dir():
                last = f"; the last good one is {self.saved}, continue with --resume last" if self.saved else ""
                raise RunError(f"{error}{last}") from None
        if not self.path.is_dir():  # removed while the file was being written, or just after
            removed = True
            self.saved = self.written = save(checkpoint, self.path, name)
        assert self.saved is not None
        # The lock is lost where the folder was removed between the check above and the save, which made it again.
        if removed or self.lock.lost:
            raise RunError(
                f"{show_path(self.path)}: was removed during the run; made again, and the state after epoch "
                f"{checkpoint.epoch} saved there, continue with --resume last"
            )
        return self.saved


def export_config(config: Config) -> dict[str, Any]:
    """Return the plain config as a checkpoint stores it: without `checkpoint-dir` where that is an absolute path.

    Nothing reads it again, and it would reveal the folders of a machine to everybody who gets the file. `task` and
    `data-dir` stay unchanged: `eval` finds the data by them.
    """
    plain = config.plain()
    if config.checkpoint_dir.is_absolute():
        del plain["checkpoint-dir"]
    return plain
