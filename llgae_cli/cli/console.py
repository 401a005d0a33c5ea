"""Output of the command line: results on stdout, messages and progress on stderr."""

import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llgae_cli.errors import RunError, printable
from llgae_cli.interrupts import postpone


class _Log(Console):
    """A console that goes quiet if its output cannot be written.

    A closed pipe, a full disk under the log file or a closed terminal must not end a run.
    """

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        silence(sys.stderr)


LONGEST = 1 << 20  # characters of a cell or a line; a path has at most 4096

ERRORS = _Log(stderr=True, highlight=False)
RESULTS = Console(highlight=False)


def escape_unencodable() -> None:
    r"""Write characters that the locale's encoding lacks as \xe9 or \u0142, on stdout and on stderr.

    A path may hold any character, and a finished run must not end with an encoding error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # None without such a stream, another class in a notebook
            with suppress(OSError):  # the descriptor was replaced by one of another kind
                stream.reconfigure(errors="backslashreplace")


def print_error(message: str) -> None:
    """Print an error on stderr, in one line, red on a terminal."""
    ERRORS.print(Text.assemble(("llgae: ", "bold red"), printable(message, 2000)), soft_wrap=True)


def print_json(document: Any) -> None:
    """Print one JSON document on stdout; infinities and NaN, which JSON lacks, become null."""
    write_stdout(json.dumps(_finite(document), indent=2) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, (list, tuple)) else value


def print_lines(*lines: str) -> None:
    """Print plain lines on stdout; control and bidirectional characters, as a path may hold, are escaped."""
    write_stdout("".join("\t".join(printable(cell, LONGEST) for cell in line.split("\t")) + "\n" for line in lines))


def write_stdout(text: str) -> None:
    """Write text on stdout as it is. If the reader has closed the pipe, as `head` does, exit with 0.

    Raises RunError where it cannot be written, for instance to a full disk.
    """
    with guard_stdout():
        sys.stdout.write(text)


@contextmanager
def guard_stdout() -> Iterator[None]:
    """Flush stdout when the block ends; errors of writing to it in the block are handled as `write_stdout` says."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
        raise SystemExit(0) from None
    except OSError as error:
        silence(sys.stdout)
        raise RunError(f"the result could not be written to standard output ({error.strerror})") from None


def silence(stream: TextIO) -> None:
    """Redirect a stream to the null device: the interpreter flushes once more at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout: drawn to the terminal's width, or tab-separated lines in a pipe.

    A row of empty cells is a gap.
    """
    if not RESULTS.is_terminal:
        print_lines(*("\t".join(row) for row in [headers, *rows]))
        return
    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for i, header in enumerate(headers):
        numeric = all(_is_number(row[i]) for row in rows if any(row))
        drawn.add_column(header, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(printable(cell, LONGEST)) for cell in row))
    RESULTS.print(drawn)


def _is_number(text: str) -> bool:
    try:
        float(text.rstrip("%"))
    except ValueError:
        return False
    return True


class _Handler(logging.Handler):
    """Messages of the package on stderr, a line each: warnings in colour, information as it is.

    Not rich's own handler: it breaks lines at the width of the terminal, and in a log every message has to be a line.
    Interrupts wait until a line is written: one that is raised while rich holds its lock would leave it held, and the
    thread that draws a progress bar would wait for it for ever.
    """

    @postpone()
    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = Text.assemble(("llgae: warning: ", "bold yellow"), printable(message, 2000))
        else:
            text = Text(printable(message, 300))
        ERRORS.print(text, soft_wrap=True)


_handler = _Handler()


def set_up_logging(quiet: bool = False) -> None:
    """Show the package's messages on stderr; only warnings where `quiet`.

    Of the processes of a torchrun, each of which has its RANK in the environment, only the first shows any.
    """
    package = logging.getLogger("llgae_cli")
    package.handlers = [_handler]
    package.propagate = False
    package.setLevel(logging.WARNING if quiet else logging.INFO)
    if "WORLD_SIZE" in os.environ and os.environ.get("RANK", "0") != "0":
        package.setLevel(logging.CRITICAL + 1)
