"""A compressed file to rows."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from llgae_cli.batch.row_counter import RowCounter
from llgae_cli.codec.codec import Codec
from llgae_cli.codec.entropy_coder import CODER
from llgae_cli.codec.settings import Settings
from llgae_cli.errors import InputError, printable, show_path
from llgae_cli.storage.compressed_file import CompressedFile
from llgae_cli.storage.compressed_header import Header
from llgae_cli.storage.salvage import Salvage
from llgae_cli.threads import run_parallel

MOST_WARNINGS = 20  # about ranges of lost rows

logger = logging.getLogger(__name__)


def load_codec(checkpoint: Path | None, file: CompressedFile | Salvage, path: Path) -> Codec:
    """Return the codec of a checkpoint, or of the model in the file. Raises InputError where it is another model's."""
    codec = Codec.load(checkpoint) if checkpoint else Codec.unpack(file.read_model())
    mine = f"{show_path(checkpoint)} has" if checkpoint else "the model in it has"
    check_codec(codec, file.header, path, mine)
    return codec


def check_codec(codec: Codec, header: Header, path: Path, mine: str) -> None:
    """Raise InputError where the file with this header is of another model; `mine` names the codec in the message."""
    if header.coder != CODER:
        logger.warning("%s: was made by %s; this is %s", show_path(path), printable(header.coder), CODER)
    if header.identity != codec.identity:
        identity = header.identity.hex()
        raise InputError(
            f"{show_path(path)}: was made by the model with identity {identity}; {mine} {codec.identity.hex()}"
        )
    if header.n_values != codec.D:
        raise InputError(f"{show_path(path)}: has rows of {header.n_values} values; its model's have {codec.D}")


@dataclass
class Lost:
    """The rows of a damaged file that could not be decoded: ranges with the reason."""

    path: Path
    ranges: list[tuple[range, str]] = field(default_factory=list)

    @property
    def n(self) -> int:
        """Return the number of rows."""
        return sum(len(rows) for rows, _ in self.ranges)

    def add(self, rows: range, reason: str) -> None:
        """Add rows; they are joined to the range before where they follow it for the same reason."""
        if self.ranges and self.ranges[-1][0].stop == rows.start and self.ranges[-1][1] == reason:
            rows = range(self.ranges.pop()[0].start, rows.stop)
        self.ranges.append((rows, reason))

    def report(self) -> None:
        """Warn of each range."""
        for rows, reason in self.ranges[:MOST_WARNINGS]:
            logger.warning("%s: rows %d..%d are lost: %s", show_path(self.path), rows.start, rows.stop - 1, reason)
        if len(self.ranges) > MOST_WARNINGS:
            more = sum(len(rows) for rows, _ in self.ranges[MOST_WARNINGS:])
            logger.warning("%s: %d more rows are lost; --json lists them", show_path(self.path), more)


def decode_rows(
    out: BinaryIO, file: CompressedFile | Salvage, codec: Codec, chosen: range, lost: Lost, path: Path
) -> None:
    """Write the chosen rows as an .npy array, block by block; some blocks are decoded at a time.

    Rows of a block that cannot be decoded are, of a Salvage, added to `lost` and written as 0, or NaN for floats; of a
    CompressedFile they raise InputError.
    """
    header, dtype, salvage = file.header, np.dtype(file.header.dtype), isinstance(file, Salvage)
    shape = (len(chosen), *header.shape)
    npy.write_array_header_1_0(out, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    settings, counter = unpack_settings(header, path), RowCounter("decoded", len(chosen))
    reading = Lock()

    def decode(number: int) -> tuple[int, np.ndarray | InputError]:
        rows, payload = header.rows(number), None
        try:
            with reading:
                payload = file.read_block(number)
            return number, codec.decode_block(payload, len(rows), dtype, settings)
        except InputError as error:
            if salvage:
                return number, error
            where = f"{show_path(path)}: block {number}, rows {rows[0]}..{rows[-1]}: "
            raise InputError(f"{'' if payload is None else where}{error}") from None

    def write(decoded: tuple[int, np.ndarray | InputError]) -> None:
        number, x_hat = decoded
        rows = header.rows(number)
        here = slice(max(rows.start, chosen.start) - rows.start, min(rows.stop, chosen.stop) - rows.start)
        if isinstance(x_hat, InputError):
            lost.add(rows[here], str(x_hat))
            x_hat = np.full((len(rows), header.n_values), np.nan if dtype.kind == "f" else 0, dtype)
        assert (x_hat.shape, x_hat.dtype) == ((len(rows), header.n_values), dtype)
        out.write(np.ascontiguousarray(x_hat[here]).view(np.uint8).data)
        counter.add(len(rows[here]))

    blocks = range(chosen.start // header.block_rows, -(-chosen.stop // header.block_rows))
    run_parallel(decode, blocks, write, len(blocks) > 1)


def unpack_settings(header: Header, path: Path) -> Settings:
    """Return the codec's settings in a header. Raises InputError, with the file's name, where they are impossible."""
    try:
        return Settings.unpack(header.settings, header.n_values)
    except InputError as error:
        raise InputError(f"{show_path(path)}: {error}") from None
