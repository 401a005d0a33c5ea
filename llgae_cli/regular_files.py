"""Regular files, opened so that a link, a pipe or a device under a file's name can do no harm."""

import errno
import os
import select
import stat
from pathlib import Path

from llgae_cli.errors import InputError, printable

PIPE_PATIENCE = 10.0  # seconds that a pipe with a writer may stay silent

_SAFELY = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # opening a pipe would wait for its other end
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has none: there the path is looked at before


def open_for_reading(path: Path, pipe: bool = False) -> int:
    """Open a regular file, or with `pipe` also a pipe, for reading and return its descriptor. Links are followed.

    Never waits for a pipe's writer. Raises OSError: the system's, IsADirectoryError for a folder, and EINVAL with the
    kind of file in words for anything else that is no regular file.
    """
    handle = os.open(path, os.O_RDONLY | _SAFELY)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode) or (pipe and stat.S_ISFIFO(mode)):
        return handle
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "a folder")
    raise OSError(errno.EINVAL, f"{_kind(mode)}, not a file")


def open_own(path: Path, flags: int) -> int:
    """Open a file that llgae itself keeps in a user's folder, for writing, and return its descriptor.

    Who may write in the folder could put another file's link under the name. So no symbolic link is followed, and on
    the open descriptor, before anything is written, the file must be a regular one with a single name (a hard link is
    a second name). `flags` are those of os.open; O_TRUNC is not for here, since it empties before the check. A file
    that lost its last name in the meantime is returned: `checkpoints.locks` looks for that.

    Raises InputError for any other file, and the system's OSError.
    """
    assert not flags & os.O_TRUNC
    if not _NO_FOLLOW and os.path.islink(path):
        raise _not_own(path, "a symbolic link")
    try:
        handle = os.open(path, flags | _NO_FOLLOW | _SAFELY, 0o666)
    except OSError:
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            mode = stat.S_IFREG
        if not stat.S_ISREG(mode):
            raise _not_own(path, _kind(mode)) from None
        raise
    status = os.fstat(handle)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
        return handle
    os.close(handle)
    regular = stat.S_ISREG(status.st_mode)
    raise _not_own(path, f"a file with {status.st_nlink} names (hard links)" if regular else _kind(status.st_mode))


def check_own(path: Path) -> None:
    """Raise InputError where `open_own` would; for a file that is written later, by another process."""
    try:
        status = os.lstat(path)
    except OSError:  # not there yet, or not to be looked at: whoever writes it will meet that
        return
    if not stat.S_ISREG(status.st_mode):
        raise _not_own(path, _kind(status.st_mode))
    if status.st_nlink > 1:
        raise _not_own(path, f"a file with {status.st_nlink} names (hard links)")


def read_bytes(path: Path, limit: int, pipe: bool = False) -> bytes:
    """Read a small file: at most limit + 1 bytes, so that a larger one shows.

    A pipe (`pipe`) is read to its end; one that has no writer, or whose writer is silent for PIPE_PATIENCE seconds, is
    an OSError as those of `open_for_reading`.
    """
    with os.fdopen(open_for_reading(path, pipe), "rb") as file:
        if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            return _read_pipe(file.fileno(), limit)
        return file.read(limit + 1)


def read_text(path: Path, limit: int, what: str, pipe: bool = False) -> str:
    """Read a small UTF-8 text file, which messages call `what` ("config"); `pipe` as in `read_bytes`.

    Raises FileNotFoundError where there is none. Raises InputError, in one line, where it cannot be read, is no
    regular file, has more than `limit` bytes or is not UTF-8.
    """
    where = printable(path, 200)
    try:
        raw = read_bytes(path, limit, pipe)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror or printable(error)})") from None
    except ValueError:  # a null byte in the path
        raise InputError(f"{where}: no path of a file") from None
    if len(raw) > limit:
        raise InputError(f"{where}: larger than {limit} bytes, this is no {what}")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{where}: not a text file (UTF-8 is expected)") from None


def _read_pipe(handle: int, limit: int) -> bytes:
    os.set_blocking(handle, False)  # on some systems /dev/fd/N is N itself, and not opened anew
    raw = bytearray()
    while len(raw) <= limit:
        try:
            part = os.read(handle, limit + 1 - len(raw))
        except BlockingIOError:  # there is a writer that has not written yet
            if not select.select([handle], [], [], PIPE_PATIENCE)[0]:
                raise OSError(errno.EINVAL, f"a pipe whose writer was silent for {PIPE_PATIENCE:g} s") from None
            continue
        if not part:
            break
        raw += part
    if not raw:
        raise OSError(errno.EINVAL, "a pipe that nothing is written to; give a file, or start the writer before")
    return bytes(raw)


def _not_own(path: Path, what: str) -> InputError:
    return InputError(
        f"{printable(path, 300)}: {what}, where llgae keeps a regular file of its own; nothing was written to it: "
        "remove it, or choose another folder"
    )


def _kind(mode: int) -> str:
    kinds = {
        stat.S_ISLNK: "a symbolic link",
        stat.S_ISFIFO: "a named pipe",
        stat.S_ISDIR: "a folder",
        stat.S_ISSOCK: "a socket",
        stat.S_ISREG: "a regular file",
    }
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "a device")
