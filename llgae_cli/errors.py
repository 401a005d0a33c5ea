"""The one family of errors that the command line turns into a line and an exit code."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class LlgaeError(Exception):
    """Anything a user is told in one line. `exit_code` is what the process ends with."""

    exit_code = 1


class RunError(LlgaeError):
    """A run that started well and could not go on: a full disk, a diverged training, a lost process."""


class ProcessLostError(RunError):
    """One of several processes that share a run is gone."""


class InputError(LlgaeError):
    """Wrong usage, config or input: the user can mend it. Says what, where, and what is allowed."""

    exit_code = 2


class Interrupted(BaseException):
    """A signal asked the process to stop; not an Exception, so that nothing on the way swallows it."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum
        self.saved: Path | None = None  # the checkpoint written on the way out


def nearest(word: str, allowed: Iterable[str]) -> str:
    """A clause such as `; did you mean 'n-step'?` for the closest spelling, or nothing when none is close."""
    close = get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def printable(text: object, limit: int = 80) -> str:
    """Foreign text made safe to show on one line: control and bidirectional characters escaped, length bounded."""
    try:
        raw = str(text)
    except (ValueError, RecursionError):  # a number of more digits than Python spells out
        raw = f"a {type(text).__name__} that is too long to show"
    cut = raw if len(raw) <= limit else raw[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
