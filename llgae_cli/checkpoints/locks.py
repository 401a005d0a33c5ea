"""One run of a config at a time in a folder: a lock that the system lets go of with its process, however that dies."""

import errno
import os
import platform
from contextlib import suppress
from pathlib import Path

from llgae_cli.checkpoints.folders import discard
from llgae_cli.checkpoints.names import name_of
from llgae_cli.config import Config
from llgae_cli.errors import printable

PREFIX = ".lock-"


class RunLock:
    """A config's lock in its checkpoint folder, held from `attempt` to `release` or to the process's end.

    A hidden file, .lock-S28-cfg3f9a2c, that is flocked and names its holder. Its presence alone means nothing: one
    that a killed run left is taken over. `release` removes it.
    """

    def __init__(self, folder: Path, config: Config):
        name = name_of(config, 0, 0.0)
        self.path = Path(folder) / f"{PREFIX}S{name.seed}-cfg{name.config_id}"
        self.subject = f"cfg{name.config_id}, seed {name.seed}"
        self.supported = True  # False where the system, or the folder's file system, has no locks
        self.holder = ""
        self._handle: int | None = None

    def attempt(self) -> bool:
        """Take the lock; False where another run has it, which `holder` then names.

        Where there are no locks this is True and `supported` is False: runs go on as without.
        """
        while True:
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError:  # another user's file, or a file system that is full: the checkpoint will tell
                self.supported = False
                return True
            taken = _flock(handle)
            if taken is False:
                self.holder = _holder(handle)
            if taken and _has_name(handle, self.path):
                break
            os.close(handle)
            if taken is None:
                self.supported = False
                discard(self.path)
            if not taken:
                return taken is None
            # The holder, leaving, removed it after we had opened it: this lock was on a file nobody else will find.
        self._handle = handle
        with suppress(OSError):
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()} {platform.node()}\n".encode())
        return True

    @property
    def lost(self) -> bool:
        """Whether the lock is held on a file that is gone: the folder was removed, even if it is there again."""
        return self._handle is not None and not _has_name(self._handle, self.path)

    def release(self) -> None:
        """Let go and remove the file. Does nothing where the lock is not held."""
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        with suppress(OSError):  # a folder that has become read-only, or is gone
            if _has_name(handle, self.path):
                os.unlink(self.path)
        os.close(handle)


def clean_locks(folder: Path) -> int:
    """Remove the lock files that killed runs left; return how many. Those that are held stay."""
    removed = 0
    for path in Path(folder).glob(f"{PREFIX}*") if Path(folder).is_dir() else ():
        with suppress(OSError):
            handle = os.open(path, os.O_RDWR)
            try:
                if _flock(handle) and _has_name(handle, path):
                    os.unlink(path)
                    removed += 1
            finally:
                os.close(handle)
    return removed


def _flock(handle: int) -> bool | None:
    """Lock an open file: True, False where another process has it, None where there are no locks."""
    try:
        import fcntl  # Unix alone

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError) as error:
        return False if getattr(error, "errno", None) in (errno.EAGAIN, errno.EACCES) else None
    return True


def _holder(handle: int) -> str:
    """`process 123`, with its machine where that is another one."""
    words = os.pread(handle, 300, 0).decode("utf-8", "replace").split()
    if not words or not words[0].isdecimal():
        return "another process"  # it has the lock and has not yet written who it is
    elsewhere = f" on {printable(words[1])}" if len(words) > 1 and words[1] != platform.node() else ""
    return f"process {printable(words[0])}{elsewhere}"


def _has_name(handle: int, path: Path) -> bool:
    try:
        named, held = os.stat(path), os.fstat(handle)
    except OSError:
        return False
    return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)
