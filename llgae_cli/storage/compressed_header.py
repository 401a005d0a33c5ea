"""Header of a compressed file: what its rows are, and which model, settings and entropy coder made it.

    magic       8 bytes
    version     1 byte
    length      varint, bytes of the body
    body        flags (1 byte; bit 0: exact), n, block_rows, type (1 byte, a place in DTYPES), number of sides, sides,
                identity (16 bytes), coder, settings, model bytes. Texts and bytes follow their length.
    CRC-32      of everything before, 4 bytes

Numbers without a width are varints (unsigned LEB128: seven bits a byte, lowest first); others are little-endian.
"""

import math
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from llgae_cli.errors import InputError, explain, printable

MAGIC = b"\x89LLGAE\r\n"  # a first byte above 127 and a line end, so that a transfer as text is noticed
VERSION = 1

# The place of a name is its number in the file: append only.
DTYPES = ("bool", "uint8", "int8", "int16", "uint16", "int32", "int64", "float16", "float32", "float64")

IDENTITY_BYTES = 16
MAX_ROWS = 1 << 48
MAX_BLOCKS = 1 << 30  # the numbers that a block's check tells apart, see `compressed_file.compute_check`
MAX_SIDES = 8
BLOCK_ROWS, BLOCK_BYTES = 512, 1 << 25  # rows of a block that is written, and most bytes of its values
MAX_BLOCK_BYTES = 1 << 28  # of the values in one block, so that a hostile header cannot ask for more memory
MAX_CODER = 64
MAX_SETTINGS = 1 << 20
MAX_MODEL = 1 << 40
MAX_HEADER = MAX_SETTINGS + 1024
PIECE = 1 << 20  # bytes requested at once: a length that a damaged file declares allocates nothing by itself

_EXACT = 1


def choose_block_rows(row_bytes: int) -> int:
    """Return the rows of a block: 512, fewer where their values take more than 32 MiB, at least one."""
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // row_bytes))


@dataclass(frozen=True)
class Header:
    """What a reader knows about a compressed file before its first block.

    n            number of rows
    shape        of a row
    dtype        type of the stored values, one of DTYPES
    identity     16 bytes, BLAKE2b digest of everything of the model that decoding uses
    exact        decoded values are the same bytes on every machine (otherwise only the symbols are)
    coder        entropy coder with its version, as "constriction 0.5.0"
    settings     of the codec, packed by it
    block_rows   rows in a block; the last block may have fewer
    model_bytes  size of the embedded model, 0 where the file has none
    """

    n: int
    shape: tuple[int, ...]
    dtype: str
    identity: bytes
    exact: bool
    coder: str
    settings: bytes
    block_rows: int = BLOCK_ROWS
    model_bytes: int = 0

    @property
    def n_values(self) -> int:
        """Return the number of values in a row."""
        return math.prod(self.shape)

    @property
    def n_blocks(self) -> int:
        """Return the number of blocks, ceil(n / block_rows)."""
        return -(-self.n // self.block_rows)

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row before compression."""
        return self.n_values * _item_bytes(self.dtype)

    @property
    def longest_payload(self) -> int:
        """Return the largest number of bytes that a block may take: twice its values and 64 KiB."""
        return 2 * self.block_rows * self.row_bytes + (1 << 16)

    def rows(self, block: int) -> range:
        """Return the numbers of the rows in a block."""
        return range(block * self.block_rows, min(self.n, (block + 1) * self.block_rows))

    def check(self) -> None:
        """Raise InputError for a field outside what the format can hold."""
        limits = {
            "rows": (self.n, 0, MAX_ROWS),
            "rows in a block": (self.block_rows, 1, MAX_BLOCK_BYTES),
            "sides of a row": (len(self.shape), 1, MAX_SIDES),
            "bytes of identity": (len(self.identity), IDENTITY_BYTES, IDENTITY_BYTES),
            "letters for the entropy coder": (len(self.coder), 0, MAX_CODER),
            "bytes of settings": (len(self.settings), 0, MAX_SETTINGS),
            "bytes of model": (self.model_bytes, 0, MAX_MODEL),
        }
        for what, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise InputError(f"{value} {what}; {low}..{high} can be stored in a compressed file")
        if self.dtype not in DTYPES:
            raise InputError(f"values of type {printable(self.dtype)}; {', '.join(DTYPES)} can be compressed")
        if not self.coder.isascii():
            raise InputError("the entropy coder's name is not ASCII")
        if min(self.shape) < 1:
            raise InputError(f"rows of shape {printable(self.shape)}; at least one value a row is expected")
        if self.block_rows * self.row_bytes > MAX_BLOCK_BYTES:
            raise InputError(
                f"blocks of {self.block_rows} rows of {self.row_bytes} bytes; {MAX_BLOCK_BYTES} bytes are allowed"
            )
        if self.n_blocks > MAX_BLOCKS:
            raise InputError(f"{self.n_blocks} blocks; at most {MAX_BLOCKS} fit in a file: use more rows in a block")

    def pack(self) -> bytes:
        """Return the header as bytes. Raises as `check`."""
        self.check()
        coder = self.coder.encode("ascii")
        body = b"".join(
            (
                bytes([_EXACT if self.exact else 0]),
                pack_varint(self.n),
                pack_varint(self.block_rows),
                bytes([DTYPES.index(self.dtype)]),
                pack_varint(len(self.shape)),
                *map(pack_varint, self.shape),
                self.identity,
                pack_varint(len(coder)),
                coder,
                pack_varint(len(self.settings)),
                self.settings,
                pack_varint(self.model_bytes),
            )
        )
        packed = MAGIC + bytes([VERSION]) + pack_varint(len(body)) + body
        return packed + zlib.crc32(packed).to_bytes(4, "little")


def read_header(file: BinaryIO) -> tuple[Header, bytes]:
    """Read the header at the current place of a file: the header, and its bytes.

    Raises InputError, without the file's name, where it is damaged, of a later version, or not a header at all.
    """
    start = file.read(len(MAGIC) + 1)
    if not start.startswith(MAGIC):
        raise InputError("not a file of `llgae compress`" if start else "an empty file")
    if len(start) == len(MAGIC):
        raise InputError("cut short within its header")
    length, length_bytes = read_varint(file)
    if start[-1] != VERSION:
        raise InputError(f"has version {start[-1]} of the format; this llgae reads version {VERSION}")
    if length > MAX_HEADER:
        raise InputError("its header is damaged")
    body, checksum = read_exactly(file, length), read_exactly(file, 4)
    raw = start + length_bytes + body
    if zlib.crc32(raw).to_bytes(4, "little") != checksum:
        raise InputError("its header is damaged (the checksum does not match)")
    return _parse(body), raw + checksum


def _parse(body: bytes) -> Header:
    fields = Fields(body)
    flags, n, block_rows, dtype = fields.byte(), fields.varint(), fields.varint(), fields.byte()
    sides = fields.varint()
    if flags & ~_EXACT or dtype >= len(DTYPES) or sides > MAX_SIDES:
        raise InputError("its header holds values that this version of the format does not have")
    shape = tuple(fields.varint() for _ in range(sides))
    identity, coder = fields.take(IDENTITY_BYTES), fields.take(fields.varint())
    settings, model_bytes = fields.take(fields.varint()), fields.varint()
    fields.end()
    if not coder.isascii():
        raise InputError("its header has a name of the entropy coder that is not ASCII")
    header = Header(
        n,
        shape,
        DTYPES[dtype],
        identity,
        bool(flags & _EXACT),
        coder.decode("ascii"),
        settings,
        block_rows,
        model_bytes,
    )
    try:
        header.check()
    except InputError as error:
        raise InputError(f"its header claims {error}") from None
    return header


class Fields:
    """Reads the fields of a record in order. Each method raises InputError at the record's end."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.at = raw, 0

    def take(self, length: int) -> bytes:
        """Return the next `length` bytes."""
        if length > len(self.raw) - self.at:
            raise InputError("damaged: a field is longer than its record")
        self.at += length
        return self.raw[self.at - length : self.at]

    def byte(self) -> int:
        """Return the next byte."""
        return self.take(1)[0]

    def varint(self) -> int:
        """Return the next varint, below 2^63."""
        value, shift = 0, 0
        while True:
            part = self.byte()
            value |= (part & 0x7F) << shift
            shift += 7
            if part < 0x80:
                break
            if shift >= 63:
                raise InputError("damaged: a number has too many digits")
        if part == 0 and shift > 7:  # a second spelling of the same number
            raise InputError("damaged: a number has leading zeros")
        return value

    def end(self) -> None:
        """Check that nothing follows."""
        if self.at != len(self.raw):
            raise InputError("damaged: bytes follow the last field of a record")


def pack_varint(value: int) -> bytes:
    """Return an integer from 0 as unsigned LEB128: seven bits a byte, lowest first, the top bit where more follow."""
    packed = bytearray()
    while value >= 0x80:
        packed.append(value & 0x7F | 0x80)
        value >>= 7
    packed.append(value)
    return bytes(packed)


def read_varint(file: BinaryIO) -> tuple[int, bytes]:
    """Read a varint from a file: its value, and its bytes. Raises InputError as `Fields.varint`."""
    raw = bytearray()
    while not raw or (raw[-1] >= 0x80 and len(raw) < 9):
        raw += read_exactly(file, 1)
    return Fields(bytes(raw)).varint(), bytes(raw)


def read_exactly(file: BinaryIO, length: int) -> bytes:
    """Read `length` bytes; InputError where the file ends before, or cannot be read.

    Memory grows with what arrives, not with `length`.
    """
    parts, left = [], length
    try:
        while left:
            part = file.read(min(left, PIECE))
            if not part:
                raise InputError("cut short")
            parts.append(part)
            left -= len(part)
    except OSError as error:
        raise InputError(f"cannot be read ({explain(error)})") from None
    return b"".join(parts)


def _item_bytes(dtype: str) -> int:
    digits = "".join(filter(str.isdigit, dtype))
    return int(digits) // 8 if digits else 1  # bool
