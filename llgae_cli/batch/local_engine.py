"""The local engine: worker processes on this machine, each of which does one shard after the other."""

import selectors
import subprocess
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from llgae_cli.batch.commands import Job
from llgae_cli.batch.manifest import Entry
from llgae_cli.batch.shards import Shard
from llgae_cli.batch.worker import Answer, pack_job, pack_request, read_answer
from llgae_cli.sweep.process import describe_exit, release, start, stop

TRIES = 3  # of a shard whose worker died
POLL = 0.5  # seconds

Task = tuple[Shard, Entry]


class Worker:
    """A process that runs the shards of a job, one at a time; `task` is the one that it is at.

    It loads torch as soon as it is there, before it has a job.
    """

    def __init__(self, log: Path):
        self.process: subprocess.Popen[bytes] = start(["shard-worker"], log, threads=1, answers=True)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.answers = self.process.stdout
        self.task: Task | None = None

    def give(self, job: Job, task: Task) -> None:
        """Let it begin a shard, always of the same job."""
        if self.task is None:
            self._write(pack_job(job))
        self.task = task
        self._write(pack_request(*task))

    def end(self) -> str:
        """Wait for its end, which an empty line asks for, and return how it ended in words."""
        self._write("")
        status = self.process.wait()
        release(self.process)
        return describe_exit(status)

    def _write(self, line: str) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has died, which is seen at its next answer
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()


class LocalEngine:
    """Runs shards in `jobs` worker processes. A shard whose worker dies gets a new one, TRIES in all.

    `log` gets the messages of all workers.
    """

    def __init__(self, jobs: int, log: Path):
        self.jobs, self.log = jobs, log
        self._spare = [Worker(log) for _ in range(jobs)]  # they start while the caller prepares the job

    def run(self, job: Job, tasks: Sequence[Task], finish: Callable[[Answer], None]) -> None:
        """Run all tasks; `finish` gets the answer of each. On any exception all workers are stopped first."""
        waiting, tries = deque(tasks), Counter[str]()
        workers: set[Worker] = set()
        with selectors.DefaultSelector() as ready:
            try:
                while waiting or workers:
                    while waiting and len(workers) < self.jobs:
                        worker = self._spare.pop() if self._spare else Worker(self.log)
                        workers.add(worker)
                        ready.register(worker.answers, selectors.EVENT_READ, worker)
                        worker.give(job, waiting.popleft())
                    for key, _ in ready.select(POLL):
                        worker, line = key.data, key.data.answers.readline()
                        (shard, entry), died = worker.task, not line.endswith(b"\n")
                        if waiting and not died:
                            worker.give(job, waiting.popleft())
                        else:
                            ready.unregister(worker.answers)
                            workers.remove(worker)
                            how = worker.end()
                        if not died:
                            finish(read_answer(line))
                        elif tries[shard.name] + 1 < TRIES:
                            tries[shard.name] += 1
                            waiting.appendleft((shard, entry))
                        else:
                            error = f"{shard.source}: its worker died {TRIES} times ({how}); see {self.log}"
                            finish(fail(entry, error))
            finally:
                stop(worker.process for worker in workers)

    def close(self) -> None:
        """Stop the workers that had no shard."""
        stop(worker.process for worker in self._spare)


def fail(entry: Entry, error: str) -> Answer:
    """Return the answer of a shard that failed."""
    return Answer(Entry(name=entry.name, output=entry.output, state="failed", error=error))
