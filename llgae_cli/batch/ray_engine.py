"""The Ray engine: shards as tasks of a Ray cluster. Every node must see all files under the same paths."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from llgae_cli.batch.commands import Job
from llgae_cli.batch.local_engine import Task, fail
from llgae_cli.batch.worker import Answer, pack_job, pack_request, read_answer, run_packed
from llgae_cli.sweep.ray_cluster import POLL, RETRIES, RayCluster

IN_FLIGHT = 4  # tasks for each CPU that Ray knows of; more would only take memory


class RayEngine:
    """Runs shards as Ray tasks of one CPU. Ray runs one again, elsewhere, whose worker or node died.

    `address` and errors as of `RayCluster`; a cluster that is started here has CPUs for `jobs` shards at a time.
    """

    def __init__(self, address: str | None, jobs: int):
        self.cluster = RayCluster(address, jobs)
        self.jobs = self.cluster.cpus

    def run(self, job: Job, tasks: Sequence[Task], finish: Callable[[Answer], None]) -> None:
        """Run all tasks; `finish` gets the answer of each. On any exception all running tasks are cancelled first."""
        ray = self.cluster.ray
        remote = ray.remote(run_packed).options(num_cpus=1, max_retries=RETRIES)
        packed = ray.put(pack_job(job))
        waiting, pending = deque(tasks), dict[Any, Task]()
        try:
            while waiting or pending:
                while waiting and len(pending) < IN_FLIGHT * self.jobs:
                    task = waiting.popleft()
                    pending[remote.remote(packed, pack_request(*task))] = task
                for ref in ray.wait(list(pending), timeout=POLL)[0]:
                    shard, entry = pending.pop(ref)
                    try:
                        finish(read_answer(ray.get(ref)))
                    except ray.exceptions.RayError as error:
                        finish(fail(entry, f"{shard.source}: {self.cluster.describe_loss(error)}"))
        finally:
            self.cluster.cancel(pending)

    def close(self) -> None:
        """Disconnect from the cluster; one that was started on this machine ends."""
        self.cluster.close()
