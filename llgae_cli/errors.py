"""One family of errors, which the command line turns into one line and an exit code, and helpers for that line."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class LlgaeError(Exception):
    """An error that the user sees as one line. `exit_code` is the exit code of the process."""

    exit_code = 1


class RunError(LlgaeError):
    """A run that started correctly and cannot continue: a full disk, a diverged training, a lost process."""


class ProcessLostError(RunError):
    """One of several processes that share a run has died."""


class InputError(LlgaeError):
    """Wrong usage, config or input that the user can correct. The message names what, where, and what is allowed."""

    exit_code = 2


class Interrupted(BaseException):
    """A signal asked the process to stop. Not an Exception, so that no `except Exception` swallows it."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum
        self.saved: Path | None = None  # the checkpoint written before the process ends


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return a clause such as `; did you mean 'n-step'?` with the closest spelling, or "" when none is close."""
    close = get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def printable(text: object, limit: int = 80) -> str:
    """Return foreign text as one safe line: control and bidirectional characters escaped, at most `limit` long."""
    try:
        raw = str(text)
    except (ValueError, RecursionError):  # an integer with more digits than Python converts to text
        raw = f"a {type(text).__name__} that is too long to show"
    cut = raw if len(raw) <= limit else raw[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def show_path(path: Path | str) -> str:
    """Return a path as an error message shows it: escaped, at most 300 characters."""
    return printable(path, 300)


def explain(error: BaseException) -> str:
    """Return the reason of an error in one line. For an error of the operating system without the path."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(" ".join(text.split()) or type(error).__name__, 200)
