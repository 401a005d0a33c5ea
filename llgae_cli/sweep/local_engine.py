"""The local engine: a few processes at a time on this machine."""

import subprocess
import time
from collections.abc import Sequence

from llgae_cli.sweep.folder import SweepFolder
from llgae_cli.sweep.plan import Cell
from llgae_cli.sweep.process import Share, release, spawn, stop
from llgae_cli.sweep.progress import SweepProgress

POLL = 0.05  # seconds


class LocalEngine:
    """Runs `jobs` cells at a time. A cell that dies is counted as failed; the others run on."""

    def __init__(self, jobs: int, share: Share):
        self.jobs, self.share = jobs, share

    def run(self, folder: SweepFolder, cells: Sequence[Cell], until: int | None, progress: SweepProgress) -> None:
        """Run all cells. On any exception, Ctrl-C included, every process is asked to save before it leaves."""
        waiting = list(reversed(cells))
        running: dict[subprocess.Popen[bytes], Cell] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    cell = waiting.pop()
                    share = Share(cell.config.threads or self.share.threads, self.share.memory)
                    process = spawn(folder.cell_folder(cell.id), until, cell.config.save_every > 0, share)
                    running[process] = cell
                    progress.start(cell)
                for process in [process for process in running if process.poll() is not None]:
                    release(process)
                    progress.finish(running.pop(process), process.returncode)
                progress.draw()
                time.sleep(POLL)
        finally:
            stop(running)

    def close(self) -> None:
        """Do nothing: no process outlives `run`."""
