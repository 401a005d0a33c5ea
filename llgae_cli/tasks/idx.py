"""Reader of idx files, the format of MNIST and its kin, plain or gzipped."""

import gzip
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from llgae_cli.errors import InputError, explain, show_path
from llgae_cli.tasks.npy_file import check_regular

# Third byte of the file -> type of the values, big-endian.
CODES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_RANK = 4
MAX_BYTES = 1 << 31  # four times the largest known idx file (EMNIST by class, 0.5 GB)
DEFLATE_RATIO = 1032  # largest ratio of the deflate format


def read_idx(path: Path) -> np.ndarray:
    """Return the array in an idx file, in native byte order; gzip is recognised by its first bytes, not by the name.

    The declared size is compared with that of the file (gzipped: with the largest possible) before anything is
    allocated, and unpacking stops there. Raises InputError naming the file when it is missing, broken, shorter or
    longer than it declares, or larger than 2 GiB.
    """
    size = check_regular(path).st_size
    try:
        with open(path, "rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            if zipped:
                with gzip.open(plain) as file:
                    return _parse(file, size * DEFLATE_RATIO, path)
            return _parse(plain, size, path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{show_path(path)}: broken gzip file ({explain(error)})") from None
    except OSError as error:
        raise InputError(f"{show_path(path)}: cannot be read ({explain(error)})") from None


def _parse(file: IO[bytes] | gzip.GzipFile, most: int, path: Path) -> np.ndarray:
    """Return the array in an open file that can have at most `most` bytes."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in CODES or not 1 <= magic[3] <= MAX_RANK:
        raise InputError(f"{show_path(path)}: not an idx file (it starts with {magic.hex() or 'nothing'})")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise InputError(f"{show_path(path)}: idx file cut short within its header")
    shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4))
    dtype = np.dtype(CODES[magic[2]])
    declared = dtype.itemsize
    for length in shape:
        declared *= length
    declares = f"{show_path(path)}: idx file declares {'x'.join(map(str, shape))}, {declared} bytes,"
    if declared > most:
        raise InputError(f"{declares} more than the file can hold: cut short or broken")
    if declared > MAX_BYTES:
        raise InputError(f"{declares} more than the {MAX_BYTES} that are allowed")
    raw = bytearray()
    while len(raw) <= declared:  # one byte more than declared, to see whether more follow
        block = file.read(min(1 << 20, declared + 1 - len(raw)))
        if not block:
            break
        raw += block
    if len(raw) != declared:
        raise InputError(f"{declares} but has {'fewer' if len(raw) < declared else 'more'}")
    array = np.frombuffer(raw, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)
