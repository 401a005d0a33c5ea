"""Stopping on a signal: at once, or after a step that must not be cut in two."""

from collections.abc import Iterator
from contextlib import contextmanager

from llgae_cli.errors import Interrupted

_postponements = 0
_waiting: int | None = None  # a signal that came while interrupts were postponed
_raised: int | None = None  # a signal that was raised as Interrupted; a library may have swallowed that, see `check`


def receive(signum: int) -> None:
    """Raise Interrupted for a signal, at once or at the end of the `postpone` block that is being executed."""
    global _waiting, _raised
    if _postponements:
        _waiting = signum
    else:
        _raised = signum
        raise Interrupted(signum)


@contextmanager
def postpone() -> Iterator[None]:
    """Postpone interrupts to the end of the block.

    For steps that must be complete, and for calls into C++ that call back into Python, such as torch.save: they turn
    any exception raised there into another one, and an interrupt would be reported as a failed write.
    """
    global _postponements, _waiting
    _postponements += 1
    try:
        yield
    finally:
        _postponements -= 1
        if _waiting is not None and not _postponements:
            signum, _waiting = _waiting, None
            receive(signum)


@contextmanager
def unmask() -> Iterator[None]:
    """Raise Interrupted where the block raises another exception after a signal.

    C++ code that calls Python turns what a signal handler raises there into an exception of its own.
    """
    try:
        yield
    except Exception:
        check()
        raise


def check() -> None:
    """Raise Interrupted again for a signal that a library swallowed. Long work calls this between its steps.

    Python prints and drops an exception that a signal handler raises within a destructor, or while C code imports a
    module.
    """
    if _raised is not None:
        raise Interrupted(_raised)


def reset() -> None:
    """Forget all signals received so far."""
    global _postponements, _waiting, _raised
    _postponements, _waiting, _raised = 0, None, None
