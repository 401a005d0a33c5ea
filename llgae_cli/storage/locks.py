"""Locks on files. The system releases a lock when its process ends, for any reason.

The locking itself is `filelock.lock_descriptor`, which gives the exclusive lock of each system on a descriptor that we
have opened. Its class `FileLock` is not used: it opens the file for writing, where a second user may only read; it
accepts a file with several names (hard links); and it reports neither the holder of a lock nor whether the file has
since lost its name.
"""

import errno
import os
import re
from contextlib import suppress
from pathlib import Path

from llgae_cli.config import Config
from llgae_cli.errors import InputError, printable, show_path
from llgae_cli.interrupts import postpone
from llgae_cli.regular_files import open_own
from llgae_cli.storage.atomic import discard
from llgae_cli.storage.names import CONFIG_ID, name_of
from llgae_cli.storage.processes import is_alive, machine

PREFIX = ".lock-"
_NAME = re.compile(rf"{re.escape(PREFIX)}S[0-9]{{1,19}}-cfg{CONFIG_ID}")
_ATTEMPTS = 3  # to open a file that its holder may remove at any moment


class Lock:
    """A lock on the file at `path`, held from `attempt` to `release` or to the end of the process.

    The file holds the process number of its holder and `processes.machine()`. The file without a lock on it means
    nothing: one that a killed process left is reused. `release` removes it. `subject` is what messages call that which
    is locked.

    A file of another user that may only be read is locked too. `attempt` raises InputError for a link, for anything
    else that is not a regular file with a single name, and for a file that may not even be read.
    """

    def __init__(self, path: Path, subject: str = ""):
        self.path, self.subject = Path(path), subject
        self.supported = True  # False where the system, or the folder's file system, has no locks
        self.holder = ""
        self._handle: int | None = None

    @classmethod
    def of_run(cls, folder: Path, config: Config) -> "Lock":
        """Return the lock of a config in its checkpoint folder: a hidden file, .lock-S28-cfg3f9a2c04d1."""
        name = name_of(config, 0, 0.0)
        path = Path(folder) / f"{PREFIX}S{name.seed}-cfg{name.config_id}"
        return cls(path, f"cfg{name.config_id}, seed {name.seed}")

    def attempt(self) -> bool:
        """Try to lock the file. Return False where another process holds the lock, and name it in `holder`.

        Where there are no locks this is True and `supported` is False: runs go on without.
        """
        while True:
            handle, writable = self._open()
            if handle is None:  # a full file system, a folder that may not be written: saving will report that
                self.supported = False
                return True
            locked = lock_handle(handle)
            if locked is False:
                self.holder = _read_holder(handle)
            if locked and _has_name(handle, self.path) and (writable or not self._remove()):
                break
            os.close(handle)
            if locked is None:
                self.supported = False
                if writable:
                    discard(self.path)
            if not locked:
                return locked is None
            # Try again: this lock is on a file without a name, which no other process can find. Either its holder
            # removed it after we had opened it, or we have just removed one that we may not write our number into.
        self._handle = handle
        if writable:
            with suppress(OSError):
                os.ftruncate(handle, 0)
                os.write(handle, f"{os.getpid()} {machine()}\n".encode())
        return True

    @property
    def lost(self) -> bool:
        """Whether the held lock is on a file without its name: the folder was removed, and perhaps made again."""
        return self._handle is not None and not _has_name(self._handle, self.path)

    @postpone()
    def release(self) -> None:
        """Unlock and remove the file. Does nothing where the lock is not held."""
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        if _has_name(handle, self.path):
            self._remove()
        os.close(handle)

    def _open(self) -> tuple[int | None, bool]:
        """Return a descriptor of the file (made where missing) or None, and whether it is writable."""
        for _ in range(_ATTEMPTS):
            try:
                return open_own(self.path, os.O_RDWR | os.O_CREAT), True
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                    return None, False
            try:
                return open_own(self.path, os.O_RDONLY), False
            except FileNotFoundError:  # it may not be made, or its holder has just removed it
                continue
            except PermissionError:
                raise InputError(
                    f"{show_path(self.path)}: belongs to another user and cannot be opened, so nobody can know "
                    "whether a run is active here; have it removed, or choose another folder"
                ) from None
            except OSError:
                return None, False
        return None, False

    def _remove(self) -> bool:
        """Remove the file, whose lock is held; return False where the folder does not allow it, or is missing."""
        try:
            os.unlink(self.path)
        except OSError:
            return False
        return True


def clean_locks(folder: Path) -> int:
    """Remove the lock files of killed runs; return how many. Those that are held stay, and so do links."""
    removed = 0
    for path in Path(folder).glob(f"{PREFIX}*") if Path(folder).is_dir() else ():
        if not _NAME.fullmatch(path.name):
            continue
        with suppress(OSError, InputError):
            handle = open_own(path, os.O_RDONLY)
            try:
                if lock_handle(handle) and _has_name(handle, path):
                    os.unlink(path)
                    removed += 1
            finally:
                os.close(handle)
    return removed


def lock_handle(handle: int) -> bool | None:
    """Lock an open file. Return False where another process holds the lock, None where there are no locks."""
    from filelock import lock_descriptor  # takes 40 ms to import, which `llgae runs` does not need

    try:
        return lock_descriptor(handle, blocking=False)
    except OSError:
        return None


def _read_holder(handle: int) -> str:
    """Return `process 123`, and `on another machine` where that is so."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        words = os.read(handle, 300).decode("utf-8", "replace").split()
    except OSError:  # Windows does not allow to read a locked file
        words = []
    here = len(words) == 2 and words[1] == machine()
    if not words or not words[0].isdecimal() or (here and not is_alive(int(words[0]))):
        return "another process"  # it has not written its number yet, or may not
    elsewhere = " on another machine" if len(words) > 1 and not here else ""
    return f"process {printable(words[0])}{elsewhere}"


def _has_name(handle: int, path: Path) -> bool:
    """Return whether the path is a name of the open file."""
    try:
        named, held = os.stat(path, follow_symlinks=False), os.fstat(handle)
    except OSError:
        return False
    return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)
