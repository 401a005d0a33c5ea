"""Data in several files, the shards: their rows, one after the other in the order of the names, are one data set.

Under torchrun with `shards: own` a process opens only shards that it owns. Each process lists the shards that it finds
on its disk, by name; the lists are exchanged, and each shard gets one owner among those that have it, so that owners
have about equally many rows. Position i is the same row for every number of processes and every choice of owners, so
the split into train and test, the fingerprint and what is drawn do not depend on them.
"""

import glob
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llgae_cli import distributed
from llgae_cli.errors import InputError, explain, printable, show_path
from llgae_cli.tasks import npy
from llgae_cli.tasks.arrow_files import open_parquet
from llgae_cli.tasks.conversion import collect_file, collect_npy
from llgae_cli.tasks.npy_file import NpyFile, expand_path
from llgae_cli.tasks.row_source import ArrayRows, RowSource
from llgae_cli.tasks.table_options import TableOptions

PATTERNS = {"npy": ("*.npy",), "parquet": ("*.parquet", "*.pq")}  # the files of a folder that are shards
RANK = "{rank}"  # in a path: the number of the process, and any number where there is only one process
DIGEST_BYTES = 1 << 16  # at the begin and at the end of a file, by which shards of one name are compared


@dataclass(frozen=True)
class Layout:
    """What a shard holds: number of rows, shape and type of a row, names of its columns or None."""

    rows: int
    shape: tuple[int, ...]
    dtype: str
    names: tuple[str, ...] | None

    def __str__(self) -> str:
        """Return shape and type in words."""
        return f"rows of {'x'.join(map(str, self.shape)) or 'one value'} {self.dtype}"


class Shards:
    """A `RowSource` of several others, their rows one after the other; None for one that this process does not own.

    held  the ranges of rows that this process can read, ascending; None: all
    """

    def __init__(self, sources: Sequence[RowSource | None], layouts: Sequence[Layout]) -> None:
        """`layouts` are those of all shards, which agree but for the number of rows."""
        self._sources = list(sources)
        starts = np.cumsum([0, *(layout.rows for layout in layouts)])
        self._starts = starts  # of each shard, and the end
        self.dtype, self.names = np.dtype(layouts[0].dtype), layouts[0].names
        self.N = int(starts[-1])
        self.shape = (self.N, *layouts[0].shape)
        self.D = int(np.prod(layouts[0].shape, dtype=object))
        self.held: tuple[range, ...] | None = None
        if not all(sources):
            own = (range(int(starts[i]), int(starts[i + 1])) for i, source in enumerate(sources) if source is not None)
            self.held = tuple(own)

    def read(self, at: "range | np.ndarray") -> np.ndarray:
        """Return rows `at`, as `RowSource.read`. Raises LookupError for a row of another process."""
        rows = np.asarray(at, dtype=np.int64)
        out = np.empty((len(rows), self.D), self.dtype)
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        for i in np.unique(shard):
            source = self._sources[i]
            if source is None:
                raise LookupError(f"a row of shard {i}, which another process owns")
            here = np.flatnonzero(shard == i)
            local = rows[here] - self._starts[i]
            step = at.step if isinstance(at, range) else 0
            out[here] = source.read(range(int(local[0]), int(local[-1]) + 1, step) if step else local)
        return out


@dataclass(frozen=True)
class OpenedShards:
    """The rows of shards, and what their label and test columns hold (N,), or None."""

    source: Shards
    labels: np.ndarray | None = None
    test: np.ndarray | None = None


def find_shards(kind: str, where: str, own: bool) -> list[Path]:
    """Return the shards in a folder, or those that match a pattern, in their order. Files NAME_labels.npy are none.

    Raises InputError where there are none (with `own` another process may have some) and for {rank} without `own`.
    """
    if RANK in where and not own:
        raise InputError(f"{show_path(where)}: {RANK} in a path needs shards: own")
    folder = expand_path(where.replace(RANK, str(distributed.rank()) if distributed.is_active() else "*"))
    found: list[Path] = []
    for place in [folder] if folder.is_dir() else map(Path, glob.glob(str(folder))):
        found += [path for pattern in PATTERNS[kind] for path in place.glob(pattern)] if place.is_dir() else [place]
    paths = [path for path in found if not path.stem.endswith("_labels")]
    if not paths and not (own and distributed.is_active()):
        raise InputError(f"{show_path(where)}: no .{kind} files")
    return sorted(paths, key=lambda path: (path.name, path))


def open_shards(kind: str, paths: list[Path], options: TableOptions, data_dir: Path) -> OpenedShards:
    """Open shards as one data set. Raises InputError as the readers do, and where type or shape of the rows differ."""
    layouts = [_lay_out(kind, path, options) for path in paths]
    for path, layout in zip(paths, layouts, strict=True):
        _check_alike(path.name, layout, paths[0].name, layouts[0])
    opened, room = [], npy.IN_MEMORY_BYTES
    for path in paths:
        opened.append(_open(kind, path, options, data_dir, room))
        room -= _bytes_in_memory(opened[-1][0])
    sources, labels, tests = zip(*opened, strict=True)
    # Rows with missing values may have been dropped: what counts are the rows that are left.
    left = [replace(layout, rows=source.N) for layout, source in zip(layouts, sources, strict=True)]
    return OpenedShards(Shards(sources, left), _join(labels), _join(tests))


def open_own_shards(kind: str, where: str, paths: list[Path], options: TableOptions, data_dir: Path) -> OpenedShards:
    """Open those of the shards `paths` of this process that it owns, as part of those of all processes.

    All processes call it. Raises InputError on all of them where it fails on one.
    """
    listed = distributed.exchange(distributed.agree(lambda: [_describe(kind, path, options) for path in paths]))
    known: dict[str, dict[str, Any]] = {}  # by name
    found_by: dict[str, list[int]] = {}
    for rank, shards in enumerate(listed):
        for shard in shards:
            name = shard["name"]
            if known.setdefault(name, shard) != shard or rank in found_by.get(name, ()):
                raise InputError(f"{printable(name)}: two shards of this name; with shards: own names must differ")
            found_by.setdefault(name, []).append(rank)
    if not known:
        raise InputError(f"{show_path(where)}: no .{kind} files on any process")
    names = sorted(known)
    layouts = [_read_layout(known[name]) for name in names]
    for name, layout in zip(names, layouts, strict=True):
        _check_alike(name, layout, names[0], layouts[0])
    owners = assign_shards([layout.rows for layout in layouts], [found_by[name] for name in names], len(listed))
    here = {path.name: path for path in paths}

    def open_each() -> list[RowSource | None]:
        sources: list[RowSource | None] = []
        room = npy.IN_MEMORY_BYTES
        for name, owner in zip(names, owners, strict=True):
            source = _open(kind, here[name], options, data_dir, room)[0] if owner == distributed.rank() else None
            if isinstance(source, NpyFile) and source.N * source.D * source.dtype.itemsize <= room:
                source = ArrayRows(source.read(range(source.N)))
            sources.append(source)
            room -= _bytes_in_memory(source)
        return sources

    return OpenedShards(Shards(distributed.agree(open_each), layouts))


def assign_shards(rows: Sequence[int], found_by: Sequence[Sequence[int]], processes: int) -> list[int]:
    """Return the owner of each shard among the ranks that have it: the one with the fewest rows so far.

    Shards that few have come first, then large ones.
    """
    load, owners = [0] * processes, [0] * len(rows)
    for i in sorted(range(len(rows)), key=lambda i: (len(found_by[i]), -rows[i], i)):
        owners[i] = min(found_by[i], key=lambda rank: (load[rank], rank))
        load[owners[i]] += rows[i]
    return owners


def _lay_out(kind: str, path: Path, options: TableOptions) -> Layout:
    if kind == "npy":
        file = NpyFile(path)
        return Layout(file.N, tuple(file.shape[1:]), file.dtype.name, None)
    stream = open_parquet(path, options)
    return Layout(stream.rows or 0, stream.shape, stream.dtype.name, stream.names)


def _describe(kind: str, path: Path, options: TableOptions) -> dict[str, Any]:
    """Return name, layout and a digest of a shard, in plain values."""
    layout = asdict(_lay_out(kind, path, options))
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            digest = hashlib.sha256(str(size).encode())
            for start in (0, max(0, size - DIGEST_BYTES)):
                file.seek(start)
                digest.update(file.read(DIGEST_BYTES))
    except OSError as error:
        raise InputError(f"{show_path(path)}: cannot be read ({explain(error)})") from None
    names = None if layout["names"] is None else list(layout["names"])
    return {**layout, "shape": list(layout["shape"]), "names": names, "name": path.name, "digest": digest.hexdigest()}


def _read_layout(shard: dict[str, Any]) -> Layout:
    names = None if shard["names"] is None else tuple(shard["names"])
    return Layout(shard["rows"], tuple(shard["shape"]), shard["dtype"], names)


def _check_alike(name: str, layout: Layout, first_name: str, first: Layout) -> None:
    if (layout.shape, layout.dtype) != (first.shape, first.dtype):
        raise InputError(
            f"{printable(name)}: holds {layout}, and {printable(first_name)} {first}; shards have rows of one shape "
            "and type"
        )
    if layout.names != first.names:
        raise InputError(f"{printable(name)}: its columns are named otherwise than those of {printable(first_name)}")


def _open(
    kind: str, path: Path, options: TableOptions, data_dir: Path, room: int
) -> tuple[RowSource, np.ndarray | None, np.ndarray | None]:
    """Return rows, labels and test marks of a shard; up to `room` bytes of what is not .npy are held in memory."""
    if kind == "npy" and options.missing == "error":
        return NpyFile(path), None, None
    if kind == "npy":
        rows = collect_npy(path, data_dir, room)
    else:
        rows = collect_file(kind, path, open_parquet(path, options), options, data_dir, room)
    source = rows.source
    return ArrayRows(source) if isinstance(source, np.ndarray) else source, rows.labels, rows.test


def _join(marks: Sequence[np.ndarray | None]) -> np.ndarray | None:
    found = [one for one in marks if one is not None]
    return np.concatenate(found) if found else None


def _bytes_in_memory(source: RowSource | None) -> int:
    return source.nbytes if isinstance(source, ArrayRows) else 0
