"""A folder of checkpoints: may it be written, and what was left in it by killed processes."""

import errno
import hashlib
import os
import platform
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path

from llgae_cli.errors import InputError, RunError, printable

_TEMPORARY = re.compile(r"\.tmp-([0-9]{1,10})-([0-9a-f]{6})-[0-9a-f]+")
FORSAKEN = 86_400.0  # seconds without a write after which a temporary file is nobody's, wherever it came from

# The folder is named rightly, and the system refuses to write in it.
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


def check_writable(folder: Path) -> None:
    """Make `folder` where missing and try to write in it: called before training, so that a run is not lost to it.

    Raises RunError where the disk is full, read-only or not ours to write, InputError where no folder can have that
    name, with the system's reason.
    """
    try:
        made_folder(Path(folder))
        trial = temporary_path(Path(folder))
        try:
            with open(trial, "xb") as file:
                file.write(b"llgae")
        finally:
            discard(trial)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        kind = RunError if getattr(error, "errno", None) in _REFUSALS else InputError
        raise kind(f"{printable(folder, 300)}: checkpoints cannot be written here ({reason})") from None


def made_folder(folder: Path) -> None:
    """Make the folder and its parents, and flush the entry of each new one. Raises OSError, also when it is a file."""
    ahead = folder
    missing = []
    while not ahead.exists() and ahead != ahead.parent:
        missing.append(ahead)
        ahead = ahead.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except RecursionError:  # a thousand folders deep
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG)) from None
    for new in reversed(missing):
        flush_folder(new.parent)


def flush_folder(folder: Path) -> None:
    """Wait for the disk to have a folder's entries. Raises OSError where it cannot write them."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders, nor may every parent be read: as durable as the system makes it
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some network file systems
            raise
    finally:
        os.close(handle)


def temporary_path(folder: Path) -> Path:
    """A hidden name nobody has, that says which process of which machine it belongs to: .tmp-PID-MACHINE-RANDOM."""
    return folder / f".tmp-{os.getpid()}-{machine()}-{secrets.token_hex(6)}"


def discard(temporary: Path) -> None:
    """Remove a temporary file where there is one and the system lets us; `clean_temporaries` gets what stays."""
    with suppress(OSError):  # the folder has become read-only: what the write itself met is what is to be said
        temporary.unlink()


def clean_temporaries(folder: Path) -> int:
    """Remove what processes left half-written and that live no longer; return how many files.

    Files of living processes stay. Of another machine's, on a shared disk, or another container's nobody here can
    know: theirs stay until nothing has been written to them for a day. So does any file that cannot be removed.
    """
    removed = 0
    for path in Path(folder).glob(".tmp-*") if Path(folder).is_dir() else ():
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or (match[2] == machine() and is_alive(int(match[1]))):
            continue
        try:
            if match[2] != machine() and time.time() - path.stat().st_mtime < FORSAKEN:
                continue
            path.unlink()
            removed += 1
        except OSError:  # another process cleaned it first, or it is not ours to remove
            continue
    return removed


def machine() -> str:
    """Six digits for where a process number means something: the machine, and in it the container."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        numbering = ""
    return hashlib.sha256(f"{platform.node()}{numbering}".encode("utf-8", "replace")).hexdigest()[:6]


def is_alive(pid: int) -> bool:
    """Whether a process of this machine has the number; True also where only that cannot be told."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's process, or a number that no process has: leave the file
        return True
    return True
