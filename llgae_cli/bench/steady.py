"""The time of a pass in new processes: how well threads share the cores differs from process to process."""

import statistics
import subprocess
import sys
from pathlib import Path

from llgae_cli.errors import RunError

PROCESSES, PASSES = 20, 5

# As in the `llgae` command, the environment is set before torch is imported.
CHILD = """
import sys
from llgae_cli.threads import limit_threads, set_wait_policy
set_wait_policy()
from llgae_cli.bench.steady import pass_seconds
limit_threads()
print(pass_seconds(*sys.argv[1:]))
"""


def pass_seconds_of_processes(path: Path, K: int, E: int, centring: str, busy: bool) -> list[float]:
    """Return the seconds of a pass over the .npy file in PROCESSES processes, next to a busy one if asked."""
    command = [sys.executable, "-c", CHILD, str(path), str(K), str(E), centring]
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        took = []
        for _ in range(PROCESSES):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RunError(f"steady: a process failed ({done.stderr.strip().splitlines()[-1:]})")
            took.append(float(done.stdout))
        return took
    finally:
        if neighbour is not None:
            neighbour.kill()
            neighbour.wait()


def pass_seconds(path: str, K: str, E: str, centring: str) -> float:
    """Return the median seconds of PASSES passes after a first one; called in the new process."""
    import numpy as np

    from llgae_cli.bench.benchmarks import pass_over, random_components
    from llgae_cli.bench.timing import seconds
    from llgae_cli.tasks import Samples

    samples = Samples(np.load(path), centring="none" if centring == "none" else "sample")
    run = pass_over(samples, random_components(int(K), samples.D, int(E), samples.rows(slice(1))))
    run()
    return statistics.median(seconds(run) for _ in range(PASSES))
