"""The checkpoint folder of a run: its lock, and saving into a folder that somebody may remove meanwhile."""

from pathlib import Path
from typing import Any

from llgae_cli.config import Config
from llgae_cli.errors import RunError, printable
from llgae_cli.storage.checkpoint import Checkpoint
from llgae_cli.storage.checkpoint_file import save
from llgae_cli.storage.folders import check_writable, clean_temporaries
from llgae_cli.storage.locks import RunLock, clean_locks
from llgae_cli.storage.names import name_of


class RunFolder:
    """The folder that a run writes its checkpoints to. `saved` is the last one that was written."""

    def __init__(self, config: Config):
        self.config, self.path = config, config.checkpoint_dir
        self.lock = RunLock(self.path, config)
        self.saved: Path | None = None

    def prepare(self) -> None:
        """Check that the folder can be written, and remove what killed runs left in it."""
        check_writable(self.path)
        clean_temporaries(self.path)
        clean_locks(self.path)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint under its name.

        Raises RunError where it cannot be written, and where the folder was removed since the run began. In that case
        it is made again and the checkpoint is saved, but the run's lock and its earlier checkpoints are lost, so the
        run must not go on silently.
        """
        name = name_of(self.config, checkpoint.epoch, checkpoint.mean_l2)
        removed = not self.path.is_dir()
        try:
            self.saved = save(checkpoint, self.path, name)
        except RunError as error:
            if self.path.is_dir():
                last = f"; the last good one is {self.saved}, continue with --resume last" if self.saved else ""
                raise RunError(f"{error}{last}") from None
        if not self.path.is_dir():  # removed while the file was being written, or just after
            removed, self.saved = True, save(checkpoint, self.path, name)
        assert self.saved is not None
        # The lock tells of a folder that was removed between the check above and the save, which makes it again.
        if removed or self.lock.lost:
            raise RunError(
                f"{printable(self.path, 300)}: was removed during the run; made again, and the state after epoch "
                f"{checkpoint.epoch} saved there, continue with --resume last"
            )
        return self.saved


def shareable(config: Config) -> dict[str, Any]:
    """Return the plain config as a checkpoint stores it: without `checkpoint-dir` where that is an absolute path.

    Nothing reads it again, and it would show the folders of a machine to whoever gets the file. `task` and `data-dir`
    stay as they were given: `eval` finds the data by them.
    """
    plain = config.plain()
    if config.checkpoint_dir.is_absolute():
        del plain["checkpoint-dir"]
    return plain
