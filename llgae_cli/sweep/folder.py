"""The folder of a sweep, OUT: its files, the locks of the processes that work in it, and what its cells left.

OUT/lock                     held by the running sweep, with its process number; removed at its end
OUT/results.csv, .json       the leaderboard
OUT/figures/*.png
OUT/cells/ID/lock            likewise, held by the cell's process
OUT/cells/ID/config.yaml     the cell's resolved config
OUT/cells/ID/log.txt         the output of its process, of all attempts
OUT/cells/ID/*.pkl           its checkpoints
OUT/cells/ID/rung-N.json     its figures after N epochs, where the sweep halves
OUT/cells/ID/stopped.json    of a search: its figures at the rung where halving stopped it
OUT/cells/ID/result.json     its figures: written once, when the cell is done
OUT/cells/ID/failed.json     why it failed
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llgae_cli.errors import InputError, RunError, printable
from llgae_cli.regular_files import check_own, open_for_reading
from llgae_cli.storage import Lock, check_writable, clean_temporaries, make_folder
from llgae_cli.storage.atomic import write_text
from llgae_cli.sweep.plan import Cell
from llgae_cli.sweep.results import CellFailure, CellResult, RungResult, read_record

LOG_TAIL = 8192  # bytes at the end of a log that are searched for its last line


@dataclass(frozen=True)
class SweepFolder:
    """A sweep's folder, OUT."""

    path: Path

    def cell_folder(self, id: str) -> Path:
        """Return the folder of one cell."""
        return self.path / "cells" / id

    def count_cells(self) -> int:
        """Return how many cells have a folder here."""
        return sum(1 for _ in (self.path / "cells").glob("*/config.yaml"))

    def prepare(self, cell: Cell, threads: int) -> Path:
        """Make the cell's folder and write its config, in which the sweep sets where and how the cell is run.

        Where the config does not set them, the cell gets `threads`, and checkpoints so often that a crash costs at most
        5 % of its epochs. Raises InputError where the folder, its log or its lock is a link, or anything
        else that may not be written to.
        """
        folder = self.cell_folder(cell.id)
        if folder.is_symlink():  # files would be replaced, and checkpoints removed, in another folder
            raise InputError(f"{printable(folder, 300)}: a symbolic link, not a folder of the cell's own; remove it")
        make_folder(folder)
        for name in ("lock", "log.txt"):
            check_own(folder / name)
        clean_temporaries(folder)
        config = cell.config
        save_every = config.save_every or (max(1, config.epochs // 20) if config.trainer == "gradient" else 1)
        set_here = {"checkpoint-dir": str(folder), "threads": config.threads or threads, "save-every": save_every}
        plain = {**config.plain(), **set_here}
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        write_text(folder / "config.yaml", f"# one cell of a sweep, cfg{config.identity()}\n{text}")
        return folder

    def read_result(self, id: str, until: int | None = None) -> dict[str, Any] | None:
        """Return the cell's figures, or those after `until` epochs; None while there are none."""
        return read_record(self.cell_folder(id) / result_name(until), result_model(until))

    def read_stopped(self, id: str) -> dict[str, Any] | None:
        """Return the figures of a trial that halving has stopped, else None."""
        return read_record(self.cell_folder(id) / "stopped.json", RungResult)

    def write_stopped(self, id: str, result: dict[str, Any]) -> None:
        """Record that halving has stopped a trial, with these figures."""
        write_text(self.cell_folder(id) / "stopped.json", json.dumps(result, indent=2) + "\n")

    def read_end(self, id: str) -> dict[str, Any] | None:
        """Return the figures of a cell that is done, or of a trial that halving has stopped; else None."""
        return self.read_result(id) or self.read_stopped(id)

    def read_failure(self, id: str) -> dict[str, Any] | None:
        """Return `reason` and `last_line` of a cell that failed, else None."""
        return read_record(self.cell_folder(id) / "failed.json", CellFailure)

    def write_failure(self, id: str, reason: str) -> dict[str, Any]:
        """Record that the cell failed, and return the record."""
        failure = {"reason": reason, "last_line": last_line(self.cell_folder(id) / "log.txt")}
        write_text(self.cell_folder(id) / "failed.json", json.dumps(failure, indent=2) + "\n")
        return failure

    def remove_failure(self, id: str) -> None:
        """Remove the record of the cell's failure, so that it runs again. Its log stays."""
        (self.cell_folder(id) / "failed.json").unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock OUT against other sweeps; InputError names the process that has it. Any end of the process unlocks."""
        check_writable(self.path)
        clean_temporaries(self.path)
        with try_lock(self.path / "lock") as holder:
            if holder is not None:
                raise InputError(f"{printable(self.path, 300)}: another sweep is at work here ({holder})")
            yield


def result_name(until: int | None) -> str:
    """Return the name of the file with a cell's figures: the last ones, or those after `until` epochs."""
    return "result.json" if until is None else f"rung-{until}.json"


def result_model(until: int | None) -> type[RungResult]:
    """Return the schema of that file."""
    return CellResult if until is None else RungResult


@contextmanager
def try_lock(path: Path) -> Iterator[str | None]:
    """Try to lock a file: the block gets None where this process has the lock, else its holder (`process 123`).

    None as well where the file system has no locks: it is the user who then must not start two sweeps in one folder.
    """
    lock = Lock(path)
    if not lock.attempt():
        yield lock.holder
        return
    try:
        yield None
    finally:
        lock.release()


@contextmanager
def wait_for_lock(path: Path, patience: float) -> Iterator[None]:
    """Lock a file, waiting up to `patience` seconds for another process to release it; RunError after that."""
    end = time.monotonic() + patience
    while True:
        with try_lock(path) as holder:
            if holder is None:
                yield
                return
        if time.monotonic() > end:
            raise RunError(f"{printable(path.parent, 300)}: {holder} is still working on this cell")
        time.sleep(0.1)


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty."""
    try:
        with os.fdopen(open_for_reading(log), "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_TAIL))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((printable(line.strip(), 300) for line in reversed(lines) if line.strip()), "")
