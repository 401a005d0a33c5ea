"""The time of a pass in fresh processes: whether threads get in each other's way is decided anew in each."""

import statistics
import subprocess
import sys
from pathlib import Path

from llgae_cli.errors import RunError

PROCESSES, PASSES = 20, 5

# What `llgae` itself does: the environment first, then torch.
CHILD = """
import sys
from llgae_cli.threads import limit_threads, set_waiting
set_waiting()
from llgae_cli.bench.steady import pass_seconds
limit_threads()
print(pass_seconds(*sys.argv[1:]))
"""


def pass_seconds_of_processes(path: Path, K: int, E: int, centring: str, busy: bool) -> list[float]:
    """Seconds of a pass over the .npy file in each of PROCESSES processes, beside one that is busy if so wished."""
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        return [_pass_seconds_of_one(path, K, E, centring) for _ in range(PROCESSES)]
    finally:
        if neighbour is not None:
            neighbour.kill()
            neighbour.wait()


def _pass_seconds_of_one(path: Path, K: int, E: int, centring: str) -> float:
    command = [sys.executable, "-c", CHILD, str(path), str(K), str(E), centring]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RunError(f"steady: a process failed ({run.stderr.strip().splitlines()[-1:]})")
    return float(run.stdout)


def pass_seconds(path: str, K: str, E: str, centring: str) -> float:
    """In the fresh process: the median seconds of PASSES passes after a first one."""
    import numpy as np

    from llgae_cli.bench.benchmarks import one_pass, random_components
    from llgae_cli.bench.timing import seconds
    from llgae_cli.tasks import Samples

    samples = Samples(np.load(path), centring="none" if centring == "none" else "sample")
    go = one_pass(samples, random_components(int(K), samples.D, int(E), samples.rows(slice(1))))
    go()
    return statistics.median(seconds(go) for _ in range(PASSES))
