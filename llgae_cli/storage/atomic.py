"""Atomic writing: a file appears under its name complete or not at all."""

import errno
import itertools
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llgae_cli.errors import InputError, RunError, explain, show_path
from llgae_cli.interrupts import postpone
from llgae_cli.storage.processes import is_alive, machine

ABANDONED = 86_400.0  # seconds without a write after which a temporary file of another machine is removed

_TEMPORARY = re.compile(r"\.tmp-([0-9]{1,10})-([0-9a-f]{6})-[0-9a-f]+")
# Errors of a folder whose name is correct and in which the system refuses to write.
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


@contextmanager
def write_atomically(path: Path, durable: bool = True, keep_old: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the same folder; when the block ends, rename what it wrote there to `path`.

    If the block raises, the temporary file is removed and `path` is unchanged. An interrupt that comes during the
    rename waits for its end. The folder is made where missing, and temporary files of dead processes in it are
    removed.

    durable    flush the file and the folder to the disk, so that a power failure leaves the old file or the new one
    keep_old   give an existing file the name PATH.old-1, -2, ... instead of losing it

    Raises RunError where the system refuses to write.
    """
    path = Path(path)
    try:
        make_folder(path.parent)
        if durable:
            clean_temporaries(path.parent)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise _refusal(path, error) from None
    temporary = temporary_path(path.parent)
    try:
        yield temporary
        with postpone():
            if durable:
                with open(temporary, "r+b") as file:
                    os.fsync(file.fileno())
            _rename(temporary, path, keep_old)
            if durable:
                flush_folder(path.parent)
    except OSError as error:
        raise _refusal(path, error) from None
    finally:
        discard(temporary)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically. Raises as `write_atomically`."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_writable(folder: Path, what: str = "checkpoints") -> None:
    """Make `folder` where missing and write a trial file in it: called before long work, so that none is lost to it.

    Raises, with the system's reason, RunError where the disk is full, read-only or belongs to another user, and
    InputError where a folder of that name is impossible.
    """
    folder = Path(folder)
    try:
        make_folder(folder)
        trial = temporary_path(folder)
        try:
            with open(trial, "xb") as file:
                file.write(b"llgae")
        finally:
            discard(trial)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        kind = RunError if getattr(error, "errno", None) in _REFUSALS else InputError
        raise kind(f"{show_path(folder)}: {what} cannot be written here ({explain(error)})") from None


def make_folder(folder: Path) -> None:
    """Make the folder and its parents, and flush the entry of each new one. Raises OSError, also when it is a file."""
    missing = []
    parent = folder
    while not parent.exists() and parent != parent.parent:
        missing.append(parent)
        parent = parent.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except RecursionError:  # a thousand folders deep
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG)) from None
    for new in reversed(missing):
        flush_folder(new.parent)


def flush_folder(folder: Path) -> None:
    """Wait until the disk has the folder's entries. Raises OSError where it cannot write them."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders, and a parent may be unreadable: as durable as the system allows
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some network file systems
            raise
    finally:
        os.close(handle)


def temporary_path(folder: Path) -> Path:
    """Return an unused hidden path that names this process and its machine: .tmp-PID-MACHINE-RANDOM."""
    return folder / f".tmp-{os.getpid()}-{machine()}-{secrets.token_hex(6)}"


def discard(path: Path) -> None:
    """Remove a file where it exists and the system allows it; `clean_temporaries` removes what stays."""
    with suppress(OSError):  # a folder that became read-only: the error of the write is the one to report
        path.unlink()


def clean_temporaries(folder: Path) -> int:
    """Remove the temporary files of dead processes; return how many files were removed.

    Files of living processes stay. Whether a process of another machine (on a shared disk) or container lives is
    unknown here: its file stays until nothing has been written to it for a day. A file that cannot be removed stays.
    """
    removed = 0
    for path in Path(folder).glob(".tmp-*") if Path(folder).is_dir() else ():
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or (match[2] == machine() and is_alive(int(match[1]))):
            continue
        with suppress(OSError):  # another process removed it first, or it belongs to another user
            if match[2] == machine() or time.time() - path.stat().st_mtime >= ABANDONED:
                path.unlink()
                removed += 1
    return removed


def _rename(temporary: Path, path: Path, keep_old: bool) -> None:
    kept = _keep(path) if keep_old and os.path.lexists(path) else None
    try:
        os.replace(temporary, path)
    except OSError:
        if kept is not None and os.path.lexists(path):  # `kept` was a link: the first name still has the file
            kept.unlink(missing_ok=True)
        elif kept is not None:
            os.rename(kept, path)
        raise


def _keep(path: Path) -> Path:
    """Give an existing file a second name and return it."""
    for number in itertools.count(1):
        kept = path.with_name(f"{path.name}.old-{number}")
        try:
            os.link(path, kept, follow_symlinks=False)
            return kept
        except FileExistsError:
            continue
        except OSError:  # a file system without links: for a moment no file has the name, and none is lost
            if not os.path.lexists(kept):
                os.rename(path, kept)
                return kept
    raise AssertionError


def _refusal(path: Path, error: Exception) -> RunError:
    return RunError(f"{show_path(path)}: cannot be written ({explain(error)})")
