"""CPU threads: how many this process may use, and independent tasks that run in parallel, one thread each.

By default torch uses several cores through OpenMP, which splits one operation among threads that synchronise at its
end. Where one of them has lost its core to another process, the others wait for it, thousands of times a second. Tasks
that take milliseconds therefore run in a pool of our own (`run_parallel`), whose threads have one OpenMP thread each
and synchronise once a pass. For the remaining operations, OpenMP's threads sleep while they wait (`set_wait_policy`).
"""

import ctypes
import math
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # variables that control how OpenMP's threads wait
ALLOCATOR = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")  # variables of glibc
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT_BYTES = 1 << 24  # larger than the arrays of a chunk of 2,048 rows of 784 values


class CancelledError(Exception):
    """Raised in a task of `run_parallel` that is cancelled, because another task failed or a signal arrived."""


class _Current(threading.local):
    """The events that cancel the task of the current thread; empty in a thread that runs no task."""

    cancelled: tuple[threading.Event, ...] = ()


_current = _Current()
_pool: tuple[int, int, bool, ThreadPoolExecutor] | None = None  # process id, threads, was torch loaded, the pool
_pool_lock = threading.Lock()


def set_wait_policy() -> None:
    """Make OpenMP's threads sleep while they wait, unless the user has set a policy. Call before torch is imported.

    By default they spin. A thread that spins takes the core from the thread it waits for, if the two share one: a pass
    then takes up to twenty times as long, for the whole life of the process.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"


def keep_freed_memory() -> None:
    """Make glibc's allocator keep freed arrays of up to `KEPT_BYTES`, instead of returning them to the system.

    Chunks of rows allocate and free arrays of some megabytes, thousands of times. Memory that the system hands out
    again is cleared page by page, which took up to a fifth of the time. Another allocator is left as it is, and so are
    options that the user has set.
    """
    if any(name in os.environ for name in ALLOCATOR):
        return
    with suppress(OSError, AttributeError, TypeError):  # TypeError: Windows
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, 4 * KEPT_BYTES)


def find_torch() -> Any:
    """Return torch, or None where nothing has imported it: decompressing needs no torch, which takes seconds to import.

    What is computed must not depend on it.
    """
    return sys.modules.get("torch")


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Give numpy's BLAS one thread, where numpy is first imported within the block and the user has set no number."""
    name = "OPENBLAS_NUM_THREADS"  # read when numpy is imported
    if name in os.environ:
        yield
        return
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]


def usable_cores(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of cores this process may use: by its affinity and its control group (a container's limit)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota(groups))))


def _quota(root: Path) -> float:
    """Return the number of cores that the control group may use; infinity without a limit, and outside Linux."""
    with suppress(OSError, ValueError, IndexError, ZeroDivisionError):
        limit, period = (root / "cpu.max").read_text().split()[:2]  # version 2
        return math.inf if limit == "max" else int(limit) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        limit, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(limit) / int(period) if int(limit) > 0 else math.inf
    return math.inf


def count_threads() -> int:
    """Return the number of torch's threads; where torch is not loaded, OMP_NUM_THREADS, or else `usable_cores`."""
    torch = find_torch()
    if torch is not None:
        return int(torch.get_num_threads())
    given = re.match("[1-9][0-9]{0,3}(?![0-9])", os.environ.get("OMP_NUM_THREADS", "").strip())  # may be a list
    return int(given[0]) if given else usable_cores()


def limit_threads(threads: int = 0) -> None:
    """Set the number of torch's threads; 0: its default, but at most `usable_cores` unless OMP_NUM_THREADS is set."""
    import torch

    if threads == 0 and not os.environ.get("OMP_NUM_THREADS"):
        threads = min(torch.get_num_threads(), usable_cores())
    if threads and threads != torch.get_num_threads():
        torch.set_num_threads(threads)


@contextmanager
def limited_threads() -> Iterator[None]:
    """Apply `limit_threads` within a block, and restore the number after it."""
    import torch

    before = torch.get_num_threads()
    limit_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def run_parallel(
    work: Callable[[Item], Result], items: Sequence[Item], consume: Callable[[Result], None], parallel: bool = True
) -> None:
    """Call consume(work(item)) for every item, in their order; `work` runs in `count_threads` threads.

    Each `work` has one OpenMP thread, so that its result does not depend on the number of threads. It should call
    `check_cancelled` every few milliseconds. `consume` runs in the calling thread. An exception in either cancels all
    other tasks, waits for them, and is raised.

    A call from within `work` runs its tasks in the same thread, except for those that idle threads start first. Instead
    of waiting for such a task, it runs later ones. With `parallel` false, as for work on a GPU or with shared buffers,
    all tasks run in the calling thread.
    """
    inner = bool(_current.cancelled)
    threads = _pool[1] if inner and _pool is not None else count_threads()
    if not parallel or threads == 1 or (inner and len(items) == 1):
        for item in items:
            consume(work(item))
        return
    with _pool_lock:
        pool = _pool_of(threads)
    cancelled = *_current.cancelled, threading.Event()
    waiting = iter(items)
    running: deque[tuple[Item, Future[Result]]] = deque()

    def submit(most: int) -> None:
        for _, item in zip(range(most), waiting, strict=False):
            running.append((item, pool.submit(_run, work, item, cancelled)))

    def finish_first(item: Item, future: Future[Result]) -> Result:
        """Return the result of the first task in `running`; while another thread has it, run later ones here."""
        if future.cancel():
            return work(item)
        for i in range(1, len(running)):
            later_item, later = running[i]
            if future.done():
                break
            if later.cancel():
                computed: Future[Result] = Future()
                running[i] = later_item, computed
                try:
                    computed.set_result(work(later_item))
                except BaseException as error:
                    computed.set_exception(error)  # it is raised in the order of the items
                    break
        return future.result()

    try:
        submit(2 * threads)
        while running:
            item, future = running[0]
            result = finish_first(item, future) if inner else future.result()
            running.popleft()
            submit(1)
            consume(result)
    finally:
        cancelled[-1].set()
        wait([future for _, future in running if not future.cancel()])


def run_single_threaded(work: Callable[[], Result], parallel: bool = True) -> Result:
    """Return work(), run with one OpenMP thread: its rounding does not depend on the number of threads.

    For work that is too small to be divided, such as the decompositions between two passes.
    """
    results: list[Result] = []
    run_parallel(lambda _: work(), (None,), results.append, parallel)
    return results[0]


def check_cancelled() -> None:
    """Raise CancelledError where the task of this thread is cancelled."""
    if any(event.is_set() for event in _current.cancelled):
        raise CancelledError


def _run(work: Callable[[Item], Result], item: Item, cancelled: tuple[threading.Event, ...]) -> Result:
    _current.cancelled = cancelled
    try:
        check_cancelled()
        return work(item)
    finally:
        _current.cancelled = ()


def _pool_of(threads: int) -> ThreadPoolExecutor:
    """Return a pool of that many threads, the same one as in the last call if possible: its threads keep their buffers.

    A pool of another size, which another thread may still use, ends with its last reference.
    """
    global _pool
    torch = find_torch()
    key = os.getpid(), threads, torch is not None  # threads do not survive a fork
    if _pool is None or _pool[:3] != key:
        ready = threading.Barrier(threads + 1)

        def begin() -> None:
            if torch is not None:
                torch.set_num_threads(1)  # also the default of threads that have not read theirs yet; restored below
                torch.get_num_threads()  # reads it
            ready.wait()

        pool = ThreadPoolExecutor(threads, "llgae")
        started = [pool.submit(begin) for _ in range(threads)]
        ready.wait()
        wait(started)
        if torch is not None:
            torch.set_num_threads(threads)
        _pool = *key, pool
    return _pool[3]
