"""Compressed files: a header, blocks of rows that are read one by one, an index. What blocks hold is the codec's own.

    header          see `compressed_header`
    model           optional: the embedded model, and its CRC-32
    blocks          each: SYNC (1 byte), length of the payload (varint), check (4 bytes), payload
    index           the lengths of the payloads, varints
    trailer         bytes of the index (8), CRC-32 of the index (4), TRAILER (4)

A block costs 9 bytes beside a payload of 128 bytes to 16 KiB, and 11 up to 2 MiB. Every checksum but the header's own
starts from the header's, so that parts of a file with another header do not pass. Any row costs two reads once the
index is known, and a damaged block costs only its own rows: `salvage` finds the others even without the index.
"""

import os
import struct
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from llgae_cli.errors import InputError, explain, show_path
from llgae_cli.regular_files import open_for_reading
from llgae_cli.storage.atomic import write_atomically
from llgae_cli.storage.compressed_header import Fields, Header, pack_varint, read_exactly, read_header, read_varint

SYNC = b"\xb7"  # begins each block, so that a search for blocks computes few checksums
CHECK_BYTES = 4
SMALLEST_BLOCK = 1 + 1 + CHECK_BYTES  # with an empty payload
TRAILER = struct.Struct("<QI4s")
TRAILER_MAGIC = b"LLGZ"
HEADER_BYTES = 100  # of header and trailer, about

_SPREAD = 0x9E3779B1  # odd, so invertible modulo 2^32; 2^32 divided by the golden ratio
_GATHER = pow(_SPREAD, -1, 1 << 32)


@dataclass(frozen=True)
class Sizes:
    """Where the bytes of a compressed file are: header, embedded model, payloads of the blocks, index and checks."""

    header: int
    model: int
    blocks: int
    index: int

    @property
    def total(self) -> int:
        """Return the bytes of the file."""
        return self.header + self.model + self.blocks + self.index


def compute_check(number: int, length: bytes, payload: bytes, seed: int) -> int:
    """Return the check of a block: crc32(length, payload; seed) xor (number * _SPREAD mod 2^32).

    `length` is that of the payload as a varint, `seed` the checksum of the header. For a known payload the number
    follows from the check (`number_of`), and wrong bits in a check lead to numbers that no file has.
    """
    return zlib.crc32(payload, zlib.crc32(length, seed)) ^ (number * _SPREAD & 0xFFFFFFFF)


def number_of(check: int, crc: int) -> int:
    """Return the number, 0..2^32-1, of the block that has this check, from crc32(length, payload; seed)."""
    return (check ^ crc) * _GATHER & 0xFFFFFFFF


def leave_room(bits: float, n: int, block_rows: int) -> float:
    """Return the bits a row that the blocks of a file of n rows may take, so that the whole file takes `bits` a row.

    Raises InputError where header, index and checks alone take more.
    """
    if n == 0:
        return bits
    lengths = 2 if bits * block_rows < 8 * (1 << 14) else 3  # bytes of the length of a block
    around = (HEADER_BYTES + -(-n // block_rows) * (5 + 2 * lengths)) * 8 / n
    if bits <= around:
        raise InputError(f"bits {bits:g}: the header, the index and the checks alone take {around:.2f} bits a row")
    return bits - around


class CompressedWriter:
    """Writes a compressed file to any binary file object, in order: it may be a pipe. The file object stays open.

        with CompressedWriter(file, header, model) as writer:
            writer.write(payload)  # for each of header.n_blocks blocks

    At the end of the `with` block the index is written, and `sizes` are known. Raises InputError for a header that the
    format cannot hold, ValueError for a payload that is too long or a wrong number of blocks, OSError of the file.
    """

    def __init__(self, file: BinaryIO, header: Header, model: bytes = b"") -> None:
        """Write the header; `model` is embedded, and its size entered into the header."""
        self.header = replace(header, model_bytes=len(model))
        self._file = file
        self._lengths = array("Q")
        packed = self.header.pack()
        self._seed = header_checksum(packed)
        file.write(packed)
        if model:
            file.write(model)
            file.write(zlib.crc32(model, self._seed).to_bytes(CHECK_BYTES, "little"))
        self._header_bytes, self._model_bytes = len(packed), framed_model_bytes(self.header)
        self.sizes: Sizes | None = None

    def write(self, payload: bytes) -> None:
        """Write the next block."""
        number, length = len(self._lengths), pack_varint(len(payload))
        if number == self.header.n_blocks:
            raise ValueError(f"{self.header.n} rows have {number} blocks of {self.header.block_rows}; another one came")
        if len(payload) > self.header.longest_payload:
            raise ValueError(f"a block of {len(payload)} bytes; {self.header.longest_payload} are allowed")
        check = compute_check(number, length, payload, self._seed)
        self._file.write(SYNC + length + check.to_bytes(CHECK_BYTES, "little"))
        self._file.write(payload)
        self._lengths.append(len(payload))

    def close(self) -> None:
        """Write the index and the trailer."""
        if len(self._lengths) != self.header.n_blocks:
            raise ValueError(f"{len(self._lengths)} blocks; {self.header.n} rows have {self.header.n_blocks}")
        index = b"".join(map(pack_varint, self._lengths))
        self._file.write(index)
        self._file.write(TRAILER.pack(len(index), zlib.crc32(index, self._seed), TRAILER_MAGIC))
        heads = len(self._lengths) * (1 + CHECK_BYTES) + len(index)  # they hold the lengths, too
        self.sizes = Sizes(self._header_bytes, self._model_bytes, sum(self._lengths), heads + len(index) + TRAILER.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()


@contextmanager
def create_compressed(path: Path, header: Header, model: bytes = b"") -> Iterator[CompressedWriter]:
    """Create a compressed file, which appears under its name when the block ends without an error.

    Raises as `CompressedWriter`, and RunError where the system refuses to write.
    """
    with (
        write_atomically(path) as temporary,
        open(temporary, "wb") as file,
        CompressedWriter(file, header, model) as it,
    ):
        yield it


class CompressedFile:
    """A compressed file: `header`, `n_blocks`, `read_block`, `locate`, `read_model`, `sizes`. To be closed, or `with`.

    `source` is a path, or a binary file object, which stays open. Of a file, the header and the index are read here. Of
    a pipe the header and the model are, and its blocks can be read only in order.

    Raises InputError, in one line with the file's name, for a file that is missing, damaged, cut short, hostile or not
    a compressed file. No more memory is allocated than the file has bytes, apart from a constant.
    """

    def __init__(self, source: Path | BinaryIO, where: str = "the compressed data") -> None:
        """Open the file; `where` names a file object in messages."""
        self._where = show_path(source) if isinstance(source, Path) else where
        self._owned = isinstance(source, Path)
        self._file = open_binary(source) if isinstance(source, Path) else source
        self._ends: array[int] | None = None  # of the blocks, counted from the first
        self._lengths_seen = array("Q")  # of a pipe
        self._model: bytes | None = None
        self.sizes: Sizes | None = None  # of a pipe: known once its last block is read
        try:
            self.seekable = self._file.seekable()
            if self.seekable:
                self._file.seek(0)
            self.header, packed = read_header(self._file)
            self._seed, self._header_bytes = header_checksum(packed), len(packed)
            self._model_bytes = framed_model_bytes(self.header)
            self._start = self._header_bytes + self._model_bytes
            if self.seekable:
                self._read_index()
            else:
                self._model = read_exactly(self._file, self._model_bytes)
                if not self.n_blocks:
                    self._read_end()
        except BaseException as error:
            self.close()
            if isinstance(error, InputError):
                raise self._wrong(str(error)) from None
            if isinstance(error, OSError):
                raise self._wrong(f"cannot be read ({explain(error)})") from None
            raise

    @property
    def n_blocks(self) -> int:
        """Return the number of blocks."""
        return self.header.n_blocks

    def locate(self, row: int) -> tuple[int, int]:
        """Return the block of a row and its place in it. Raises InputError for a row outside 0..n-1."""
        if not 0 <= row < self.header.n:
            raise self._wrong(f"has no row {row}; it has {self.header.n} (rows count from 0)")
        return divmod(row, self.header.block_rows)

    def read_block(self, number: int) -> bytes:
        """Return the payload of a block 0..n_blocks-1. Of a pipe, blocks before it are read and passed over.

        Raises InputError where the block is damaged or, in a pipe, is past.
        """
        if not 0 <= number < self.n_blocks:
            raise self._wrong(f"has no block {number}; it has {self.n_blocks}")
        if self._ends is None:
            return self._read_next(number)
        begin, end = self._ends[number - 1] if number else 0, self._ends[number]
        try:
            self._file.seek(self._start + begin)
            record = Fields(read_exactly(self._file, end - begin))
            return self._unframe(number, record)
        except (InputError, OSError) as error:
            raise self._damaged(number, explain(error)) from None

    def read_model(self) -> bytes:
        """Return the embedded model. Raises InputError where there is none, or a damaged one."""
        try:
            if self._model is None and self.seekable:
                self._file.seek(self._header_bytes)
                self._model = read_exactly(self._file, self._model_bytes)
            return unframe_model(self._model or b"", self._seed)
        except (InputError, OSError) as error:
            raise self._wrong(explain(error)) from None

    def close(self) -> None:
        """Close the file, if it was opened here."""
        if self._owned:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read_index(self) -> None:
        """Set `_ends` and `sizes`. Nothing is allocated before the declared numbers agree with the file's size."""
        size = self._file.seek(0, os.SEEK_END)
        room = size - self._start - TRAILER.size
        if room < 0 or self.n_blocks * (SMALLEST_BLOCK + 1) > room:
            raise InputError(f"cut short: {size} bytes cannot hold the {self.n_blocks} blocks that its header declares")
        self._file.seek(size - TRAILER.size)
        length, checksum, magic = TRAILER.unpack(read_exactly(self._file, TRAILER.size))
        if magic != TRAILER_MAGIC:
            raise InputError("cut short, or its end is damaged; --salvage finds the blocks that are intact")
        if not self.n_blocks <= length <= room:
            raise InputError("its index is damaged; --salvage finds the blocks that are intact")
        self._file.seek(size - TRAILER.size - length)
        index = read_exactly(self._file, length)
        lengths = parse_index(index, checksum, self.n_blocks, self._seed)
        ends, end = array("Q"), 0
        for each in lengths:
            end += 1 + len(pack_varint(each)) + CHECK_BYTES + each
            if end > room - length:  # before it outgrows the array's 64 bits
                break
            ends.append(end)
        if end != room - length:
            raise InputError("its index disagrees with its size; --salvage finds the blocks that are intact")
        payloads = sum(lengths)
        self._ends = ends
        self.sizes = Sizes(self._header_bytes, self._model_bytes, payloads, size - self._start - payloads)

    def _read_next(self, number: int) -> bytes:
        """Read blocks of a pipe up to `number`; after the last one the index is read and compared."""
        if number < len(self._lengths_seen):
            raise self._wrong(f"a pipe, whose block {number} is past: its blocks can be read only in order")
        payload = b""
        while len(self._lengths_seen) <= number:
            here = len(self._lengths_seen)
            try:
                start = read_exactly(self._file, 1)
                length, length_bytes = read_varint(self._file)
                if start != SYNC or length > self.header.longest_payload:
                    raise InputError("no block begins where it should")
                record = start + length_bytes + read_exactly(self._file, CHECK_BYTES + length)
                payload = self._unframe(here, Fields(record))
            except InputError as error:
                raise self._damaged(here, str(error)) from None
            self._lengths_seen.append(len(payload))
        if len(self._lengths_seen) == self.n_blocks and self.sizes is None:
            try:
                self._read_end()
            except InputError as error:
                raise self._wrong(f"after its last block: {error}") from None
        return payload

    def _read_end(self) -> None:
        """Check the index and the trailer of a pipe, which is cut short without them."""
        index = b"".join(map(pack_varint, self._lengths_seen))
        end = read_exactly(self._file, len(index) + TRAILER.size)
        if end != index + TRAILER.pack(len(index), zlib.crc32(index, self._seed), TRAILER_MAGIC):
            raise InputError("its index is damaged")
        if self._file.read(1):
            raise InputError("bytes follow its end")
        payloads = sum(self._lengths_seen)
        heads = self.n_blocks * (1 + CHECK_BYTES) + len(index)
        self.sizes = Sizes(self._header_bytes, self._model_bytes, payloads, heads + len(end))

    def _unframe(self, number: int, record: Fields) -> bytes:
        """Return the payload of a block's record. Raises InputError where it is not what was written."""
        start, length = record.take(1), record.varint()
        check, payload = int.from_bytes(record.take(CHECK_BYTES), "little"), record.take(length)
        record.end()
        crc = zlib.crc32(payload, zlib.crc32(pack_varint(length), self._seed))
        found = number_of(check, crc)
        if start == SYNC and found == number:
            return payload
        if start == SYNC and found < self.n_blocks:
            raise InputError(f"block {found} is in its place")
        raise InputError("the checksum does not match")

    def _damaged(self, number: int, what: str) -> InputError:
        rows = self.header.rows(number)
        return self._wrong(f"block {number}, rows {rows[0]}..{rows[-1]}: {what}; --salvage decodes the other blocks")

    def _wrong(self, what: str) -> InputError:
        return InputError(f"{self._where}: {what}")


def parse_index(index: bytes, checksum: int, n_blocks: int, seed: int) -> "array[int]":
    """Return the lengths of the blocks' payloads. Raises InputError where the index is not what was written."""
    if zlib.crc32(index, seed) != checksum:
        raise InputError("its index is damaged (the checksum does not match); --salvage finds the intact blocks")
    fields = Fields(index)
    lengths = array("Q", (fields.varint() for _ in range(n_blocks)))
    fields.end()
    return lengths


def framed_model_bytes(header: Header) -> int:
    """Return the bytes of the embedded model with its checksum."""
    return header.model_bytes + CHECK_BYTES if header.model_bytes else 0


def unframe_model(raw: bytes, seed: int) -> bytes:
    """Return the embedded model from its bytes in the file. Raises InputError where there is none, or a damaged one."""
    if not raw:
        raise InputError("holds no model: give the checkpoint that it was compressed with")
    model, checksum = raw[:-CHECK_BYTES], raw[-CHECK_BYTES:]
    if zlib.crc32(model, seed).to_bytes(CHECK_BYTES, "little") != checksum:
        raise InputError("its model is damaged (the checksum does not match): give the checkpoint")
    return model


def header_checksum(packed: bytes) -> int:
    """Return the CRC-32 with which a packed header ends: the seed of the file's other checksums."""
    return int.from_bytes(packed[-4:], "little")


def open_binary(path: Path) -> BinaryIO:
    """Open a file or a pipe for reading. Raises InputError, in one line, where that is impossible."""
    try:
        handle = open_for_reading(path, pipe=True)
        with suppress(OSError):
            os.set_blocking(handle, True)
        return os.fdopen(handle, "rb")
    except FileNotFoundError:
        raise InputError(f"{show_path(path)}: no such file") from None
    except OSError as error:
        raise InputError(f"{show_path(path)}: cannot be read ({explain(error)})") from None
    except ValueError:  # a null byte in the path
        raise InputError(f"{show_path(path)}: not a valid path of a file") from None
