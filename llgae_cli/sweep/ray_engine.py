"""The Ray engine: cells as tasks of an existing Ray cluster, or of one that is started on this machine.

A task starts the cell's own process (see `process`), as the local engine does, so results are equal bit for bit. Every
node must see the sweep's folder under the same path.
"""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from llgae_cli.errors import RunError
from llgae_cli.sweep.plan import Cell
from llgae_cli.sweep.process import GIB, Share, release, spawn, stop
from llgae_cli.sweep.progress import SweepProgress
from llgae_cli.sweep.ray_cluster import POLL, RETRIES, RayCluster


class RayEngine:
    """Runs cells as Ray tasks, which Ray places by their share of CPUs, GPUs and memory.

    Connects to the cluster at `address`, else at the environment's RAY_ADDRESS; else starts a cluster on this machine
    with CPUs for `jobs` cells and ends it with the sweep. Raises InputError where Ray is not installed or does not
    answer.
    """

    def __init__(self, address: str | None, jobs: int, share: Share):
        self.cluster = RayCluster(address, jobs * share.threads)
        self.ray, self.share = self.cluster.ray, share
        self.jobs = max(1, self.cluster.cpus // share.threads)

    def run(self, progress: SweepProgress) -> None:
        """Run all waiting cells. On any exception their tasks are cancelled first, and the processes asked to save."""
        task = self.ray.remote(run_process)
        pending: dict[Any, Cell] = {}
        since: dict[str, float] = {}  # when each cell was submitted
        try:
            while pending or progress.waiting:
                submitted = {cell.id for cell in pending.values()}
                for cell in [cell for id, cell in progress.waiting.items() if id not in submitted]:
                    since[cell.id] = time.time()
                    pending[self._submit(task, progress, cell)] = cell
                for ref in self.ray.wait(list(pending), timeout=POLL)[0]:
                    cell = pending.pop(ref)
                    progress.finish(cell, self._status(ref))
                for cell in pending.values():
                    log = progress.folder.cell_folder(cell.id) / "log.txt"
                    if cell.id not in progress.running and _was_written(log, since[cell.id]):
                        progress.start(cell)
                progress.draw()
        finally:
            self.cluster.cancel(pending)

    def _submit(self, task: Any, progress: SweepProgress, cell: Cell) -> Any:
        """Hand a cell to Ray and return the reference of its task."""
        share = Share(cell.config.threads or self.share.threads, self.share.memory, self.share.gpus)
        options: dict[str, Any] = {"num_cpus": share.threads, "num_gpus": share.gpus, "max_retries": RETRIES}
        if share.memory is not None:
            options["memory"] = int(share.memory * GIB)
        path, keep_all = str(progress.folder.cell_folder(cell.id).resolve()), cell.config.save_every > 0
        named = task.options(name=f"llgae {cell.id}", **options)
        return named.remote(path, os.getcwd(), progress.find_goal(cell), keep_all, share)

    def _status(self, ref: Any) -> int | str:
        try:
            return self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            return self.cluster.describe_loss(error)

    def close(self) -> None:
        """Disconnect from the cluster; one that was started on this machine ends."""
        self.cluster.close()


def run_process(folder: str, working: str, until: int | None, keep_all: bool, share: Share) -> int:
    """Run one cell's process on this node and return its exit status. On cancellation the cell is asked to save."""
    cell = Path(folder)
    if not (cell / "config.yaml").is_file():
        node = os.uname().nodename
        raise RunError(f"{folder} does not exist on node {node}: --out has to be on a disk that all nodes share")
    if Path(working).is_dir():
        os.chdir(working)  # relative paths in a config start at the folder in which the sweep was started
    process: subprocess.Popen[bytes] = spawn(cell, until, keep_all, share)
    try:
        # Not process.wait(): Ray cancels by an interrupt, which would not end a blocking wait.
        while process.poll() is None:
            time.sleep(0.1)
        return process.returncode
    finally:
        if process.poll() is None:
            stop([process])
        release(process)


def _was_written(path: Path, since: float) -> bool:
    try:
        return path.stat().st_mtime >= since
    except OSError:
        return False
