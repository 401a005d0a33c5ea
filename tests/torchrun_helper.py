"""Processes of a torchrun, for tests."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def torchrun(processes: int, folder: Path, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
    """A torchrun in `folder`, one thread a process; leads a session of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        [*command, *arguments], cwd=folder, env=environment, text=True, start_new_session=True, **options
    )


def child_of_rank(parent: int, rank: int) -> int:
    """The process that torchrun started for a rank."""
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            ours = f"PPid:\t{parent}\n" in (path / "status").read_text()
            if ours and f"RANK={rank}".encode() in (path / "environ").read_bytes().split(b"\0"):
                return int(path.name)
        except OSError:  # it ended meanwhile
            continue
    raise AssertionError(f"no process of rank {rank}")
