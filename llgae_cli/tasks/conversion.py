"""Streams as arrays that are read by row: in memory where they are small, otherwise converted once to an .npy file."""

import hashlib
import io
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from llgae_cli.errors import InputError, RunError, explain, show_path
from llgae_cli.tasks import npy
from llgae_cli.tasks.array_files import open_npy
from llgae_cli.tasks.npy_file import NpyFile
from llgae_cli.tasks.row_source import RowSource
from llgae_cli.tasks.streams import Block, Stream
from llgae_cli.tasks.table_options import TableOptions

logger = logging.getLogger(__name__)

FOLDER = "converted"  # in data-dir
FORMAT = "1"  # of what is converted: a change of how formats are read takes another number
PART = ".part-"  # how the names of unfinished files begin
REPORTED = 10.0  # seconds between two messages on how far a conversion is
ABANDONED = 3600.0  # seconds since the last write to such a file, after which its process counts as dead


@dataclass(frozen=True)
class Rows:
    """All rows of a stream: `source` (N, ...) in memory or on disk, and raw labels and test marks (N,), or None."""

    source: np.ndarray | RowSource
    labels: np.ndarray | None
    test: np.ndarray | None


def collect_file(
    kind: str,
    path: Path,
    stream: Stream,
    options: TableOptions,
    folder: Path,
    most: int | None = None,
) -> Rows:
    """Return the rows of a file that is read as `stream`, as `collect` does."""
    made_from = (
        kind, str(path.resolve()), stream.where.rpartition("#")[2], *(stream.names or ()), "", str(options.labels),
        str(options.test), options.missing,
    )  # fmt: skip
    return collect(stream, options.missing == "drop", folder, made_from, _stamp(path), most)


def collect_npy(path: Path, folder: Path, most: int | None = None) -> Rows:
    """Return the rows of an .npy file that hold no missing value, as `collect` does."""
    return collect(open_npy(path), True, folder, ("npy", str(path.resolve()), "drop"), _stamp(path), most)


def collect(
    stream: Stream,
    drop: bool,
    folder: Path,
    made_from: tuple[str, ...],
    content: tuple[str, ...],
    most: int | None = None,
) -> Rows:
    """Return the rows of a stream; more than `most` bytes (None: `npy.IN_MEMORY_BYTES`) are written to `folder`.

    Formats that are compressed or text cannot be read by row at a bearable cost, and an .npy file can. The file is
    named by `made_from` (path and options) and `content` (size and time of the original): later runs use it as it is,
    and conversions of an earlier content are removed. It takes N D bytes times the size of a value.

    Raises InputError: missing values (see `Stream.clean_blocks`), no rows. RunError: the disk is full.
    """
    most = npy.IN_MEMORY_BYTES if most is None else most
    origin, version = _digest(FORMAT, *made_from), _digest(*content)
    path = folder / FOLDER / f"{origin}-{version}.npy"
    side = path.with_suffix(".npz")  # labels and test marks
    if path.exists() and side.exists():
        with np.load(side, allow_pickle=False) as marks:
            return Rows(NpyFile(path), *(marks.get(name) for name in ("labels", "test")))
    blocks = stream.clean_blocks(drop)
    held: list[Block] = []
    size = 0
    for block in blocks:
        held.append(block)
        size += block.values.nbytes
        if size > most:
            break
    if not held:
        raise InputError(f"{stream.where}: holds no rows" + (" without missing values" if drop else ""))
    if size > most:
        labels, test = _write(stream, held, blocks, path)
        for old in path.parent.glob(f"{origin}-*"):
            if old not in (path, side):
                old.unlink(missing_ok=True)
        return Rows(NpyFile(path), labels, test)
    values = np.concatenate([block.values for block in held])
    return Rows(values.reshape(-1, *stream.shape), _join(held, "labels"), _join(held, "test"))


def _write(
    stream: Stream, held: list[Block], blocks: Iterator[Block], path: Path
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Write `held` and the rest of the blocks to `path`, which appears only when complete; return labels and test."""
    marks: list[Block] = []
    temporary: Path | None = None
    logger.info("%s: converted once, to %s", stream.where, show_path(path.parent))
    reported = time.monotonic()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent)
        descriptor, name = tempfile.mkstemp(prefix=PART, dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            N = 0
            _write_header(file, stream, N)
            while held:  # emptied, so that its memory is free before the rest is read
                N += _append(file, held.pop(0), marks)
            for block in blocks:
                N += _append(file, block, marks)
                if time.monotonic() - reported > REPORTED:
                    logger.info("%s: %s rows converted", stream.where, f"{N:,}")
                    reported = time.monotonic()
            file.seek(0)
            _write_header(file, stream, N)
            file.flush()
            os.fsync(file.fileno())
        labels, test = _join(marks, "labels"), _join(marks, "test")
        buffer = io.BytesIO()
        found = {"labels": labels, "test": test}
        np.savez(buffer, **{name: values for name, values in found.items() if values is not None})  # type: ignore[arg-type]
        os.replace(temporary, path)
        part = path.with_name(f"{PART}{path.stem}-{os.getpid()}")
        part.write_bytes(buffer.getvalue())
        os.replace(part, path.with_suffix(".npz"))
    except OSError as error:
        raise RunError(f"{show_path(path.parent)}: {stream.where} cannot be converted ({explain(error)})") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return labels, test


def remove_abandoned(folder: Path) -> None:
    """Remove what conversions that were killed left in a folder: a running one writes more often than once an hour."""
    for part in folder.glob(f"{PART}*"):
        with suppress(OSError):  # another process removes it, too
            if time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink()


def _append(file: IO[bytes], block: Block, marks: list[Block]) -> int:
    file.write(np.ascontiguousarray(block.values).data)
    marks.append(Block(np.empty((0, 0)), block.labels, block.test))  # a slice of the values would keep them all
    return len(block.values)


def _write_header(file: IO[bytes], stream: Stream, N: int) -> None:
    # numpy pads the header so that N may grow in place.
    shape = (N, *stream.shape)
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(stream.dtype), "fortran_order": False, "shape": shape}
    )


def _join(blocks: list[Block], what: str) -> np.ndarray | None:
    found = [getattr(block, what) for block in blocks]
    return _plain(np.concatenate(found)) if found and found[0] is not None else None


def _plain(values: np.ndarray) -> np.ndarray:
    """Return raw marks as numbers where all are, else as text ("" for an empty cell): no Python objects."""
    if values.dtype != object:
        return values
    listed = values.tolist()
    if all(isinstance(value, (int, float)) for value in listed):
        return np.array(listed)
    return np.array(["" if value is None else str(value) for value in listed])


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _stamp(path: Path) -> tuple[str, ...]:
    """Return size and time of a file, of a folder those of everything in it."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    states = [file.stat() for file in files]
    return str(sum(one.st_size for one in states)), str(max(one.st_mtime_ns for one in states)), str(len(states))
