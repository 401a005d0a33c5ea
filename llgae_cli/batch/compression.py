"""Rows to a compressed file, which may be decoded again for comparison."""

from pathlib import Path
from typing import BinaryIO

import numpy as np

from llgae_cli.batch.row_counter import RowCounter
from llgae_cli.codec.codec import Codec
from llgae_cli.codec.entropy_coder import CODER
from llgae_cli.codec.settings import Settings
from llgae_cli.config import parse_config
from llgae_cli.errors import InputError, RunError, printable, show_path
from llgae_cli.evaluation.distortion import Bound, Distortion
from llgae_cli.factory import describe_loading
from llgae_cli.storage import load
from llgae_cli.storage.compressed_file import CompressedFile, CompressedWriter, Sizes
from llgae_cli.storage.compressed_header import Header, choose_block_rows
from llgae_cli.tasks import is_one_file, load_task, load_whole
from llgae_cli.tasks.rows import Rows


def load_rows(checkpoint: Path, task: str | None, split: str | None, data_dir: Path | None) -> Rows:
    """Load the rows of a split, or of both (all), of a task or the checkpoint's own.

    Without a split as `load_samples`. Raises InputError for rows that do not have the model's number of values.
    """
    stored = load(checkpoint)
    config = parse_config(stored.config)
    name, folder = task or config.task, data_dir or config.data_dir
    options = describe_loading(config, stored, other=task is not None)["options"]
    if is_one_file(name) and split in (None, "all"):
        whole, shape = load_whole(name, folder, options)
        return Rows([whole], shape)
    loaded = load_task(name, folder, "none", config.seed, scaling=None, options=options)
    parts = {"train": [loaded.train], "test": [loaded.test], "all": [loaded.train, loaded.test]}
    rows = Rows(parts[split or "test"], loaded.shape)
    if len({part.stored for part in rows.parts}) > 1:
        raise InputError(f"--split all: {rows.origin}: the train and the test rows are stored in different types")
    return rows


def write_rows(
    file: BinaryIO, codec: Codec, rows: Rows, settings: Settings, model: bytes, bound: Bound
) -> tuple[Distortion, Sizes]:
    """Write all rows as a compressed file; return the errors of what they decode to, and where the bytes went."""
    block_rows = choose_block_rows(rows.row_bytes)
    header = Header(
        rows.n, rows.shape, rows.dtype, codec.identity, True, CODER, settings.pack(), block_rows, len(model)
    )
    error, counter = Distortion(bound), RowCounter("compressed", rows.n)
    with CompressedWriter(file, header, model) as writer:
        for x in rows.chunks(block_rows):
            payloads, values = codec.code_blocks(x, settings, block_rows)
            error.add(x, values)
            for payload in payloads:
                writer.write(payload)
            counter.add(len(x))
    assert writer.sizes is not None
    return error, writer.sizes


def verify_file(path: Path, codec: Codec, rows: Rows, settings: Settings, expected: Distortion) -> None:
    """Decode a file and compare it with the rows and with what its blocks decoded to before they were written.

    Raises RunError where it differs, or breaks the bound.
    """
    error, counter = Distortion(expected.bound), RowCounter("verified", rows.n)
    try:
        with CompressedFile(path) as file:
            number = 0
            for x in rows.chunks(file.header.block_rows):
                for start in range(0, len(x), file.header.block_rows):
                    block = x[start : start + file.header.block_rows]
                    payload = file.read_block(number)
                    error.add(block, codec.decode_block(payload, len(block), np.dtype(rows.dtype), settings))
                    number += 1
                counter.add(len(x))
    except InputError as wrong:
        raise RunError(f"--verify: {show_path(path)} cannot be read back ({printable(wrong, 200)})") from None
    if error.digest.digest() != expected.digest.digest():
        raise RunError(f"--verify: {show_path(path)} decodes to other values than before it was written")
