"""One array in an .npy file, read row by row: no pickle, no memory mapping, memory only for the requested rows."""

import os
import stat
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from llgae_cli.errors import InputError, RunError, explain, nearest, printable, show_path

# Allowed types of stored values. Others (uint64, long double, complex) have no exact counterpart in torch: they are
# refused rather than rounded silently.
DTYPES = ("bool", "uint8", "int8", "int16", "uint16", "int32", "int64", "float16", "float32", "float64")

# Two requested rows closer than this many bytes are read together: to skip a page costs more than to read it.
GAP_BYTES = 4096


def check_regular(path: Path) -> os.stat_result:
    """Return the status of a regular file; InputError for a missing path (with the nearest name), a folder, a pipe."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{show_path(path)}: no such file{nearest_in_folder(path)}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{show_path(path)}: cannot be read ({explain(error)})") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{show_path(path)}: not a regular file")  # opening a pipe would wait for ever
    return status


def nearest_in_folder(path: Path) -> str:
    """Return a clause such as `; did you mean 'x.npy'?` with the nearest name in the path's folder, or ""."""
    try:
        with os.scandir(path.parent) as entries:
            return nearest(path.name, [entry.name for entry in islice(entries, 10_000)])
    except (OSError, ValueError):
        return ""


def expand_path(where: str) -> Path:
    """Return the path with ~ replaced by the home folder, where there is such a user."""
    try:
        return Path(where).expanduser()
    except RuntimeError:  # ~nobody
        return Path(where)


def read_npy_header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an .npy file, up to its first value: (shape, Fortran order, type).

    `where` begins the message of the InputError that is raised for a broken header and for Python objects.
    """
    magic = file.read(8)
    if magic.startswith(b"PK\x03\x04"):
        raise InputError(
            f"{where}: an .npz archive; one array is expected, as np.save('x.npy', np.load('x.npz')['key'])"
        )
    if not magic.startswith(b"\x93NUMPY") or len(magic) < 8:
        raise InputError(f"{where}: not an .npy file (np.save writes one)")
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    reader = readers.get((magic[6], magic[7]))
    if reader is None:  # version 3 exists only for field names of structured arrays
        raise InputError(f"{where}: .npy version {magic[6]}.{magic[7]}; 1.0 or 2.0 is expected for a plain array")
    try:
        shape, fortran, dtype = reader(file)
    except Exception as error:  # numpy parses the header as Python text, which fails in many ways
        raise InputError(f"{where}: broken .npy header ({explain(error)})") from None
    if dtype.hasobject:
        raise InputError(f"{where}: holds pickled Python objects, which are never loaded; save plain numbers")
    if any(length < 0 for length in shape):
        raise InputError(f"{where}: broken .npy header (shape {printable(shape)})")
    return shape, bool(fortran), dtype


class NpyFile:
    """The array in the file `path`: `shape` (N, ...), `dtype` (native byte order), N rows of D values each.

    Only the header is read here, and the size that it declares is compared with the file's. Every `read` opens the
    file again. It is not memory-mapped: the pages of a mapping count as resident memory, and a file that is cut short
    under a mapping kills the process.

    Raises InputError: no such file, not an .npy file, an .npz archive, pickled objects, a type outside DTYPES, no rows
    or no values, a size other than the header's.
    """

    names: tuple[str, ...] | None = None  # an .npy file has no names of columns
    held: tuple[range, ...] | None = None

    def __init__(self, path: Path) -> None:
        """Read and check the header."""
        self.path = path
        status = check_regular(path)
        try:
            with open(path, "rb") as file:
                self.shape, self._fortran, self._stored = read_npy_header(file, show_path(path))
                self._offset = file.tell()
        except OSError as error:
            raise InputError(f"{show_path(path)}: cannot be read ({explain(error)})") from None
        self.dtype = self._stored.newbyteorder("=")
        if self.dtype.name not in DTYPES:
            raise InputError(f"{show_path(path)}: holds {printable(self._stored)}; allowed are {', '.join(DTYPES)}")
        self._stamp = (status.st_size, status.st_mtime_ns)
        values = 1
        for length in self.shape:
            values *= length
        there, declared = status.st_size - self._offset, values * self._stored.itemsize
        if there < declared:
            raise InputError(
                f"{show_path(path)}: cut short: its header declares {'x'.join(map(str, self.shape))} "
                f"{self.dtype.name}, {declared} bytes, but it has {there}"
            )
        if there > declared:
            raise InputError(
                f"{show_path(path)}: {there - declared} bytes follow the array; one array a file is expected"
            )
        if len(self.shape) >= 2 and values == 0:
            what = "rows" if self.shape[0] == 0 else "values in its rows"
            raise InputError(f"{show_path(path)}: holds no {what} (shape {'x'.join(map(str, self.shape))})")
        self.N = self.shape[0] if self.shape else 0
        self.D = values // self.N if self.N else 0

    def read(self, at: "range | np.ndarray") -> np.ndarray:
        """Return rows `at` (a range with a positive step, or int64 of shape (n,)) as an array (n, D) in C order.

        Raises RunError when the file was changed, cut short or removed since it was opened first.
        """
        out = np.empty((len(at), self.D), self._stored)
        if len(at) == 0:
            return out.astype(self.dtype, copy=False)
        try:
            with open(self.path, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                if (status.st_size, status.st_mtime_ns) != self._stamp:
                    raise RunError(f"{show_path(self.path)}: was changed while it was in use")
                if self._fortran:
                    out = self._read_columns(file, at)
                elif isinstance(at, range) and at.step == 1:
                    self._fill(file, at.start * self._row_bytes, out)
                else:
                    self._gather(file, np.asarray(at, dtype=np.int64), out)
        except OSError as error:
            raise RunError(f"{show_path(self.path)}: can no longer be read ({explain(error)})") from None
        return out.astype(self.dtype, copy=False)

    @property
    def _row_bytes(self) -> int:
        return self.D * self._stored.itemsize

    def _gather(self, file: BinaryIO, at: np.ndarray, out: np.ndarray) -> None:
        """Read single rows in the order of the file, near ones together."""
        order = np.argsort(at, kind="stable")
        wanted = at[order]
        cuts = np.flatnonzero(np.diff(wanted) * self._row_bytes > self._row_bytes + GAP_BYTES) + 1
        for first, last in zip([0, *cuts.tolist()], [*cuts.tolist(), len(wanted)], strict=True):
            low, high = int(wanted[first]), int(wanted[last - 1]) + 1
            block = np.empty((high - low, self.D), self._stored)
            self._fill(file, low * self._row_bytes, block)
            out[order[first:last]] = block[wanted[first:last] - low]

    def _read_columns(self, file: BinaryIO, at: "range | np.ndarray") -> np.ndarray:
        # Fortran order stores one value of all samples together, so the span of the requested rows is read value by
        # value. Memory is bounded, but random rows of a large file cost its whole span: C order is faster.
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
                raise RunError(f"{show_path(self.path)}: ended early while it was in use")
            room = room[got:]
