"""CPU threads: how many this process may use, and independent pieces of work side by side, a thread each.

Two kinds of threads do the arithmetic. OpenMP splits one operation of torch among threads that meet at its end; where
one of them has lost its core to another process, the others wait for it, thousands of times a second. Pieces of work
that take milliseconds are therefore run by threads of our own, each with one OpenMP thread (`run_side_by_side`): they
meet once a pass. For the operations that are left, OpenMP's threads sleep while they wait (`set_waiting`).
"""

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # each says how OpenMP's threads wait


class CancelledError(Exception):
    """Work that `run_side_by_side` has given up, because another piece failed or a signal came."""


class _Here(threading.local):
    """What a thread of the pool knows of its piece of work: the events that cancel it. None in any other thread."""

    cancelled: tuple[threading.Event, ...] = ()


_here = _Here()
_pool: tuple[int, int, ThreadPoolExecutor] | None = None  # process number, threads, the pool
_pool_lock = threading.Lock()


def set_waiting() -> None:
    """Let OpenMP's threads sleep, not spin, while they wait. Call before torch is imported; a user's own choice holds.

    A thread that spins takes the core from the thread it waits for, if the two share one: a pass then takes up to
    twenty times as long, for the whole life of the process.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"


def usable_cores(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """CPU cores that this process may use: its affinity, and the quota of its control group (a container's limit)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota(groups))))


def _quota(root: Path) -> float:
    """Cores' worth of time that the control group may take, infinity where there is no limit or no Linux."""
    with suppress(OSError, ValueError, IndexError, ZeroDivisionError):
        limit, period = (root / "cpu.max").read_text().split()[:2]  # version 2
        return math.inf if limit == "max" else int(limit) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        limit, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(limit) / int(period) if int(limit) > 0 else math.inf
    return math.inf


def limit_threads(threads: int = 0) -> None:
    """Let torch use that many threads; 0: its own choice, but no more than `usable_cores` unless a user said so."""
    import torch

    if threads == 0 and not os.environ.get("OMP_NUM_THREADS"):
        threads = min(torch.get_num_threads(), usable_cores())
    if threads and threads != torch.get_num_threads():
        torch.set_num_threads(threads)


@contextmanager
def limited_threads() -> Iterator[None]:
    """`limit_threads` for the length of a block, in a process that is somebody else's."""
    import torch

    before = torch.get_num_threads()
    limit_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def run_side_by_side(
    work: Callable[[Item], Result], items: Sequence[Item], take: Callable[[Result], None], parallel: bool = True
) -> None:
    """Call take(work(item)) for every item, in their order; `work` runs in as many threads as torch may use.

    Each `work` has one OpenMP thread, so that what it computes does not depend on how many run side by side. It should
    call `check_cancelled` every few milliseconds. `take` runs in the calling thread. What either raises ends all of
    it: the other pieces are cancelled and waited for.

    Called from within `work`, it does the pieces itself, in this thread, but for those that idle threads take. With
    `parallel` false, as for work on a GPU or work that shares buffers, it does all of them itself.
    """
    import torch

    inner = bool(_here.cancelled)
    threads = _pool[1] if inner and _pool is not None else torch.get_num_threads()
    if not parallel or threads == 1 or (inner and len(items) == 1):
        for item in items:
            take(work(item))
        return
    with _pool_lock:
        pool = _pool_of(threads)
    cancelled = *_here.cancelled, threading.Event()
    waiting = iter(items)
    running: deque[tuple[Item, Future[Result]]] = deque()

    def submit(most: int) -> None:
        for _, item in zip(range(most), waiting, strict=False):
            running.append((item, pool.submit(_run, work, item, cancelled)))

    try:
        submit(2 * threads)
        while running:
            item, future = running.popleft()
            result = work(item) if inner and future.cancel() else future.result()
            submit(1)
            take(result)
    finally:
        cancelled[-1].set()
        wait([future for _, future in running if not future.cancel()])


def run_alone(work: Callable[[], Result], parallel: bool = True) -> Result:
    """Return work(), run on one OpenMP thread: it rounds alike, however many threads there are.

    For what is too small to share out, such as the decompositions between two passes.
    """
    found: list[Result] = []
    run_side_by_side(lambda _: work(), (None,), found.append, parallel)
    return found[0]


def check_cancelled() -> None:
    """Raise CancelledError where this thread's piece of work is no longer wanted."""
    if any(event.is_set() for event in _here.cancelled):
        raise CancelledError


def _run(work: Callable[[Item], Result], item: Item, cancelled: tuple[threading.Event, ...]) -> Result:
    _here.cancelled = cancelled
    try:
        check_cancelled()
        return work(item)
    finally:
        _here.cancelled = ()


def _pool_of(threads: int) -> ThreadPoolExecutor:
    """A pool of that many threads, kept for the next call: its threads keep their buffers.

    One of another size, which another thread may still be using, ends with its last reference.
    """
    global _pool
    if _pool is None or _pool[:2] != (os.getpid(), threads):  # threads do not survive a fork
        import torch

        ready = threading.Barrier(threads + 1)

        def begin() -> None:
            torch.set_num_threads(1)  # of this thread, and of every thread that has not asked yet ...
            torch.get_num_threads()  # ... which is why this one asks now
            ready.wait()

        pool = ThreadPoolExecutor(threads, "llgae")
        begun = [pool.submit(begin) for _ in range(threads)]
        ready.wait()
        wait(begun)
        torch.set_num_threads(threads)
        _pool = os.getpid(), threads, pool
    return _pool[2]
