"""One shard after the other, in a process of its own: what both engines run."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue

import torch

from llgae_cli import interrupts
from llgae_cli.batch.commands import COMMANDS, Job, Work
from llgae_cli.batch.manifest import Entry, hash_file
from llgae_cli.batch.shards import Shard
from llgae_cli.errors import LlgaeError, explain


@dataclass(frozen=True)
class Answer:
    """The new entry of a shard, and whether its command was run."""

    entry: Entry
    ran: bool = True


def run_shard(work: Work, shard: Shard, entry: Entry) -> Answer:
    """Run a command on a shard and return its new entry: done, or failed where the shard or its disk is at fault.

    Where the entry says that the shard is done, and the shard and its result are still what they were, nothing is run.
    """
    source, output = Path(shard.source), Path(shard.output)
    fresh = Entry(name=entry.name, output=entry.output)
    try:
        status = source.stat()
        fresh.size, fresh.modified = status.st_size, status.st_mtime_ns
        unchanged = (fresh.size, fresh.modified) == (entry.size, entry.modified)
        if entry.state == "done" and unchanged and output.is_file() and hash_file(output) == entry.sha256:
            return Answer(entry, ran=False)
        figures = work(shard)
        fresh.rows = int(figures.pop("rows") or 0)
        fresh.figures = figures
        fresh.bytes, fresh.sha256 = output.stat().st_size, hash_file(output)
        fresh.state = "done"
    except (LlgaeError, OSError, MemoryError) as error:
        fresh.state = "failed"
        fresh.error = str(error) if isinstance(error, LlgaeError) else f"{shard.source}: {explain(error)}"
    return Answer(fresh)


def begin(job: Job) -> Work:
    """Begin a job's command, with one thread: results then do not depend on how many there are."""
    torch.set_num_threads(1)
    with suppress(OSError):  # on another machine it may not exist
        os.chdir(job.working)
    return COMMANDS[job.command].begin(job)


@lru_cache(1)
def _begin_packed(job: str) -> Work:
    return begin(Job(**json.loads(job)))


def run_packed(job: str, request: str) -> str:
    """Run a shard, with all arguments and the result as JSON. The command is begun once in each process."""
    told = json.loads(request)
    answer = run_shard(_begin_packed(job), Shard(**told["shard"]), Entry(**told["entry"]))
    return json.dumps({"entry": answer.entry.model_dump(), "ran": answer.ran})


def pack_job(job: Job) -> str:
    """Return a job as a line of JSON."""
    return json.dumps(asdict(job))


def pack_request(shard: Shard, entry: Entry) -> str:
    """Return a shard and its entry as a line of JSON, for `run_packed`."""
    return json.dumps({"shard": asdict(shard), "entry": entry.model_dump()})


def serve(lines: "SimpleQueue[bytes]", answer: Callable[[str], None]) -> None:
    """Run the shards that arrive as lines, after a first one with the job, until an empty line."""
    interrupts.check()  # a signal during the import of torch
    job = lines.get().decode()
    while request := lines.get().decode().strip():
        answer(run_packed(job, request))
        interrupts.check()


def read_answer(line: bytes | str) -> Answer:
    """Return the answer of `run_packed`."""
    told = json.loads(line)
    return Answer(Entry(**told["entry"]), told["ran"])
