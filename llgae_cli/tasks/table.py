"""The user's own tables and arrays: csv:, parquet:, hdf5:, zarr: and npy: with members, shards and options."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from llgae_cli.errors import InputError, explain, nearest, printable, show_path
from llgae_cli.tasks import npy
from llgae_cli.tasks.array_files import open_hdf5, open_npz, open_zarr
from llgae_cli.tasks.arrow_files import open_csv, open_parquet
from llgae_cli.tasks.conversion import collect_file, collect_npy
from llgae_cli.tasks.labels import mark_test, number_labels
from llgae_cli.tasks.npy_file import NpyFile, expand_path, nearest_in_folder
from llgae_cli.tasks.row_source import RowSource
from llgae_cli.tasks.samples import Samples
from llgae_cli.tasks.shards import PATTERNS, RANK, OpenedShards, find_shards, open_own_shards, open_shards
from llgae_cli.tasks.streams import Stream
from llgae_cli.tasks.table_options import TableOptions, find_column
from llgae_cli.tasks.task import Task, fingerprint

TABLES: dict[str, Callable[[Path, TableOptions], Stream]] = {"csv": open_csv, "parquet": open_parquet}
CONTAINERS: dict[str, Callable[[Path, str | None], Stream]] = {
    "hdf5": open_hdf5, "zarr": open_zarr, "npz": open_npz,
}  # fmt: skip
KINDS = ("npy", *TABLES, *CONTAINERS)  # what may stand before the colon
ENDINGS = {
    ".csv": "csv", ".csv.gz": "csv", ".tsv": "csv", ".tsv.gz": "csv", ".parquet": "parquet", ".pq": "parquet",
    ".h5": "hdf5", ".hdf5": "hdf5", ".hdf": "hdf5", ".zarr": "zarr", ".npz": "npz", ".npy": "npy",
}  # fmt: skip


def recognise(where: str) -> str | None:
    """Return the kind of a path without one, by its ending (ENDINGS), or None."""
    path = where.rpartition("#")[0] or where
    return next((kind for ending, kind in ENDINGS.items() if path.lower().endswith(ending)), None)


def load_table(kind: str, where: str, name: str, data_dir: Path, options: TableOptions) -> Task:
    """Load the task `kind:where`: a file whose rows are split into train and test, as `options.test` says.

    test: a share t: rows i with floor((i + 1) t) > floor(i t) are the test set, spread evenly (by default t = 0.1:
    rows 9, 19, ...; of fewer than ten rows the last one); a column of 0 and 1 (or false and true): the rows with 1;
    a file: all rows of the file, and this one has the training rows.
    Raises InputError as the readers do, and for labels or marks that do not fit.
    """
    rows = load_rows(kind, where, data_dir, options)
    whole, marks = rows.samples, rows.test
    names_file = isinstance(rows.options.test, str) and marks is None
    if whole.N < 2 and not names_file:
        raise InputError(f"{rows.where}: holds 1 row; at least 2 are needed, one to train on and one to test on")
    peak = npy.find_peak(whole)
    classes = rows.classes
    if marks is not None:
        train, test = whole.subset(np.flatnonzero(~marks)), whole.subset(np.flatnonzero(marks))
        how = f"rows with {printable(options.test)} = 1 held out as test set"
    elif names_file:
        other = _load_test_file(str(options.test), rows, data_dir, options)
        train, test = whole, other.samples
        how = f"test rows from {other.where}"
    elif isinstance(options.test, float):
        held = hold_out_evenly(whole.N, options.test)
        train, test = whole.subset(np.flatnonzero(~held)), whole.subset(np.flatnonzero(held))
        how = f"a share of {options.test:g} held out as test set"
    else:
        train, test = npy.split(whole)
        how = f"{'every 10th row' if whole.N >= npy.HELD_OUT else 'the last row'} held out as test set"
    source = f"{rows.where}, {'streamed from disk' if whole.on_disk else 'in memory'}, {how}"
    print_of = fingerprint(train, test, rows.shape)
    return Task(name, train, test, rows.shape, classes, peak, source, print_of, rows.where)


@dataclass(frozen=True)
class LoadedRows:
    """All rows of a file.

    samples  the rows, with their labels
    shape    of a row
    classes  names of the labels, or None
    test     which rows are the test set, (N,), where a column says so; else None
    where    the file, for messages
    options  as far as the file has what they name
    """

    samples: Samples
    shape: tuple[int, ...]
    classes: tuple[str, ...] | None
    test: np.ndarray | None
    where: str
    options: TableOptions


def load_rows(kind: str, where: str, data_dir: Path, options: TableOptions) -> LoadedRows:
    """Load all rows of `kind:where`, with their labels, in the order of the file."""
    path, member = find_path(kind, where)
    shown = show_path(where)
    values: np.ndarray | RowSource
    names: list[str] | None
    if kind in PATTERNS and (path is None or path.is_dir()):
        shards, options = _load_shards(kind, where, data_dir, options)
        values, raw_labels, raw_test = shards.source, shards.labels, shards.test
        names = None if values.names is None else list(values.names)
        if values.held is None and values.N * values.D * values.dtype.itemsize <= npy.IN_MEMORY_BYTES:
            values = values.read(range(values.N)).reshape(values.shape)
    elif options.own and not options.stored:
        raise InputError(f"shards: own is for a folder or a pattern of .npy or .parquet files, not for {shown}")
    elif kind == "npy":
        assert path is not None
        names, raw_labels, raw_test = None, None, None
        options = _fit_options(options, None, shown)
        if options.missing == "drop":
            values = collect_npy(path, data_dir).source
        else:
            file = NpyFile(path)
            small = file.N * file.D * file.dtype.itemsize <= npy.IN_MEMORY_BYTES and len(file.shape) > 1
            values = file.read(range(file.N)).reshape(file.shape) if small else file
    else:
        assert path is not None
        if kind in TABLES:
            names = list(TABLES[kind](path, TableOptions()).names or ()) if options.stored else []
            options = _fit_options(options, names, shown)
            stream = TABLES[kind](path, options)
        else:
            options = _fit_options(options, None, shown)
            stream = CONTAINERS[kind](path, member)
        rows = collect_file(kind, path, stream, options, data_dir)
        values, raw_labels, raw_test = rows.source, rows.labels, rows.test
        names, shown = list(stream.names) if stream.names else None, stream.where
    npy.check_shape(values.shape, shown)
    N = values.shape[0]
    labels, classes = None, None
    if raw_labels is None:
        raw_labels = _read_labels(kind, path, options, shown)
    if raw_labels is not None:
        if len(raw_labels) != N:
            dropped = "; labels of a file do not go with missing: drop" if options.missing == "drop" else ""
            raise InputError(f"{shown}: {N} rows, but its labels file holds {len(raw_labels)}{dropped}")
        labels, classes = number_labels(raw_labels, shown)
    marks = None if raw_test is None else mark_test(raw_test, str(options.test), shown)
    samples = Samples(values, labels, origin=shown, names=None if names is None else tuple(names))
    shape = values.shape[1:3] if len(values.shape) == 4 and values.shape[3] == 1 else values.shape[1:]
    return LoadedRows(samples, tuple(shape), classes, marks, shown, options)


def _load_shards(kind: str, where: str, data_dir: Path, options: TableOptions) -> tuple[OpenedShards, TableOptions]:
    """Open the shards of `kind:where`; return them and the options as far as they have what these name."""
    shown = show_path(where)
    paths = find_shards(kind, where, options.own)
    names: list[str] | None = [] if kind in TABLES else None
    if kind in TABLES and options.stored:
        names = list(TABLES[kind](paths[0], TableOptions()).names or ())
    options = _fit_options(options, names, shown)
    if not options.own:
        return open_shards(kind, paths, options, data_dir), options
    column = isinstance(options.test, str) and recognise(options.test) is None
    for key, given in (("labels", options.labels), ("missing", options.missing == "drop"), ("test", column)):
        if given:
            raise InputError(f"{key}: cannot be given with shards: own, where no process sees all rows")
    return open_own_shards(kind, where, paths, options, data_dir), options


def hold_out_evenly(N: int, share: float) -> np.ndarray:
    """Return a mask (N,) of the rows i with floor((i + 1) t) > floor(i t), computed exactly; at least one of each."""
    if not 0 < share < 1:
        raise InputError(f"test: {share:g}; a share is more than 0 and less than 1")
    t = Fraction(str(share))
    exact = np.int64 if (N + 1) * t.numerator < 1 << 63 else object
    counts = np.arange(N + 1, dtype=exact) * t.numerator // t.denominator
    held = np.diff(counts).astype(bool)
    if not held.any():
        held[-1] = True
    if held.all():
        held[0] = False
    return held


def find_path(kind: str, where: str) -> tuple[Path | None, str | None]:
    """Return path and member of `PATH#MEMBER`; no path for a pattern of files. InputError for a missing path."""
    if not where or "\0" in where:
        raise InputError(f"task {kind}:{printable(where)}: a path is expected after {kind}:")
    member = None
    try:
        path = expand_path(where)
        if not path.exists() and "#" in where and (kind in CONTAINERS or kind == "npy"):
            before, _, member = where.rpartition("#")
            path = expand_path(before)
        if path.exists():
            return path, member
    except OSError as error:  # a name that is too long
        raise InputError(f"{show_path(where)}: cannot be read ({explain(error)})") from None
    if kind in PATTERNS and (RANK in where or any(mark in where for mark in "*?[")):
        return None, None
    raise InputError(f"{show_path(path)}: no such file or folder{nearest_in_folder(path)}")


def _fit_options(options: TableOptions, names: list[str] | None, where: str) -> TableOptions:
    """Return the options for a file; those of a checkpoint only as far as the file has what they name."""
    if not options.stored:
        if options.columns and names is None:
            raise InputError(f"columns: {where} has no names of columns; a CSV or Parquet file has")
        return options
    has = names or []
    return TableOptions(
        options.columns if names is not None else (),
        options.labels if options.labels in has else None,
        options.test if options.test in has or isinstance(options.test, float) else None,
        options.missing,
        True,
        options.own,
    )


def _load_test_file(where: str, rows: LoadedRows, data_dir: Path, options: TableOptions) -> LoadedRows:
    kind, colon, rest = where.partition(":")
    if not colon or kind not in KINDS:
        kind, rest = recognise(where) or "", where
    if not kind:
        raise InputError(f"test: '{printable(where)}' is no column of {rows.where} and no data file")
    # A file of labels is the training rows'; a column of labels is in both files.
    labels = None if options.labels is None or expand_path(options.labels).exists() else options.labels
    columns = rows.samples.names or ()
    same = (
        TableOptions(columns, labels, None, options.missing)
        if kind in TABLES
        else TableOptions(missing=options.missing)
    )
    other = load_rows(kind, rest, data_dir, same)
    if other.shape != rows.shape:
        raise InputError(
            f"{other.where}: its rows have shape {'x'.join(map(str, other.shape))}, those of {rows.where} "
            f"{'x'.join(map(str, rows.shape))}"
        )
    if other.classes != rows.classes and other.samples.labels is not None and rows.samples.labels is not None:
        other = _align_classes(other, rows)
    other.samples.check_finite()
    return other


def _align_classes(other: LoadedRows, rows: LoadedRows) -> LoadedRows:
    known = list(rows.classes or ())
    for name in other.classes or ():
        if name not in known:
            raise InputError(f"{other.where}: its class '{printable(name)}' has no training row{nearest(name, known)}")
    numbers = np.array([known.index(name) for name in other.classes or ()])
    labels = other.samples.labels
    assert labels is not None
    other.samples.labels = labels.new_tensor(numbers[labels.numpy()])
    return other


def _read_labels(kind: str, path: Path | None, options: TableOptions, where: str) -> np.ndarray | None:
    """Return the labels of a member or of a file, or of the file NAME_labels.npy beside the data; None without."""
    wanted = options.labels
    if wanted is None:
        beside = path and path.with_name(path.name.split(".")[0] + "_labels.npy")
        return npy.read_labels(beside) if beside and options.missing == "error" else None
    if kind in CONTAINERS and path is not None and not Path(wanted).expanduser().exists():
        return _read_vector(CONTAINERS[kind](path, wanted))
    file = expand_path(wanted)
    other = recognise(wanted)
    if other is None or not file.exists():
        columns = list(TABLES[kind](path, TableOptions()).names or ()) if kind in TABLES and path else []
        if columns:
            find_column(columns, wanted, "labels", where)
        raise InputError(f"labels: {show_path(wanted)}: no such file{nearest_in_folder(file)}")
    if other == "npy":
        return npy.read_labels(file)
    if other in CONTAINERS:
        return _read_vector(CONTAINERS[other](file, None))
    return _read_vector(TABLES[other](file, TableOptions()))


def _read_vector(stream: Stream) -> np.ndarray:
    values = np.concatenate([block.values for block in stream.clean_blocks(False)])
    if values.shape[1] != 1:
        raise InputError(f"{stream.where}: holds {values.shape[1]} values a row; labels are one")
    return values[:, 0]
