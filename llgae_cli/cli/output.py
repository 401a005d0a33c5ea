"""What the command line says: results on stdout, progress and complaints on stderr."""

import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from llgae_cli.errors import RunError, printable
from llgae_cli.formatting import five_digits
from llgae_cli.interrupts import postponed


class _Log(Console):
    """A console whose output may end up nowhere.

    A log's reader that has left, a full disk under the log or a terminal that was closed must not end a run.
    """

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _silence(sys.stderr)


LONGEST = 1 << 20  # letters of a cell or a line: as good as none, a path has 4096

ERRORS = _Log(stderr=True, highlight=False)
RESULTS = Console(highlight=False)


def escape_unencodable() -> None:
    r"""Have letters that the locale's encoding lacks written as \xe9 or \u0142, on stdout and on stderr.

    A path may hold any letter, and a run that is done must not end in an error over it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # None where there is no such stream, another kind in a notebook
            with suppress(OSError):  # a descriptor that has been replaced by one of another kind
                stream.reconfigure(errors="backslashreplace")


def complain(message: str) -> None:
    """One line on stderr, in red on a terminal."""
    ERRORS.print(Text.assemble(("llgae: ", "bold red"), printable(message, 2000)), soft_wrap=True)


def print_json(document: Any) -> None:
    """One JSON document on stdout; infinities and NaN, which JSON lacks, become null."""
    write(json.dumps(_finite(document), indent=2) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, (list, tuple)) else value


def say(*lines: str) -> None:
    """Plain lines on stdout; what would break or turn a line, as a path may hold, is escaped."""
    write("".join("\t".join(printable(cell, LONGEST) for cell in line.split("\t")) + "\n" for line in lines))


def write(text: str) -> None:
    """Text on stdout as it is. Where the reader has left, as `head` does, the rest is not wanted: ends with exit 0.

    Raises RunError where it cannot be written, to a full disk say.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _silence(sys.stdout)
        raise SystemExit(0) from None
    except OSError as error:
        _silence(sys.stdout)
        raise RunError(f"the result could not be written to standard output ({error.strerror})") from None


def _silence(stream: TextIO) -> None:
    """Send what is left to nowhere: the interpreter flushes once more at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout: drawn to the terminal's width, or tab-separated plain lines in a pipe."""
    if not RESULTS.is_terminal:
        say(*("\t".join(row) for row in [headers, *rows]))
        return
    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for i, header in enumerate(headers):
        numeric = all(_is_number(row[i]) for row in rows)
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


class Progressing:
    """An experiment's reporter: a live bar on a terminal, plain lines in a log, nothing but warnings when quiet.

    Interrupts wait until a line is written: one that is raised while the bar's lock is held would leave it held, and
    the thread that draws the bar would wait for it for ever.

    Of the processes of a torchrun, which announces each one's RANK, the first alone speaks.
    """

    def __init__(self, quiet: bool = False):
        self.mute = "WORLD_SIZE" in os.environ and os.environ.get("RANK", "0") != "0"
        self.quiet = quiet or self.mute
        self.bar: Progress | None = None
        if ERRORS.is_terminal and not self.quiet:
            self.bar = Progress(
                TextColumn("[bold]epoch"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=ERRORS,
                transient=True,
            )
            self.task = self.bar.add_task("starting", total=None)

    def __enter__(self) -> "Progressing":
        if self.bar:
            self.bar.start()
        return self

    @postponed()
    def __exit__(self, *exception: object) -> None:
        if self.bar:
            self.bar.stop()

    @postponed()
    def note(self, message: str) -> None:
        """A line; on a terminal the starts' running commentary stays inside the bar."""
        if self.bar:
            self.bar.update(self.task, description=printable(message, 70))
        elif not self.quiet:
            ERRORS.print(Text(printable(message, 200)), soft_wrap=True)

    @postponed()
    def warn(self, message: str) -> None:
        """A warning is shown even when quiet."""
        if self.mute:
            return
        ERRORS.print(Text.assemble(("llgae: warning: ", "bold yellow"), printable(message, 2000)), soft_wrap=True)

    @postponed()
    def epoch(self, record: dict[str, float], epochs: int) -> None:
        """The epoch's figures."""
        figures = [f"{label} {five_digits(record[key])}" for key, label in _FIGURES.items() if key in record]
        figures += [f"{record[key]:.0f} {key}" for key in ("empty", "repaired") if record.get(key)]
        text = "mean L2 " + ", ".join(figures)
        if self.bar:
            self.bar.update(self.task, completed=record["epoch"], total=epochs, description=text)
        elif not self.quiet:
            line = f"epoch {record['epoch']:.0f}/{epochs}  {text}  {record['seconds']:.1f} s"
            ERRORS.print(Text(line), soft_wrap=True)


_FIGURES = {"train_mean_l2": "train", "validation_mean_l2": "validation", "test_mean_l2": "test"}
