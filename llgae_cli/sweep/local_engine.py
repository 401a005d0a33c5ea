"""The local engine: a few processes at a time on this machine."""

import subprocess
import time

from llgae_cli.sweep.plan import Cell
from llgae_cli.sweep.process import Share, release, spawn, stop
from llgae_cli.sweep.progress import SweepProgress

POLL = 0.05  # seconds


class LocalEngine:
    """Runs `jobs` cells at a time. A cell that dies is counted as failed; the others run on."""

    def __init__(self, jobs: int, share: Share):
        self.jobs, self.share = jobs, share

    def run(self, progress: SweepProgress) -> None:
        """Run all waiting cells. On any exception, Ctrl-C included, every process is asked to save first."""
        running: dict[subprocess.Popen[bytes], Cell] = {}
        try:
            while progress.waiting or running:
                for cell in list(progress.waiting.values())[: self.jobs - len(running)]:
                    share = Share(cell.config.threads or self.share.threads, self.share.memory)
                    folder, keep_all = progress.folder.cell_folder(cell.id), cell.config.save_every > 0
                    running[spawn(folder, progress.until, keep_all, share)] = cell
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
