"""The Ray engine: the same cells, as tasks of a cluster that exists or of one started here for the purpose.

A task starts the cell's own process (see `process`), so that what runs, what it may use and what it leaves behind are
the local engine's, bit for bit. The sweep's folder has to be one that every node sees under the same path.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llgae_cli.errors import InputError, RunError, printable
from llgae_cli.sweep.folder import SweepFolder
from llgae_cli.sweep.plan import Cell
from llgae_cli.sweep.process import GIB, GRACE, Share, release, spawn, stop
from llgae_cli.sweep.run import Ledger

RETRIES = 3  # of a cell whose worker or node died; it goes on from its last checkpoint
POLL = 0.2  # seconds


class Cluster:
    """Cells as Ray tasks; Ray places them by their share of CPUs, GPUs and memory.

    `address` of a cluster, else RAY_ADDRESS of the environment, else a cluster of `jobs` times a cell's threads is
    started on this machine and ended with the sweep. Raises InputError where Ray is not installed or not reached.
    """

    def __init__(self, address: str | None, jobs: int, share: Share):
        try:
            import ray
        except ImportError:
            raise InputError("--engine ray: Ray is not installed; pip install 'llgae[ray]'") from None
        self.ray, self.share, self.width = ray, share, jobs
        self.chatter = contextlib.redirect_stdout(sys.stderr)  # Ray prints what its workers went through on stdout
        self.chatter.__enter__()
        handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        where = address or os.environ.get("RAY_ADDRESS")
        # Ray runs workers at nice 15: on a machine that is shared, cells would starve. Read when a cluster starts here.
        os.environ.setdefault("RAY_worker_niceness", "0")
        started: dict[str, Any] = {} if where else {"num_cpus": jobs * share.threads, "include_dashboard": False}
        try:
            ray.init(address=where or "local", log_to_driver=False, logging_level=logging.ERROR, **started)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise InputError(f"--engine ray: no cluster at {where or 'this machine'} ({printable(error)})") from None
        for signum, handler in handlers.items():  # Ray puts its own in their place
            signal.signal(signum, handler)
        if where:
            self.width = max(1, int(ray.cluster_resources().get("CPU", 1) // share.threads))

    def run(self, folder: SweepFolder, cells: Sequence[Cell], until: int | None, ledger: Ledger) -> None:
        """Run all cells. On any exception their tasks are cancelled first, and the processes asked to save."""
        task = self.ray.remote(attempt)
        pending: dict[Any, Cell] = {}
        begun: set[str] = set()
        since = time.time()
        try:
            for cell in cells:
                share = Share(cell.config.threads or self.share.threads, self.share.memory, self.share.gpus)
                options: dict[str, Any] = {"num_cpus": share.threads, "num_gpus": share.gpus, "max_retries": RETRIES}
                if share.memory is not None:
                    options["memory"] = int(share.memory * GIB)
                arguments = (str(folder.cell(cell.id).resolve()), os.getcwd(), until, cell.config.save_every > 0, share)
                pending[task.options(name=f"llgae {cell.id}", **options).remote(*arguments)] = cell
            while pending:
                for ref in self.ray.wait(list(pending), timeout=POLL)[0]:
                    cell = pending.pop(ref)
                    ledger.ended(cell, self._status(ref))
                for cell in pending.values():
                    if cell.id not in begun and _touched(folder.cell(cell.id) / "log.txt", since):
                        begun.add(cell.id)
                        ledger.begun(cell)
                ledger.tick()
        finally:
            self._cancel(pending)

    def _status(self, ref: Any) -> int | str:
        try:
            return self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            return (
                f"lost by Ray after {RETRIES} retries: {printable(lines[-1] if lines else type(error).__name__, 200)}"
            )

    def _cancel(self, pending: Iterable[Any]) -> None:
        left = list(pending)
        for ref in left:
            self.ray.cancel(ref)
        if left:
            self.ray.wait(left, num_returns=len(left), timeout=GRACE)

    def close(self) -> None:
        """Leave the cluster, ending it where it was started here."""
        self.ray.shutdown()
        self.chatter.__exit__(None, None, None)


def attempt(folder: str, working: str, until: int | None, keep_all: bool, share: Share) -> int:
    """Run one cell to its end on whatever node this is; its exit status. Cancelled, it asks the cell to save."""
    cell = Path(folder)
    if not (cell / "config.yaml").is_file():
        raise RunError(f"{folder} is not to be seen on {os.uname().nodename}: --out has to be on a shared disk")
    if Path(working).is_dir():
        os.chdir(working)  # relative paths in a config count from where the sweep was started
    process: subprocess.Popen[bytes] = spawn(cell, until, keep_all, share)
    try:
        # Not process.wait(): Ray cancels by an interrupt that a blocking wait would not notice.
        while process.poll() is None:
            time.sleep(0.1)
        return process.returncode
    finally:
        if process.poll() is None:
            stop([process])
        release(process)


def _touched(path: Path, since: float) -> bool:
    try:
        return path.stat().st_mtime >= since
    except OSError:
        return False
