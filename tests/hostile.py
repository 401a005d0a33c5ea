"""Bad input by the thousand: deterministic mutations of sound files, and a watch over whatever reads them."""

import os
import random
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llgae_cli.errors import InputError

SECONDS = 30  # of processor time that a reader may take over one input
HANGS = 600  # seconds after which a reader that does nothing is taken to wait for ever, on however busy a machine
ROOM = 1 << 29  # bytes of address space that a reader may take beyond what the process had

# What no reader does, by the names that the interpreter's audit gives it.
NEVER = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.mkdir",
    "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.putenv", "shutil.",
    "socket.connect", "socket.bind", "pickle.find_class", "builtins.input", "webbrowser.", "urllib.Request",
)  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_watching = False
_done: list[str] = []


class HangError(BaseException):
    """A reader took too long; not an Exception, so that no reader swallows it."""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event == "open":
        path, mode, flags = arguments
        writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & WRITES)
        if writes and "__pycache__" not in str(path):  # where the interpreter keeps what it has compiled
            _done.append(f"open {path!r} {mode} {flags}")
    elif event.startswith(NEVER):
        _done.append(f"{event} {arguments!r}"[:200])


sys.addaudithook(_audit)  # for good: an audit hook cannot be removed


@contextmanager
def watched() -> Iterator[None]:
    """Nothing is run or written in the block, it takes ROOM more memory at most, and ends within SECONDS of work."""
    global _watching

    def late(signum: int, frame: object) -> None:
        raise HangError(f"more than {SECONDS} s of processor time, or {HANGS} s in all")

    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = {number: signal.signal(number, late) for number in (signal.SIGALRM, signal.SIGPROF)}
    _done.clear()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, hard))
    signal.setitimer(signal.ITIMER_REAL, HANGS)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    _watching = True
    try:
        yield
    finally:
        _watching = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in before.items():
            signal.signal(number, handler)
    assert not _done, _done


class Tally:
    """Counts of inputs: `refused` with an InputError in one line, `read` as sound."""

    def __init__(self) -> None:
        self.refused = self.read = 0
        self.slowest = 0.0

    def __int__(self) -> int:
        """Return the number of inputs."""
        return self.refused + self.read

    def attempt(self, read: Callable[[], object], what: object) -> None:
        """Read one input. Anything but an InputError of one line, or an end without one, fails the test."""
        began = time.perf_counter()
        try:
            with watched():
                read()
            self.read += 1
        except InputError as error:
            said = str(error)
            assert "\n" not in said and "\r" not in said and said.isprintable() and len(said) < 3000, (what, said)
            self.refused += 1
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        self.slowest = max(self.slowest, time.perf_counter() - began)


BOUNDARIES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**62, 2**63 - 1)


def mutate(whole: bytes, draw: random.Random, other: bytes = b"") -> bytes:
    """Return the bytes with one to three changes: bits, extreme numbers, cuts, copies, another file's."""
    raw = bytearray(whole)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if not raw:
            break
        at = draw.randrange(len(raw)) if draw.random() < 0.7 else draw.choice((0, len(raw))) + draw.randrange(-96, 96)
        at = min(max(at, 0), len(raw) - 1)
        length = draw.choice((1, 2, 4, 8, 16, 100, 1000))
        kind = draw.randrange(8)
        if kind <= 1:
            raw[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            raw[at] = draw.choice((0, 0xFF, 0x7F, 0x0A, 0x2E, draw.randrange(256)))
        elif kind == 3:
            size, order = draw.choice("BHIQ"), draw.choice("<>")
            number = struct.pack(order + size, draw.choice(BOUNDARIES) % (1 << 8 * struct.calcsize(size)))
            raw[at : at + len(number)] = number
        elif kind == 4:
            del raw[at : at + length]
        elif kind == 5:
            source = draw.randrange(len(raw))
            raw[at:at] = raw[source : source + length]
        elif kind == 6 and other:
            source = draw.randrange(len(other))
            raw[at : at + length] = other[source : source + length]
        else:
            raw[at : at + length] = draw.randbytes(min(length, 16))
    return bytes(raw)


def cut(whole: bytes) -> Iterator[bytes]:
    """Yield the bytes cut at every percent of their length."""
    for percent in range(100):
        yield whole[: len(whole) * percent // 100]


def put(path: Path, raw: bytes) -> Path:
    """Write the bytes to the file and return its path."""
    path.write_bytes(raw)
    return path
