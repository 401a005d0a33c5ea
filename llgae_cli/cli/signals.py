"""Ctrl-C, SIGTERM and a closed terminal: the first signal unwinds and saves; a second one ends the process at once."""

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from llgae_cli import interrupts
from llgae_cli.errors import Interrupted

SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
ECHO = 0.1  # seconds within which a second signal is a repetition of the first: `timeout` sends its signal twice
ECHO_TORCHRUN = 5.0  # torchrun forwards, a little later, signals that its processes also got from the terminal

_first: float | None = None
_unwinding = False
_report_others = sys.unraisablehook  # the hook before ours
_watching_process: int | None = None  # process with the watching thread: threads do not survive a fork


def install_handlers() -> None:
    """Raise Interrupted at the first signal, and exit with 128 + its number at the second.

    SIGHUP keeps its handler where it is ignored, as under nohup.
    """
    global _first, _unwinding, _report_others
    _first, _unwinding = None, False
    interrupts.reset()
    for signum in SIGNALS:
        if signum in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(signum) == signal.SIG_DFL:
            signal.signal(signum, _handle)
    if sys.unraisablehook is not _report_dropped:
        _report_others, sys.unraisablehook = sys.unraisablehook, _report_dropped
    _watch()


def ignore_signals() -> None:
    """Ignore further signals: the command has ended."""
    global _unwinding
    _unwinding = True


def _handle(signum: int, frame: FrameType | None) -> None:
    global _unwinding
    if not _unwinding:
        _unwinding = True
        interrupts.receive(signum)


def _report_dropped(dropped: Any) -> None:
    """Report an exception that Python drops, such as one in a destructor; not Interrupted, see `interrupts.check`."""
    if not isinstance(dropped.exc_value, Interrupted):
        _report_others(dropped)


def _watch() -> None:
    """Start the thread that ends the process at a second signal; half-written files have temporary names.

    A thread is needed because Python runs signal handlers only between two bytecodes of the main thread, and the
    decomposition of a large matrix, or a disk that does not answer, is a single one.
    """
    global _watching_process
    if _watching_process == os.getpid():
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        global _first
        while received := os.read(reading, 1):
            signum, now = received[0], time.monotonic()
            if signum not in SIGNALS or signal.getsignal(signum) is not _handle:
                continue
            if _first is None:
                _first = now
            elif now - _first > (ECHO_TORCHRUN if "TORCHELASTIC_RUN_ID" in os.environ else ECHO):
                os._exit(128 + signum)

    threading.Thread(target=watch, daemon=True, name="second signal").start()
    _watching_process = os.getpid()
