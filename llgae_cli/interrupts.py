"""When a signal may stop the work: at once, or after the step that must not be cut in two."""

from collections.abc import Iterator
from contextlib import contextmanager

from llgae_cli.errors import Interrupted

_postponements = 0
_waiting: int | None = None  # a signal that came while interrupts were postponed
_raised: int | None = None  # a signal that was raised; whoever caught it may have thrown it away, see `check`


def arrived(signum: int) -> None:
    """A signal asks the process to stop. Raises Interrupted here, or where `postponed` ends."""
    global _waiting, _raised
    if _postponements:
        _waiting = signum
    else:
        _raised = signum
        raise Interrupted(signum)


@contextmanager
def postponed() -> Iterator[None]:
    """Let no signal in until the block has ended; then raise Interrupted for one that came.

    For calls into C++ that call back into Python, such as torch.save: they make another error of whatever is raised
    there, and the interrupt would be told as a failed write.
    """
    global _postponements, _waiting
    _postponements += 1
    try:
        yield
    finally:
        _postponements -= 1
        if _waiting is not None and not _postponements:
            signum, _waiting = _waiting, None
            arrived(signum)


def check() -> None:
    """Raise Interrupted for a signal that was heard of and then lost; called where work goes on as if none had come.

    An exception that a handler raises within a destructor, or while C code imports a module, is printed and dropped.
    """
    if _raised is not None:
        raise Interrupted(_raised)


def forget() -> None:
    """Start anew: no signal has come."""
    global _postponements, _waiting, _raised
    _postponements, _waiting, _raised = 0, None, None
