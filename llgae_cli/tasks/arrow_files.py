"""Readers of CSV and Parquet files, through pyarrow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llgae_cli.errors import InputError, explain, printable, show_path
from llgae_cli.tasks.npy_file import check_regular
from llgae_cli.tasks.streams import Block, Stream, check_type, load_library, rows_per_block
from llgae_cli.tasks.table_options import TableOptions, check_names, choose_columns

CSV_BLOCK_BYTES = 1 << 22
FILE_BUFFER_BYTES = 1 << 20
# Types of Parquet columns -> numpy. uint64 and wider decimals have no exact counterpart in torch.
NUMBERS = {
    "bool": "bool", "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64",
    "uint8": "uint8", "uint16": "uint16", "uint32": "int64", "halffloat": "float16", "float": "float32",
    "double": "float64",
}  # fmt: skip


def open_csv(path: Path, options: TableOptions) -> Stream:
    """Open a CSV file with a header: comma separated, or tab separated where its name ends in .tsv; gzip is allowed.

    Numbers are read as float64, `true` and `false` as 1 and 0; empty cells, NA, NaN and null are missing values. Types
    are not guessed from the first rows: text in a later row is found. Raises InputError: text in a used column (with
    row and column), rows of different length, another separator, a header of numbers, duplicate names, no rows.
    """
    pa, csv = load_library("pyarrow", "a CSV file"), load_library("pyarrow.csv", "a CSV file")
    where = show_path(path)
    check_regular(path)
    tab = ".tsv" in path.suffixes
    parse = csv.ParseOptions(delimiter="\t" if tab else ",")
    read = csv.ReadOptions(block_size=CSV_BLOCK_BYTES, use_threads=False)

    def reader(types: dict[str, Any] | None) -> Any:
        convert = csv.ConvertOptions(
            column_types=types, include_columns=list(types) if types else None, strings_can_be_null=True
        )
        return csv.open_csv(str(path), read_options=read, parse_options=parse, convert_options=convert)

    try:
        names = list(reader(None).schema.names)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{where}: not a CSV file ({explain(error)})") from None
    except UnicodeDecodeError:
        raise InputError(f"{where}: its header is not UTF-8 text") from None
    _check_header(names, where, tab)
    used = choose_columns(names, options, where)
    raw = _extra_columns(names, options)
    types = {name: pa.float64() for name in used} | {name: pa.string() for name in raw}

    def blocks() -> Iterator[Block]:
        try:
            kinds = dict(types)
            for name, kind in zip(names, reader(None).schema.types, strict=True):
                if name in used and pa.types.is_boolean(kind):
                    kinds[name] = kind
            for batch in reader(kinds):
                if batch.num_rows:
                    yield _block(batch, used, np.dtype("float64"), options, raw)
        except (pa.ArrowException, OSError) as error:
            text = _find_text(reader({name: pa.string() for name in used}), pa)
            raise InputError(f"{where}: {text or explain(error)}") from None

    return Stream(where, np.dtype("float64"), (len(used),), tuple(used), blocks)


def open_parquet(path: Path, options: TableOptions) -> Stream:
    """Open a Parquet file. The type of the data is numpy's promotion of the types of the used columns.

    Raises InputError: text, dates, categories or nested values in a used column (named, with its type), duplicate
    names, a file that is encrypted, cut short or not Parquet.
    """
    pa, pq = load_library("pyarrow", "a Parquet file"), load_library("pyarrow.parquet", "a Parquet file")
    where = show_path(path)
    check_regular(path)

    def open_file() -> Any:
        return pq.ParquetFile(str(path), pre_buffer=False, buffer_size=FILE_BUFFER_BYTES)

    try:
        with open_file() as file:
            schema, n = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{where}: cannot be read as Parquet ({explain(error)})") from None
    names = list(schema.names)
    check_names(names, where)
    used = choose_columns(names, options, where)
    raw = _extra_columns(names, options)
    dtypes = []
    for name in used:
        kind = schema.field(name).type
        known = "float64" if pa.types.is_decimal(kind) else NUMBERS.get(str(kind))
        if known is None:
            raise InputError(
                f"{where}: column '{printable(name)}' {_first_value(open_file, name)}is {printable(kind)}, not "
                f"numbers; columns: '-{printable(name)}' leaves it out"
            )
        dtypes.append(np.dtype(known))
    dtype = np.result_type(*dtypes)
    check_type(dtype, where)
    size = rows_per_block(len(used), dtype.itemsize)

    def blocks() -> Iterator[Block]:
        try:
            with open_file() as file:
                for batch in file.iter_batches(batch_size=size, columns=[*used, *raw], use_threads=False):
                    if batch.num_rows:
                        yield _block(batch, used, dtype, options, raw)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{where}: broken Parquet file ({explain(error)})") from None

    return Stream(where, dtype, (len(used),), tuple(used), blocks, n)


def _extra_columns(names: list[str], options: TableOptions) -> list[str]:
    return list(dict.fromkeys(str(name) for name in (options.labels, options.test) if name in names))


def _block(batch: Any, used: list[str], dtype: np.dtype[Any], options: TableOptions, raw: list[str]) -> Block:
    columns = np.empty((len(used), batch.num_rows), dtype)
    missing = None
    for j, name in enumerate(used):
        column = batch.column(name)
        if column.null_count:
            if missing is None:
                missing = np.zeros((batch.num_rows, len(used)), bool)
            missing[:, j] = column.is_null().to_numpy(zero_copy_only=False)
            column = column.fill_null(False if str(column.type) == "bool" else 0)
        columns[j] = column.to_numpy(zero_copy_only=False)
    extra = {name: np.array(batch.column(name).to_pylist(), dtype=object) for name in raw}
    labels = extra.get(options.labels) if options.labels is not None else None
    test = extra.get(options.test) if isinstance(options.test, str) else None
    return Block(np.ascontiguousarray(columns.T), labels, test, missing)


def _check_header(names: list[str], where: str, tab: bool) -> None:
    found = next((mark for mark in ";\t|," if mark in names[0]), None) if len(names) == 1 else None
    if found:
        shown = "tab" if found == "\t" else f"'{found}'"
        expected = "a tab" if tab else "a comma"
        raise InputError(f"{where}: one column, whose name holds {shown}: values must be separated by {expected}")
    if all(_is_number(name) for name in names):
        raise InputError(f"{where}: its first line holds numbers; a line with the names of the columns is expected")
    check_names(names, where)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _find_text(batches: Any, pa: Any) -> str | None:
    """Return a sentence on the first cell, by row, that holds no number, or None."""
    start = 0
    try:
        for batch in batches:
            for row, cells in enumerate(zip(*(column.to_pylist() for column in batch.columns), strict=True)):
                for name, cell in zip(batch.schema.names, cells, strict=True):
                    if cell is not None and not _is_number(cell):
                        return (
                            f"row {start + row}, column '{printable(name)}': '{printable(cell)}' is not a number; "
                            f"columns: '-{printable(name)}' leaves the column out, "
                            f"labels: '{printable(name)}' makes it the labels (rows count from 0)"
                        )
            start += batch.num_rows
    except (pa.ArrowException, OSError):
        return None  # the table itself is broken: pyarrow's message says how
    return None


def _first_value(open_file: Any, name: str) -> str:
    """Return a clause with the first value of a column, or "" where it cannot be read."""
    try:
        with open_file() as file:
            for batch in file.iter_batches(batch_size=1, columns=[name]):
                return f"(row 0: '{printable(batch.column(0)[0], 40)}') "
    except Exception:  # only a courtesy in a message on this column; nested types fail in many ways
        return ""
    return ""
