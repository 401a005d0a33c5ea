"""`llgae shard-worker`: a process that a command over shards starts on this machine."""

from queue import SimpleQueue

from llgae_cli.cli.console import write_stdout


def shard_worker() -> None:
    """Run `llgae shard-worker`; `app` has its help."""
    from llgae_cli.sweep.process import follow_parent

    lines: SimpleQueue[bytes] = SimpleQueue()
    follow_parent(lines.put)
    from llgae_cli.batch.worker import serve

    serve(lines, lambda answer: write_stdout(answer + "\n"))
