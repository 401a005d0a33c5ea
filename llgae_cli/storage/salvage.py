"""What is left of a damaged compressed file: its intact blocks, found without the index."""

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from llgae_cli.errors import InputError, explain, show_path
from llgae_cli.storage.compressed_file import (
    CHECK_BYTES,
    SMALLEST_BLOCK,
    SYNC,
    Sizes,
    framed_model_bytes,
    header_checksum,
    number_of,
    open_binary,
    unframe_model,
)
from llgae_cli.storage.compressed_header import PIECE, Fields, pack_varint, read_exactly, read_header

# A search for the next block computes the checksum of whatever could be one. In random bytes that is some tens of bytes
# for each byte; a file made to cost more is given up after this many.
SEARCHED_BYTES, SEARCHED_RATIO = 1 << 24, 64
LOST_RATIO = 20  # most blocks that a byte of the file may promise: a file cut to its first percent still passes

_PIECE = 1 << 13  # bytes searched at once: the next block is near as a rule
_LONGEST_HEAD = 1 + 9 + CHECK_BYTES


@dataclass(frozen=True)
class Found:
    """A block's payload, or None and the reason why it is lost."""

    number: int
    payload: bytes | None
    reason: str = ""


class Salvage:
    """The intact blocks of a file whose header is intact: `read_block`, or all `blocks()` in their order.

    It passes over damaged bytes to the next block, wherever that lies, and does not need the index. Blocks that were
    swapped come in their right order; of a block that is there twice the first is used. Time is proportional to the
    file's size, and memory to the number of blocks in it.

    A damaged block passes for an intact one with a probability of n_blocks / 2^32.

    Raises InputError, in one line, for a file that cannot be opened or has no intact header, and for a pipe.
    """

    def __init__(self, path: Path) -> None:
        """Read the file once, and note where its intact blocks are."""
        self._where = show_path(path)
        self._file = open_binary(path)
        try:
            if not self._file.seekable():
                raise InputError("a pipe, in which nothing can be searched: write it to a file first")
            self.header, packed = read_header(self._file)
            self._seed, self._header_bytes = header_checksum(packed), len(packed)
            self._model_bytes = framed_model_bytes(self.header)
            self._size = self._file.seek(0, os.SEEK_END)
            if self.header.n_blocks > LOST_RATIO * self._size:
                raise InputError(f"{self._size} bytes are next to nothing of the {self.header.n} rows that it declares")
            self._places = self._find_blocks()
            self._last = max(self._places, default=-1)
        except (InputError, OSError) as error:
            self._file.close()
            raise InputError(f"{self._where}: {explain(error)}") from None

    @property
    def n_found(self) -> int:
        """Return the number of intact blocks."""
        return len(self._places)

    @property
    def sizes(self) -> Sizes:
        """Return where the file's bytes are; damaged ones count as index."""
        payloads = sum(length for _, length in self._places.values())
        rest = self._size - self._header_bytes - self._model_bytes - payloads
        return Sizes(self._header_bytes, self._model_bytes, payloads, rest)

    def blocks(self) -> Iterator[Found]:
        """Yield all blocks 0..n_blocks-1, intact or lost."""
        for number in range(self.header.n_blocks):
            try:
                yield Found(number, self.read_block(number))
            except InputError as error:
                yield Found(number, None, str(error))

    def read_block(self, number: int) -> bytes:
        """Return the payload of a block 0..n_blocks-1. Raises InputError, with the reason only, where it is lost."""
        place = self._places.get(number)
        if place is None:
            cut = number > self._last
            raise InputError("damaged, or the file is cut short before them" if cut else "damaged or missing")
        try:
            self._file.seek(place[0])
            return read_exactly(self._file, place[1])
        except OSError as error:
            raise InputError(explain(error)) from None

    def read_model(self) -> bytes:
        """Return the embedded model. Raises InputError where there is none, or a damaged one."""
        try:
            self._file.seek(self._header_bytes)
            return unframe_model(read_exactly(self._file, self._model_bytes), self._seed)
        except (InputError, OSError) as error:
            raise InputError(f"{self._where}: {explain(error)}") from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _find_blocks(self) -> dict[int, tuple[int, int]]:
        """Return for each intact block where its payload begins, and how long it is."""
        places: dict[int, tuple[int, int]] = {}
        budget = SEARCHED_BYTES + SEARCHED_RATIO * self._size
        # After the model; but a damaged file may lack part of it, so its bytes are searched too where that fails.
        at = self._header_bytes + self._model_bytes
        if not self._block_at(at):
            at = self._header_bytes
        while at <= self._size - SMALLEST_BLOCK and budget > 0:
            block = self._block_at(at)
            if block is None or block.number is None:
                budget -= block.length if block else 0
                at = self._find_sync(at + 1)
                continue
            places.setdefault(block.number, (block.payload, block.length))
            at = block.payload + block.length
        return places

    def _block_at(self, at: int) -> "_Candidate | None":
        """Return what could be a block at a place, or None. It has no number where its checksum does not match."""
        self._file.seek(at)
        head = self._file.read(_LONGEST_HEAD)
        if not head.startswith(SYNC):
            return None
        fields = Fields(head[1:])
        try:
            length = fields.varint()
            check = int.from_bytes(fields.take(CHECK_BYTES), "little")
        except InputError:
            return None
        begin = at + 1 + fields.at
        if length > min(self._size - begin, self.header.longest_payload):
            return None
        crc = zlib.crc32(pack_varint(length), self._seed)
        self._file.seek(begin)
        crc = _checksum(self._file, length, crc)
        number = number_of(check, crc)
        return _Candidate(number if number < self.header.n_blocks else None, begin, length)

    def _find_sync(self, at: int) -> int:
        """Return the next place of SYNC from `at` on, or the file's end."""
        while at < self._size:
            self._file.seek(at)
            piece = self._file.read(_PIECE)
            if not piece:
                break
            found = piece.find(SYNC)
            if found >= 0:
                return at + found
            at += len(piece)
        return self._size


@dataclass(frozen=True)
class _Candidate:
    """What could be a block: its number if its checksum matches, where its payload begins, and how long that is."""

    number: int | None
    payload: int
    length: int


def _checksum(file: BinaryIO, length: int, crc: int) -> int:
    while length:
        part = file.read(min(length, PIECE))
        if not part:  # cut in the meantime
            return crc
        crc = zlib.crc32(part, crc)
        length -= len(part)
    return crc
