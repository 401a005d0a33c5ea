"""One array in an .npy file, read row by row: no pickle, no mapping, memory for the rows asked for and no more."""

import os
import stat
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from llgae_cli.errors import InputError, RunError, nearest, printable

# What a sample's values may be stored as. Wider or stranger types (uint64, long double, complex) have no exact
# counterpart in torch, so they are refused rather than rounded behind the user's back.
DTYPES = ("bool", "uint8", "int8", "int16", "uint16", "int32", "int64", "float16", "float32", "float64")

# Two wanted rows closer than this many bytes are read in one go: skipping a page is dearer than reading it.
GAP_BYTES = 4096


def shown(path: Path) -> str:
    """Spell a path for an error's line: escaped, at most 200 characters."""
    return printable(path, 200)


def regular_file(path: Path) -> os.stat_result:
    """Return the status of a plain file; InputError for a missing path (with the nearest name), a folder, a pipe."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{shown(path)}: no such file{near_in_folder(path)}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{shown(path)}: cannot be read ({reason(error)})") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{shown(path)}: not a plain file")  # opening a pipe would wait for ever
    return status


def near_in_folder(path: Path) -> str:
    """Return a clause naming the entry of the path's folder that is spelled most like it, or nothing."""
    try:
        with os.scandir(path.parent) as entries:
            return nearest(path.name, [entry.name for entry in islice(entries, 10_000)])
    except (OSError, ValueError):
        return ""


def reason(error: BaseException) -> str:
    """Tell what the operating system said, on one line and without the path that is named already."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(" ".join(said.split()) or type(error).__name__, 160)


class NpyFile:
    """The array in `path`: `shape` (N, ...), `dtype` (native byte order), N rows of D values each.

    Only the header is read here; the declared size is compared with the file's before anything is allocated.
    The file is opened anew by every `read` and is not mapped: pages of a kept mapping count as resident memory, and
    a file cut short under a mapping kills the process, where a short read is an error with a name.

    Raises InputError: no such file, no .npy file, an .npz archive, pickled objects, a dtype outside DTYPES, fewer
    than two dimensions, no rows or no values, a size other than the header's.
    """

    def __init__(self, path: Path) -> None:
        """Read and check the header."""
        self.path = path
        status = regular_file(path)
        try:
            with open(path, "rb") as file:
                self.shape, self._fortran, self._stored = _header(file, path)
                self._offset = file.tell()
        except OSError as error:
            raise InputError(f"{shown(path)}: cannot be read ({reason(error)})") from None
        self.dtype = self._stored.newbyteorder("=")
        self._stamp = (status.st_size, status.st_mtime_ns)
        values = 1
        for length in self.shape:
            values *= length
        there, declared = status.st_size - self._offset, values * self._stored.itemsize
        if there < declared:
            raise InputError(
                f"{shown(path)}: cut short: its header declares {'x'.join(map(str, self.shape))} {self.dtype.name}, "
                f"{declared} bytes, but {there} are there"
            )
        if there > declared:
            raise InputError(f"{shown(path)}: {there - declared} bytes follow the array; one array a file is expected")
        if len(self.shape) >= 2 and values == 0:
            what = "rows" if self.shape[0] == 0 else "values in its rows"
            raise InputError(f"{shown(path)}: holds no {what} (shape {'x'.join(map(str, self.shape))})")
        self.N = self.shape[0] if self.shape else 0
        self.D = values // self.N if self.N else 0

    def read(self, at: "range | np.ndarray") -> np.ndarray:
        """Read rows `at` (a range with a positive step, or int64 of shape (n,)) as an array (n, D), values in C order.

        Raises RunError when the file changed, shrank or went away since it was opened first.
        """
        out = np.empty((len(at), self.D), self._stored)
        if len(at) == 0:
            return out.astype(self.dtype, copy=False)
        try:
            with open(self.path, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                if (status.st_size, status.st_mtime_ns) != self._stamp:
                    raise RunError(f"{shown(self.path)}: was changed while it was in use")
                if self._fortran:
                    out = self._read_columns(file, at)
                elif isinstance(at, range) and at.step == 1:
                    self._fill(file, at.start * self._row_bytes, out)
                else:
                    self._gather(file, np.asarray(at, dtype=np.int64), out)
        except OSError as error:
            raise RunError(f"{shown(self.path)}: cannot be read any more ({reason(error)})") from None
        return out.astype(self.dtype, copy=False)

    @property
    def _row_bytes(self) -> int:
        return self.D * self._stored.itemsize

    def _gather(self, file: BinaryIO, at: np.ndarray, out: np.ndarray) -> None:
        order = np.argsort(at, kind="stable")
        wanted = at[order]
        cuts = np.flatnonzero(np.diff(wanted) * self._row_bytes > self._row_bytes + GAP_BYTES) + 1
        for first, last in zip([0, *cuts.tolist()], [*cuts.tolist(), len(wanted)], strict=True):
            low, high = int(wanted[first]), int(wanted[last - 1]) + 1
            block = np.empty((high - low, self.D), self._stored)
            self._fill(file, low * self._row_bytes, block)
            out[order[first:last]] = block[wanted[first:last] - low]

    def _read_columns(self, file: BinaryIO, at: "range | np.ndarray") -> np.ndarray:
        # Fortran order keeps each value of all samples together, so the span of the wanted rows is read value by
        # value. Right and bounded, but rows picked at random from a large file cost its whole span: C order is better.
        rows = np.asarray(at, dtype=np.int64)
        low, high = int(rows.min()), int(rows.max()) + 1
        span = np.empty(high - low, self._stored)
        columns = np.empty((self.D, len(rows)), self._stored)
        for d in range(self.D):
            self._fill(file, (d * self.N + low) * self._stored.itemsize, span)
            columns[d] = span[rows - low]
        upright = columns.reshape(*reversed(self.shape[1:]), len(rows)).T  # (n, *shape[1:])
        return np.ascontiguousarray(upright).reshape(len(rows), self.D)

    def _fill(self, file: BinaryIO, offset: int, out: np.ndarray) -> None:
        file.seek(self._offset + offset)
        room = out.reshape(-1).view(np.uint8).data
        while len(room):
            got = file.readinto(room)  # type: ignore[attr-defined]
            if not got:
                raise RunError(f"{shown(self.path)}: ended early while it was in use")
            room = room[got:]


def _header(file: BinaryIO, path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    magic = file.read(8)
    if magic.startswith(b"PK\x03\x04"):
        raise InputError(
            f"{shown(path)}: an .npz archive; one array is expected, as np.save('x.npy', np.load('x.npz')['key'])"
        )
    if not magic.startswith(b"\x93NUMPY") or len(magic) < 8:
        raise InputError(f"{shown(path)}: not an .npy file (np.save writes one)")
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    reader = readers.get((magic[6], magic[7]))
    if reader is None:  # version 3 exists for field names of structured arrays alone
        raise InputError(f"{shown(path)}: .npy version {magic[6]}.{magic[7]} is not one a plain array has (1.0 or 2.0)")
    try:
        shape, fortran, dtype = reader(file)
    except Exception as error:  # numpy parses the header as Python text, which fails in half a dozen ways
        raise InputError(f"{shown(path)}: broken .npy header ({reason(error)})") from None
    if dtype.hasobject:
        raise InputError(f"{shown(path)}: holds pickled Python objects, which are never loaded; save plain numbers")
    if dtype.newbyteorder("=").name not in DTYPES:
        raise InputError(f"{shown(path)}: holds {printable(dtype)}; allowed are {', '.join(DTYPES)}")
    if any(length < 0 for length in shape):
        raise InputError(f"{shown(path)}: broken .npy header (shape {printable(shape)})")
    return shape, bool(fortran), dtype
