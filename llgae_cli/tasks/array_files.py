"""Readers of arrays in containers: HDF5 through h5py, Zarr through zarr, and members of .npz archives."""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from llgae_cli.errors import InputError, explain, nearest, printable, show_path
from llgae_cli.tasks.npy_file import NpyFile, check_regular, nearest_in_folder, read_npy_header
from llgae_cli.tasks.streams import Block, Stream, check_type, load_library, rows_per_block


def open_hdf5(path: Path, member: str | None) -> Stream:
    """Open a dataset of an HDF5 file: `member`, or the only array of two or more dimensions.

    Raises InputError: not an HDF5 file, no such dataset (the nearest is named), a group (its datasets are listed),
    several arrays without a choice, a type outside `npy_file.DTYPES`.
    """
    h5py = load_library("h5py", "an HDF5 file")
    check_regular(path)

    def open_file() -> Any:
        try:
            return h5py.File(path, "r")
        except OSError as error:
            raise InputError(f"{show_path(path)}: cannot be read as HDF5 ({explain(error)})") from None

    with open_file() as file:
        found: dict[str, tuple[int, ...]] = {}
        file.visititems(lambda name, node: _note(found, name, node, h5py.Dataset))
        name = _choose(found, member, show_path(path), "dataset")
        array = file[name]
        dtype, shape, chunks = array.dtype, array.shape, array.chunks

    def read() -> Iterator[Block]:
        try:
            with h5py.File(path, "r") as file:
                yield from _slices(file[name], dtype, shape, chunks)
        except OSError as error:
            raise InputError(f"{show_path(path)}#{printable(name)}: broken HDF5 file ({explain(error)})") from None

    return _stream(f"{show_path(path)}#{printable(name)}", dtype, shape, read)


def open_zarr(path: Path, member: str | None) -> Stream:
    """Open an array of a Zarr store: `member`, the store itself where it is an array, or its only array.

    Raises InputError: no Zarr store, no array in it, no such array (the nearest is named), several arrays without a
    choice, a type outside `npy_file.DTYPES`.
    """
    zarr = load_library("zarr", "a Zarr store")
    if not path.exists():
        raise InputError(f"{show_path(path)}: no such file or folder{nearest_in_folder(path)}")
    try:
        root = zarr.open(str(path), mode="r")
        whole = isinstance(root, zarr.Array)
        found = {} if whole else {name: node.shape for name, node in root.members(None) if hasattr(node, "dtype")}
    except Exception as error:  # stores and codecs raise errors of their own
        raise InputError(f"{show_path(path)}: cannot be read as a Zarr store ({explain(error)})") from None
    if whole and member is not None:
        raise InputError(f"{show_path(path)}: is an array itself, so no #{printable(member)} is expected")
    array = root if whole else root[_choose(found, member, show_path(path), "array")]
    where = show_path(path) + ("" if whole else f"#{printable(array.path)}")

    def read() -> Iterator[Block]:
        try:
            yield from _slices(array, array.dtype, array.shape, array.chunks)
        except Exception as error:
            raise InputError(f"{where}: broken Zarr store ({explain(error)})") from None

    return _stream(where, array.dtype, array.shape, read)


def open_npz(path: Path, member: str | None) -> Stream:
    """Open an array of an .npz archive: `member`, or the only array of two or more dimensions.

    Raises InputError: not an archive, no such array, several arrays without a choice, pickled objects. An array in
    Fortran order is read into memory at once.
    """
    check_regular(path)
    where = show_path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            found: dict[str, tuple[int, ...]] = {}
            for entry in archive.namelist():
                if entry.endswith(".npy"):
                    with archive.open(entry) as file:
                        found[entry.removesuffix(".npy")] = read_npy_header(file, f"{where}#{printable(entry)}")[0]
            name = _choose(found, member, where, "array")
            with archive.open(f"{name}.npy") as file:
                shape, fortran, dtype = read_npy_header(file, where)
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{where}: cannot be read as .npz ({explain(error)})") from None
    where = f"{where}#{printable(name)}"

    def read() -> Iterator[Block]:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
                read_npy_header(file, where)
                yield from _npy_blocks(file, shape, fortran, dtype, where)
        except (zipfile.BadZipFile, OSError, EOFError, zlib.error) as error:
            raise InputError(f"{where}: broken .npz archive ({explain(error)})") from None

    return _stream(where, dtype, shape, read)


def open_npy(path: Path) -> Stream:
    """Open an .npy file as a stream, for `missing: drop`; otherwise `NpyFile` reads it in place."""
    file = NpyFile(path)

    def read() -> Iterator[Block]:
        size = rows_per_block(file.D, file.dtype.itemsize)
        for low in range(0, file.N, size):
            yield Block(file.read(range(low, min(low + size, file.N))))

    return _stream(show_path(path), file.dtype, file.shape, read)


def _stream(where: str, dtype: Any, shape: tuple[int, ...], read: Callable[[], Iterator[Block]]) -> Stream:
    native = np.dtype(dtype).newbyteorder("=")
    check_type(native, where)
    if len(shape) >= 1 and 0 in shape:
        raise InputError(f"{where}: holds no values (shape {'x'.join(map(str, shape))})")
    return Stream(where, native, tuple(shape[1:]), None, read)


def _note(found: dict[str, tuple[int, ...]], name: str, node: Any, kind: type) -> None:
    if isinstance(node, kind) and node.shape is not None:  # type: ignore[attr-defined]
        found[name] = node.shape  # type: ignore[attr-defined]


def _choose(found: dict[str, tuple[int, ...]], member: str | None, where: str, what: str) -> str:
    listed = ", ".join(f"{printable(name)} ({'x'.join(map(str, shape))})" for name, shape in list(found.items())[:8])
    if not found:
        raise InputError(f"{where}: holds no {what}")
    if member is None:
        tables = [name for name, shape in found.items() if len(shape) >= 2]
        if len(tables) == 1:
            return tables[0]
        raise InputError(f"{where}: {len(found)} {what}s; add #NAME to choose one: {listed}")
    name = member.strip("/")
    if name in found:
        return name
    inside = [other for other in found if not name or other.startswith(f"{name}/")]
    if inside:
        raise InputError(f"{where}: '{printable(member)}' is a group; it holds {', '.join(map(printable, inside[:8]))}")
    raise InputError(f"{where}: no {what} '{printable(member)}'{nearest(name, found) or ';'} it holds {listed}")


def _slices(array: Any, dtype: Any, shape: tuple[int, ...], chunks: Any) -> Iterator[Block]:
    """Yield the rows in blocks that begin where chunks begin, so that a chunk is unpacked once."""
    D = max(1, int(np.prod(shape[1:], dtype=object)))
    size = rows_per_block(D, np.dtype(dtype).itemsize)
    if chunks:
        size = max(chunks[0], size // chunks[0] * chunks[0])
    for low in range(0, shape[0], size):
        rows = np.asarray(array[low : low + size])
        yield Block(rows.reshape(len(rows), D).astype(rows.dtype.newbyteorder("="), copy=False))


def _npy_blocks(
    file: IO[bytes], shape: tuple[int, ...], fortran: bool, dtype: np.dtype[Any], where: str
) -> Iterator[Block]:
    D = max(1, int(np.prod(shape[1:], dtype=object)))
    native = dtype.newbyteorder("=")
    size = shape[0] if fortran else rows_per_block(D, dtype.itemsize)
    for low in range(0, shape[0], size):
        n = min(size, shape[0] - low)
        raw = file.read(n * D * dtype.itemsize)
        if len(raw) < n * D * dtype.itemsize:
            raise InputError(f"{where}: cut short")
        rows = np.frombuffer(raw, dtype)
        block = rows.reshape(shape, order="F") if fortran else rows
        yield Block(np.ascontiguousarray(block).reshape(n, D).astype(native, copy=False))
