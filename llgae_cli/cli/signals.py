"""Ctrl-C, SIGTERM and a closed terminal: the first unwinds, saving on the way; a second leaves at once."""

import os
import signal
import threading
import time
from types import FrameType

from llgae_cli import interrupts

SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
ECHO = 0.1  # seconds in which a second signal is the first one again: `timeout` sends its own twice
ECHO_TORCHRUN = 5.0  # torchrun passes on to its processes, a little later, what the terminal has sent them already

_first: float | None = None
_unwinding = False
_watched_by: int | None = None  # the process that has the watching thread: threads do not survive a fork


def listen() -> None:
    """Raise Interrupted at the first signal and leave with 128 + its number at the second.

    SIGHUP is left alone where somebody has had it ignored, as nohup does.
    """
    global _first, _unwinding
    _first, _unwinding = None, False
    interrupts.reset()
    for signum in SIGNALS:
        if signum in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(signum) == signal.SIG_DFL:
            signal.signal(signum, _heard)
    _watch()


def ignore() -> None:
    """Let no further signal unwind anything: the command has ended."""
    global _unwinding
    _unwinding = True


def _heard(signum: int, frame: FrameType | None) -> None:
    global _unwinding
    if not _unwinding:
        _unwinding = True
        interrupts.receive(signum)


def _watch() -> None:
    """Start the thread that leaves at a second signal: whatever is half-written then has a temporary name.

    A thread, because Python runs handlers between two steps of the main thread alone, and the decomposition of a
    large matrix, or a disk that does not answer, is one step.
    """
    global _watched_by
    if _watched_by == os.getpid():
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        global _first
        while heard := os.read(reading, 1):
            signum, now = heard[0], time.monotonic()
            if signum not in SIGNALS or signal.getsignal(signum) is not _heard:
                continue
            if _first is None:
                _first = now
            elif now - _first > (ECHO_TORCHRUN if "TORCHELASTIC_RUN_ID" in os.environ else ECHO):
                os._exit(128 + signum)

    threading.Thread(target=watch, daemon=True, name="second signal").start()
    _watched_by = os.getpid()
