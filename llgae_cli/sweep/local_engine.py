"""The local engine: a few processes side by side on this machine."""

import subprocess
import time
from collections.abc import Sequence

from llgae_cli.sweep.folder import SweepFolder
from llgae_cli.sweep.plan import Cell
from llgae_cli.sweep.process import Share, release, spawn, stop
from llgae_cli.sweep.run import Ledger

POLL = 0.05  # seconds


class Local:
    """`jobs` cells at a time. A cell that dies is a line in the ledger and takes nobody along."""

    def __init__(self, jobs: int, share: Share):
        self.width, self.share = jobs, share

    def run(self, folder: SweepFolder, cells: Sequence[Cell], until: int | None, ledger: Ledger) -> None:
        """Run all cells. On any exception, Ctrl-C included, every process has been asked to save before it leaves."""
        waiting = list(reversed(cells))
        running: dict[subprocess.Popen[bytes], Cell] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.width:
                    cell = waiting.pop()
                    process = spawn(folder.cell(cell.id), until, cell.config.save_every > 0, self._share(cell))
                    running[process] = cell
                    ledger.begun(cell)
                for process in [process for process in running if process.poll() is not None]:
                    release(process)
                    ledger.ended(running.pop(process), process.returncode)
                ledger.tick()
                time.sleep(POLL)
        finally:
            stop(running)

    def _share(self, cell: Cell) -> Share:
        return Share(cell.config.threads or self.share.threads, self.share.memory)

    def close(self) -> None:
        """Nothing was started that is still there."""
