"""Helpers of the sweep's tests. Run as a program, it runs one sweep: the parent that tests kill."""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from llgae_cli.storage.atomic import write_atomically
from llgae_cli.sweep import Leaderboard, SweepFolder, read_plan, run_sweep
from llgae_cli.sweep.local_engine import LocalEngine
from llgae_cli.sweep.process import Share

RATE = {"bits_float": 9.0, "bits_k": 1.0, "bits_coded": 3.0, "mean_l2_coded": 8.0, "step": 0.5}
VARYING = ("seconds", "threads", "data_dir", "checkpoint_dir", "checkpoint")  # from run to run


def write_sweep_file(path: Path, **sections: Any) -> Path:
    """Write a sweep file; its base is small, quick and offline unless the sections say otherwise."""
    base = sections.get("base", {})
    quick = {} if base.get("trainer") == "gradient" else {"restarts": 1, "moves": 0}
    sections["base"] = {"task": "subspaces", **quick, **base}
    path.write_text(yaml.safe_dump(sections))
    return path


def write_record(path: Path, validation: float | None, **figures: Any) -> None:
    """Write a cell's result as the process of a cell does."""
    figures = {"checkpoint": "S1.pkl", "validation_mean_l2": validation, "seconds": 0.25, "threads": 1, **figures}
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps({"train_mean_l2": 1.0, "epoch": 3, "mean_l2": 2.0, **figures}))


def run(file: Path, out: Path, *, jobs: int = 2, memory: float | None = None, **options: Any) -> Leaderboard:
    """Run the sweep, `jobs` cells at a time with one thread each."""
    return run_sweep(read_plan(file), SweepFolder(out), LocalEngine(jobs, Share(1, memory)), **options)


def read_rows(out: Path) -> list[dict[str, Any]]:
    """Return the rows of results.json without what varies from run to run; of the checkpoint, its name."""
    rows = json.loads((out / "results.json").read_text())["rows"]
    return [
        {key: value for key, value in row.items() if key not in VARYING} | {"name": Path(row["checkpoint"]).name}
        for row in rows
    ]


def cell_processes(out: Path) -> list[int]:
    """Return the processes that hold a cell's lock, or held it when they were killed."""
    texts = [path.read_text().split() for path in out.glob("cells/*/lock")]
    return [int(words[0]) for words in texts if words]


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), resume=True)
