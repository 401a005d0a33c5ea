"""The local engine: a few processes at a time on this machine."""

import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from llgae_cli.sweep.plan import Cell
from llgae_cli.sweep.process import Share, release, spawn, stop
from llgae_cli.sweep.progress import SweepProgress

POLL = 0.05  # seconds


class LocalEngine:
    """Runs `jobs` cells at a time. A cell that dies is counted as failed; the others run on.

    `gpus`: names of the machine's GPUs for CUDA_VISIBLE_DEVICES. Where there are several, each cell gets the one with
    the fewest cells.
    """

    def __init__(self, jobs: int, share: Share, gpus: Sequence[str] = ()):
        self.jobs, self.share, self.gpus = jobs, share, list(gpus) if len(gpus) > 1 else []

    def run(self, progress: SweepProgress) -> None:
        """Run all waiting cells. On any exception, Ctrl-C included, every process is asked to save first."""
        running: dict[subprocess.Popen[bytes], Cell] = {}
        placed: dict[subprocess.Popen[bytes], str | None] = {}
        try:
            while progress.waiting or running:
                for cell in list(progress.waiting.values())[: self.jobs - len(running)]:
                    share = Share(cell.config.threads or self.share.threads, self.share.memory)
                    folder, keep_all = progress.folder.cell_folder(cell.id), cell.config.save_every > 0
                    gpu = self.choose_gpu(placed[one] for one in running)
                    process = spawn(folder, progress.find_goal(cell), keep_all, share, gpu)
                    running[process], placed[process] = cell, gpu
                    progress.start(cell)
                for process in [process for process in running if process.poll() is not None]:
                    release(process)
                    progress.finish(running.pop(process), process.returncode)
                progress.draw()
                time.sleep(POLL)
        finally:
            stop(running)

    def choose_gpu(self, in_use: Iterable[str | None]) -> str | None:
        """Return the GPU with the fewest running cells; None where there are not several."""
        cells = Counter(in_use)
        return min(self.gpus, key=lambda gpu: cells[gpu], default=None)

    def close(self) -> None:
        """Do nothing: no process outlives `run`."""
