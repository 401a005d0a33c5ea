"""The folder of a sweep: what is in it, who is at work in it, and files that are whole or not there.

In OUT:

    OUT/lock                     held by the sweep at work, with its process number; removed at its end
    OUT/results.csv, .json       the leaderboard
    OUT/figures/*.png
    OUT/cells/ID/lock            likewise, held by the cell's process
    OUT/cells/ID/config.yaml     the cell's resolved config
    OUT/cells/ID/log.txt         all that it said, all attempts
    OUT/cells/ID/*.pkl           its checkpoints
    OUT/cells/ID/rung-N.json     its figures after N epochs, where the sweep halves
    OUT/cells/ID/result.json     its figures: there once it is done, and never written again
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

from llgae_cli.config import Config
from llgae_cli.errors import InputError, RunError, printable
from llgae_cli.regular_files import check_own, open_for_reading
from llgae_cli.storage import Lock, check_writable, clean_temporaries, make_folder
from llgae_cli.storage.atomic import write_text
from llgae_cli.sweep.plan import Cell
from llgae_cli.sweep.results import CellFailure, CellResult, RungResult, read_record

LOG_TAIL = 8192  # bytes of a log in which its last line is looked for


@dataclass(frozen=True)
class SweepFolder:
    """A sweep's folder, OUT."""

    path: Path

    def cell(self, id: str) -> Path:
        """The folder of one cell."""
        return self.path / "cells" / id

    def holds(self) -> int:
        """How many cells were begun here."""
        return sum(1 for _ in (self.path / "cells").glob("*/config.yaml"))

    def prepare(self, cell: Cell, threads: int, save_every: int) -> Path:
        """Make the cell's folder and write its config: what decides the result as it is, the rest set by the sweep.

        Raises InputError where the folder, its log or its lock is a link, or otherwise nothing that may be written to.
        """
        folder = self.cell(cell.id)
        if folder.is_symlink():  # files of the same names, and old checkpoints, would be replaced wherever it leads
            raise InputError(
                f"{printable(folder, 300)}: a symbolic link, where a cell's own folder is expected; remove it"
            )
        make_folder(folder)
        for name in ("lock", "log.txt"):
            check_own(folder / name)
        clean_temporaries(folder)
        plain = {**cell.config.plain(), "checkpoint-dir": str(folder), "threads": threads, "save-every": save_every}
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        write_whole(folder / "config.yaml", f"# one cell of a sweep, cfg{cell.config.identity()}\n{text}")
        return folder

    def result(self, id: str, until: int | None = None) -> dict[str, Any] | None:
        """The cell's figures, or those after `until` epochs; None while there are none."""
        return read_record(self.cell(id) / result_name(until), result_model(until))

    def failure(self, id: str) -> dict[str, Any] | None:
        """`reason` and `last_line` of a cell that failed, else None."""
        return read_record(self.cell(id) / "failed.json", CellFailure)

    def fail(self, id: str, reason: str) -> dict[str, Any]:
        """Note that the cell failed."""
        failure = {"reason": reason, "last_line": last_line(self.cell(id) / "log.txt")}
        write_whole(self.cell(id) / "failed.json", json.dumps(failure, indent=2) + "\n")
        return failure

    def forgive(self, id: str) -> None:
        """Forget that the cell failed; its log keeps the story."""
        (self.cell(id) / "failed.json").unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold OUT against other sweeps; InputError names the one that has it. The system lets go at any death."""
        check_writable(self.path)
        clean_temporaries(self.path)
        with held(self.path / "lock") as holder:
            if holder is not None:
                raise InputError(f"{printable(self.path, 300)}: another sweep is at work here ({holder})")
            yield


def result_name(until: int | None) -> str:
    """The file for a cell's figures: its last ones, or those after `until` epochs."""
    return "result.json" if until is None else f"rung-{until}.json"


def result_model(until: int | None) -> type[RungResult]:
    """What stands in that file."""
    return CellResult if until is None else RungResult


def begin_save_every(config: Config) -> int:
    """Epochs between a cell's checkpoints: the config's own number, else so that a death costs 5 % at most."""
    if config.save_every:
        return config.save_every
    return max(1, config.epochs // 20) if config.trainer == "gradient" else 1


@contextmanager
def held(path: Path) -> Iterator[str | None]:
    """Try to lock a file: None inside when this process has it, else who has it (`process 123`).

    None too where the file system has no locks: better two sweeps in one folder, if anybody starts them, than none.
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
def held_when_free(path: Path, patience: float) -> Iterator[None]:
    """Lock a file, waiting up to `patience` seconds for another process to let go; RunError after that."""
    end = time.monotonic() + patience
    while True:
        with held(path) as holder:
            if holder is None:
                yield
                return
        if time.monotonic() > end:
            raise RunError(f"{printable(path.parent, 300)}: {holder} is still at work on this cell")
        time.sleep(0.1)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader, a kill or a full disk never leaves half of it under its name."""
    write_text(path, text)


def last_line(log: Path) -> str:
    """The last line of a log that is not empty."""
    try:
        with os.fdopen(open_for_reading(log), "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_TAIL))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((printable(line.strip(), 300) for line in reversed(lines) if line.strip()), "")
