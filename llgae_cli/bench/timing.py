"""Timing, and the speed and memory of the machine."""

import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch


def median_seconds(work: Callable[[], object], repeats: int = 7) -> float:
    """Return the median wall seconds of `work()`, after one warm-up call."""
    work()
    return statistics.median(seconds(work) for _ in range(repeats))


def seconds(work: Callable[[], object]) -> float:
    """Return the wall seconds of one `work()`, including work queued on the device."""
    _synchronise()
    began = time.perf_counter()
    work()
    _synchronise()
    return time.perf_counter() - began


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def sgemm_rate(device: torch.device, n: int = 2048) -> float:
    """Return the operations a second of a float32 product of two n x n matrices: the limit to compare with."""
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    return 2 * n**3 / median_seconds(lambda: a @ b, 11)


def machine(device: torch.device) -> str:
    """Return the name of the processor or GPU, and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as file:
            name = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def peak_memory() -> int:
    """Return the peak resident memory of this process, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
