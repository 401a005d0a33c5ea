"""Regular files, opened so that a link, a pipe or a device in place of a file can do no harm."""

import errno
import os
import select
import stat
from pathlib import Path

from llgae_cli.errors import InputError, explain, show_path

PIPE_PATIENCE = 10.0  # seconds to wait for a pipe whose writer is silent

_SAFELY = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # opening a pipe would wait for its other end
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has none: there the path is checked before it is opened


def open_for_reading(path: Path, pipe: bool = False) -> int:
    """Open a regular file (with `pipe` also a pipe) for reading and return its descriptor. Links are followed.

    Never waits for a pipe's writer. Raises OSError: the system's own, IsADirectoryError for a folder, and EINVAL with
    the kind of file in words for anything else.
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

    Anybody who may write in the folder can put a link to another file under the name. So no symbolic link is followed,
    and before anything is written the open file must be a regular one with a single name (a hard link is a second
    name). `flags` are those of os.open; O_TRUNC is not allowed, since it empties the file before the check. A file
    that lost its last name in the meantime is returned: `storage.locks` checks for that.

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
    problem = _own_problem(os.fstat(handle))
    if problem is None:
        return handle
    os.close(handle)
    raise _not_own(path, problem)


def check_own(path: Path) -> None:
    """Raise InputError where `open_own` would: for a file that another process writes later."""
    try:
        problem = _own_problem(os.lstat(path))
    except OSError:  # missing, or not accessible: the process that writes it will report that
        return
    if problem is not None:
        raise _not_own(path, problem)


def read_bytes(path: Path, limit: int, pipe: bool = False) -> bytes:
    """Read at most limit + 1 bytes, so that the caller sees when a file is larger than `limit`.

    A pipe (`pipe`) is read to its end; one without a writer, or whose writer is silent for PIPE_PATIENCE seconds,
    raises OSError like those of `open_for_reading`.
    """
    with os.fdopen(open_for_reading(path, pipe), "rb") as file:
        if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            return _read_pipe(file.fileno(), limit)
        return file.read(limit + 1)


def read_text(path: Path, limit: int, what: str, pipe: bool = False) -> str:
    """Read a small UTF-8 text file, which messages call `what` ("config"); `pipe` as in `read_bytes`.

    Raises FileNotFoundError when the file is missing; InputError, in one line, when it cannot be read, is no regular
    file, has more than `limit` bytes or is not UTF-8.
    """
    where = show_path(path)
    try:
        raw = read_bytes(path, limit, pipe)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({explain(error)})") from None
    except ValueError:  # a null byte in the path
        raise InputError(f"{where}: not a valid path of a file") from None
    if len(raw) > limit:
        raise InputError(f"{where}: larger than {limit} bytes; not a {what}")
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


def _own_problem(status: os.stat_result) -> str | None:
    """Return why a file cannot be llgae's own; None for a regular file with one name."""
    if not stat.S_ISREG(status.st_mode):
        return _kind(status.st_mode)
    return f"a file with {status.st_nlink} names (hard links)" if status.st_nlink > 1 else None


def _not_own(path: Path, problem: str) -> InputError:
    return InputError(
        f"{show_path(path)}: {problem}, where llgae keeps a regular file of its own; nothing was written to it: "
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
