"""What the sweep's tests share. Run as a program, it conducts one sweep: the parent that tests kill."""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from llgae_cli.sweep import Board, SweepFolder, read_plan, run_sweep
from llgae_cli.sweep.local_engine import Local
from llgae_cli.sweep.process import Share

TIMES = ("seconds", "threads", "data_dir", "checkpoint_dir", "checkpoint")


class Silent:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.ends: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def finished(self, label: str, result: dict[str, Any], state: Any) -> None:
        self.ends.append(label)

    def failed(self, label: str, failure: dict[str, Any], state: Any) -> None:
        self.ends.append(f"{label} failed")

    def tick(self, state: Any) -> None:
        pass


def written(path: Path, **sections: Any) -> Path:
    """A sweep file; the base is small, quick and offline unless told otherwise."""
    base = sections.get("base", {})
    quick = {} if base.get("trainer") == "gradient" else {"restarts": 1, "moves": 0}
    sections["base"] = {"task": "subspaces", **quick, **base}
    path.write_text(yaml.safe_dump(sections))
    return path


def swept(file: Path, out: Path, *, memory: float | None = None, watcher: Any = None, **options: Any) -> Board:
    """Conduct the sweep with two workers of one thread."""
    return run_sweep(read_plan(file), SweepFolder(out), Local(2, Share(1, memory)), watcher or Silent(), **options)


def lasting(out: Path) -> list[dict[str, Any]]:
    """The rows of results.json without what differs from run to run; of the checkpoint, its name."""
    rows = json.loads((out / "results.json").read_text())["rows"]
    return [
        {key: value for key, value in row.items() if key not in TIMES} | {"name": Path(row["checkpoint"]).name}
        for row in rows
    ]


def cell_processes(out: Path) -> list[int]:
    """The processes that hold a cell's lock, or held it when they were killed."""
    texts = [path.read_text().split() for path in out.glob("cells/*/lock")]
    return [int(words[0]) for words in texts if words]


if __name__ == "__main__":
    swept(Path(sys.argv[1]), Path(sys.argv[2]), resume=True)
