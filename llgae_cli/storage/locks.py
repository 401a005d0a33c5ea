"""Locks on files: the system lets go of one with its process, however that dies.

The locking itself is `filelock.lock_descriptor`, the exclusive lock of each system on a descriptor that we have
opened. Its `FileLock` is not used: it opens for writing alone, where a second user may only read, takes a file with
several names (hard links), and does not say who holds the lock or whether the file has since lost its name.
"""

import errno
import os
import re
from contextlib import suppress
from pathlib import Path

from llgae_cli.config import Config
from llgae_cli.errors import InputError, printable
from llgae_cli.regular_files import open_own
from llgae_cli.storage.folders import discard, is_alive, machine
from llgae_cli.storage.names import CONFIG_ID, name_of

PREFIX = ".lock-"
_NAME = re.compile(rf"{re.escape(PREFIX)}S[0-9]{{1,19}}-cfg{CONFIG_ID}")
_ATTEMPTS = 3  # at opening a file that its holder may remove at any moment


class PathLock:
    """A lock on the file at `path`, held from `attempt` to `release` or to the process's end.

    The file holds the process number of its holder and six digits for the machine (see `folders.machine`). Its
    presence alone means nothing: one that a killed process left is taken over. `release` removes it.

    A file that is another user's and may only be read is locked all the same. `attempt` raises InputError for a
    link, for whatever else is no regular file of a single name, and for a file that may not even be read.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.supported = True  # False where the system, or the folder's file system, has no locks
        self.holder = ""
        self._handle: int | None = None

    def attempt(self) -> bool:
        """Take the lock; False where another process has it, which `holder` then names.

        Where there are no locks this is True and `supported` is False: runs go on as without.
        """
        while True:
            handle, writable = self._open()
            if handle is None:  # a file system that is full, a folder that may not be written: the checkpoint will tell
                self.supported = False
                return True
            taken = _flock(handle)
            if taken is False:
                self.holder = _holder(handle)
            if taken and _has_name(handle, self.path) and (writable or not self._remove()):
                break
            os.close(handle)
            if taken is None:
                self.supported = False
                if writable:
                    discard(self.path)
            if not taken:
                return taken is None
            # Its holder, leaving, removed the file after we had opened it, or we have just removed one that we may not
            # write our number into: this lock was on a file nobody else will find.
        self._handle = handle
        if writable:
            with suppress(OSError):
                os.ftruncate(handle, 0)
                os.write(handle, f"{os.getpid()} {machine()}\n".encode())
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
        if _has_name(handle, self.path):
            self._remove()
        os.close(handle)

    def _open(self) -> tuple[int | None, bool]:
        """A descriptor of the file, made where missing, or None; and whether it may be written to."""
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
                    f"{printable(self.path, 300)}: belongs to another user and cannot be opened, so nobody can tell "
                    "whether a run is at work here; have it removed, or choose another folder"
                ) from None
            except OSError:
                return None, False
        return None, False

    def _remove(self) -> bool:
        """Remove the file, called with the lock held; False in a folder that does not allow it, or that is gone."""
        try:
            os.unlink(self.path)
        except OSError:
            return False
        return True


class RunLock(PathLock):
    """A config's lock in its checkpoint folder: a hidden file, .lock-S28-cfg3f9a2c04d1."""

    def __init__(self, folder: Path, config: Config):
        name = name_of(config, 0, 0.0)
        super().__init__(Path(folder) / f"{PREFIX}S{name.seed}-cfg{name.config_id}")
        self.subject = f"cfg{name.config_id}, seed {name.seed}"


def clean_locks(folder: Path) -> int:
    """Remove the lock files that killed runs left; return how many. Those that are held stay, and so do links."""
    removed = 0
    for path in Path(folder).glob(f"{PREFIX}*") if Path(folder).is_dir() else ():
        if not _NAME.fullmatch(path.name):
            continue
        with suppress(OSError, InputError):
            handle = open_own(path, os.O_RDONLY)
            try:
                if _flock(handle) and _has_name(handle, path):
                    os.unlink(path)
                    removed += 1
            finally:
                os.close(handle)
    return removed


def _flock(handle: int) -> bool | None:
    """Lock an open file: True, False where another process has it, None where there are no locks."""
    from filelock import lock_descriptor  # takes 40 ms, which `llgae runs` does not need

    try:
        return lock_descriptor(handle, blocking=False)
    except OSError:
        return None


def _holder(handle: int) -> str:
    """`process 123`, and that it is another machine's where it is."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        words = os.read(handle, 300).decode("utf-8", "replace").split()
    except OSError:  # Windows lets nobody read what is locked
        words = []
    here = len(words) == 2 and words[1] == machine()
    if not words or not words[0].isdecimal() or (here and not is_alive(int(words[0]))):
        return "another process"  # it has the lock and has not written who it is, or may not
    elsewhere = " on another machine" if len(words) > 1 and not here else ""
    return f"process {printable(words[0])}{elsewhere}"


def _has_name(handle: int, path: Path) -> bool:
    try:
        named, held = os.stat(path, follow_symlinks=False), os.fstat(handle)
    except OSError:
        return False
    return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)
