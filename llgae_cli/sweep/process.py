"""Processes of cells and of shards' workers: starting and stopping them, limits, their end when the parent dies."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from llgae_cli.regular_files import open_own
from llgae_cli.threads import usable_cores

GIB = 1 << 30
MAX_JOBS = 8  # cells that run at a time unless -j says otherwise
GRACE = 60.0  # seconds for a cell to save after SIGTERM
THREAD_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Share:
    """What one cell may use: CPU threads, GiB of memory (None: no limit), GPUs (only with Ray; may be a fraction)."""

    threads: int
    memory: float | None = None
    gpus: float = 0.0


def choose_threads(jobs: int) -> int:
    """Return the threads of each of `jobs` cells that run at a time: OMP_NUM_THREADS, else cores // jobs, at least 1.

    With more threads than cores, matrix products would wait for each other at every barrier.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else max(1, usable_cores() // jobs)


def list_gpus() -> list[str]:
    """Return the names of the GPUs that CUDA shows to this process, as CUDA_VISIBLE_DEVICES takes them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    import torch  # takes a second

    return [str(i) for i in range(torch.cuda.device_count())]


def choose_jobs(gpus: int, threads: int | None, cells: int) -> int:
    """Return how many cells run at a time: one a GPU, else one for each `threads` cores, at most MAX_JOBS and `cells`.

    A cell of an image data set takes about a GiB of memory, so more are not started unasked.
    """
    carried = gpus or min(MAX_JOBS, usable_cores() // (threads or 1))
    return max(1, min(carried, cells))


def spawn(
    folder: Path, until: int | None, keep_all: bool, share: Share, gpu: str | None = None
) -> "subprocess.Popen[bytes]":
    """Start the process of the cell in `folder`, which sees only `gpu` if one is named. Its log gets its output.

    Nothing is written to its standard input, see `start`.
    """
    command = ["sweep-cell", str(folder)]
    command += ["--until", str(until)] if until is not None else []
    command += ["--memory", str(share.memory)] if share.memory is not None else []
    command += ["--keep-all"] if keep_all else []
    return start(command, folder / "log.txt", share.threads, {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})


def start(
    arguments: Sequence[str], log: Path, threads: int, seen: Mapping[str, str] | None = None, answers: bool = False
) -> "subprocess.Popen[bytes]":
    """Start `llgae ARGUMENTS` with so many threads and the variables `seen`.

    The file `log` gets what it prints; with `answers` only what it prints on stderr, and its stdout is a pipe.

    It gets a process group of its own: Ctrl-C in a terminal reaches only the parent, which then asks every process once
    to save and stop. Its standard input is a pipe, see `follow_parent`.
    """
    pools = {name: str(threads) for name in THREAD_POOLS}
    with os.fdopen(open_own(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as file:
        file.write(f"--- {datetime.now(UTC).isoformat(timespec='seconds')}\n".encode())
        file.flush()
        return subprocess.Popen(
            [sys.executable, "-m", "llgae_cli", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if answers else file,
            stderr=file,
            process_group=0,
            env={**os.environ, **pools, **(seen or {}), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"},
        )


def stop(processes: Iterable["subprocess.Popen[bytes]"]) -> None:
    """Ask all processes at once to save and stop (SIGTERM); kill those that have not ended after GRACE seconds."""
    running = list(processes)
    for process in running:
        process.terminate()
    end = time.monotonic() + GRACE
    for process in running:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        release(process)


def release(process: "subprocess.Popen[bytes]") -> None:
    """Close this side of an ended process's pipes."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):  # what was written last has not been read
                pipe.close()


def describe_exit(status: int) -> str:
    """Return a process's exit status in words."""
    if status >= 0:
        return f"exit code {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    return f"killed by {name}" + (" (as the system does when memory runs out)" if -status == signal.SIGKILL else "")


def follow_parent(consume: Callable[[bytes], None] = lambda line: None) -> None:
    """Make this process stop as on SIGTERM once its standard input is closed: then its parent has died.

    The system closes the pipe however the parent died, on every Unix, so no cell runs on without its sweep. A process
    that has not saved within GRACE seconds is killed. `consume` is called with each line that the parent writes.
    """

    def watch() -> None:
        with suppress(OSError), open(0, "rb", closefd=False) as lines:
            for line in lines:
                consume(line)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def limit_memory(gib: float | None) -> None:
    """Limit the data of this process, a cell's, to `gib` GiB, and have the kernel choose it first when memory runs out.

    The limit is on data (RLIMIT_DATA), not on addresses: torch reserves many addresses that it never fills.
    """
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")  # so that the sweep itself lives and reports the failure
    if gib is not None:
        import resource  # only on Unix

        size = int(gib * GIB)
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
