"""Shards, a model for them, and an engine in this process."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pictured  # tests/pictured.py

from llgae_cli.batch.commands import COMMANDS, Job
from llgae_cli.batch.local_engine import Task
from llgae_cli.batch.run import Outcome, run_shards
from llgae_cli.batch.shards import find_compressed_shards, find_data_shards
from llgae_cli.batch.worker import Answer, begin, run_shard

D = 12


def make_shards(folder: Path, shards: int, rows: int = 60) -> Path:
    """Write part-00.npy, part-01.npy, ... of uneven lengths, bytes about three points, and return their folder."""
    folder.mkdir()
    draw = np.random.default_rng(5)
    base = draw.integers(40, 200, (3, D))
    for i in range(shards):
        x = base[draw.integers(0, 3, rows + i % 7)] + draw.normal(0, 15, (rows + i % 7, D))
        np.save(folder / f"part-{i:02d}.npy", np.clip(x, 0, 255).astype(np.uint8))
    return folder


def train(folder: Path, shards: Path) -> Path:
    """Return the checkpoint of a small model of the rows of shards."""
    return pictured.train(folder, task=f"npy:{shards}", K=3, embed_dim=2)


def read_results(folder: Path, suffix: str) -> dict[str, bytes]:
    """Return the contents of all results in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.glob(f"*{suffix}")}


class Inline:
    """Runs shards in this process, backwards where asked."""

    jobs = 1

    def __init__(self, backwards: bool = False):
        self.backwards = backwards

    def run(self, job: Job, tasks: Sequence[Task], finish: Callable[[Answer], None]) -> None:
        work = begin(job)
        for shard, entry in reversed(tasks) if self.backwards else tasks:
            finish(run_shard(work, shard, entry))

    def close(self) -> None:
        pass


def run_inline(
    command: str,
    checkpoint: Path | None,
    data: Path | str,
    out: Path,
    engine: Any = None,
    resume: bool = False,
    **options: Any,
) -> Outcome:
    """Run a command over the shards in a folder of .npy files, or of a task, in this process."""
    job = Job(command, checkpoint and str(checkpoint), None, os.getcwd(), options)
    find = find_compressed_shards if command == "decompress" else find_data_shards
    task = str(data) if command == "decompress" or isinstance(data, str) else f"npy:{data}"
    source, shards = find(task, COMMANDS[command].suffix, out)
    return run_shards(job, source, shards, out, lambda: engine or Inline(), resume=resume)
