"""Files that a command writes or reads as bytes: named ones, and `-` for standard output and input."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from llgae_cli.cli.console import guard_stdout, print_lines
from llgae_cli.errors import InputError, printable
from llgae_cli.storage.atomic import write_atomically

STANDARD = Path("-")

logger = logging.getLogger(__name__)


def check_output(path: Path, suffix: str, json: bool = False) -> None:
    """Raise InputError where `path` is neither a file of that suffix nor `-`, or bytes may not go to `-`."""
    if path != STANDARD:
        if path.suffix != suffix:
            raise InputError(f"-o {printable(path, 200)}: a {suffix} file, a folder or - is expected")
    elif json:
        raise InputError("-o -: with --json, standard output has the JSON document: write to a file")
    elif sys.stdout.isatty():
        raise InputError("-o -: standard output is a terminal, and bytes are not written to it: redirect it")


@contextmanager
def open_output(path: Path) -> Iterator[BinaryIO]:
    """Open a file, which appears under its name when the block ends without an error, or standard output for `-`.

    A file's `name` is the path of its temporary file. Where the reader of standard output has closed the pipe, as
    `head` does, exits with 0. Raises RunError where the system refuses to write.
    """
    if path != STANDARD:
        with write_atomically(path) as temporary, open(temporary, "wb") as file:
            yield file
        return
    with guard_stdout():
        yield sys.stdout.buffer


def open_input(path: Path) -> "Path | BinaryIO":
    """Return the path, or standard input for `-`. Raises InputError where that is a terminal."""
    if path != STANDARD:
        return path
    if sys.stdin.isatty():
        raise InputError("-: standard input is a terminal: redirect a file to it")
    return sys.stdin.buffer


def print_summary(output: Path, *lines: str) -> None:
    """Print lines on stdout, or on stderr where standard output has the bytes."""
    if output != STANDARD:
        print_lines(*lines)
        return
    for line in lines:
        logger.info("%s", line)
