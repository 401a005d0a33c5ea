"""A cell's process: how it is started, what it may use, and how it ends when its parent does."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from llgae_cli.regular_files import open_own
from llgae_cli.threads import usable_cores

GIB = 1 << 30
GRACE = 60.0  # seconds that a cell has to save after SIGTERM
POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Share:
    """What one cell may use: CPU threads, GiB of memory (None: no limit), GPUs (Ray alone; may be a fraction)."""

    threads: int
    memory: float | None = None
    gpus: float = 0.0


def fair_threads(jobs: int) -> int:
    """Threads of each of `jobs` cells side by side: OMP_NUM_THREADS where it is set, else cores // jobs, at least 1.

    More threads than cores, all in matrix products, wait for each other at every barrier.
    """
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdecimal() and int(told) else max(1, usable_cores() // jobs)


def spawn(folder: Path, until: int | None, keep_all: bool, share: Share) -> "subprocess.Popen[bytes]":
    """Start the cell in `folder`. What it says is added to its log.

    It gets a process group of its own: Ctrl-C in a terminal reaches this process alone, which then asks every cell
    once to save and stop. Its standard input is a pipe that nothing is ever written to, see `follow_parent`.
    """
    command = [sys.executable, "-m", "llgae_cli", "sweep-cell", str(folder)]
    command += ["--until", str(until)] if until is not None else []
    command += ["--memory", str(share.memory)] if share.memory is not None else []
    command += ["--keep-all"] if keep_all else []
    pools = {name: str(share.threads) for name in POOLS}
    with os.fdopen(open_own(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as log:
        log.write(f"--- {datetime.now(UTC).isoformat(timespec='seconds')}\n".encode())
        log.flush()
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            process_group=0,
            env={**os.environ, **pools, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"},
        )


def stop(processes: Iterable["subprocess.Popen[bytes]"]) -> None:
    """Ask processes to save and stop (SIGTERM), all at once; end those that have not within GRACE seconds."""
    left = list(processes)
    for process in left:
        process.terminate()
    end = time.monotonic() + GRACE
    for process in left:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        release(process)


def release(process: "subprocess.Popen[bytes]") -> None:
    """Close this side of an ended process's pipe."""
    if process.stdin is not None:
        process.stdin.close()


def reason(code: int) -> str:
    """What a process's exit status says."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"killed by {name}" + (" (as the system does when memory runs out)" if -code == signal.SIGKILL else "")


def follow_parent() -> None:
    """Called in a cell: stop as on SIGTERM once standard input is closed, for then whoever started it has died.

    The system closes the pipe whatever the parent died of, on every Unix, so that nothing runs on unobserved. A cell
    that cannot save within GRACE seconds is ended.
    """

    def watch() -> None:
        with suppress(OSError):
            while os.read(0, 1024):
                pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def limit_memory(gib: float | None) -> None:
    """Called in a cell: its data may grow to `gib` GiB; and the kernel, when short, is to take it before others.

    The limit is on data (RLIMIT_DATA), not on addresses: torch reserves many addresses that it never fills.
    """
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")  # the sweep itself stays to tell the tale
    if gib is not None:
        import resource  # Unix alone

        size = int(gib * GIB)
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
