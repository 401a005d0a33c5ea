"""A Ray cluster: an existing one, or one that is started on this machine and ends with the command."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterable
from typing import Any

from llgae_cli.errors import InputError, printable
from llgae_cli.sweep.process import GRACE

RETRIES = 3  # of a task whose worker or node died
POLL = 0.2  # seconds between two looks at what is done


class RayCluster:
    """A connection to the cluster at `address`, else at the environment's RAY_ADDRESS, else to one started here.

    One that is started here has so many `cpus`. Attributes: `ray`, the library; `cpus` of the whole cluster. Raises
    InputError where Ray is not installed or does not answer.
    """

    def __init__(self, address: str | None, cpus: int):
        try:
            import ray
        except ImportError:
            raise InputError("--engine ray: Ray is not installed; pip install 'llgae[ray]'") from None
        self.ray, self.cpus = ray, cpus
        self._redirected = contextlib.ExitStack()
        self._redirected.enter_context(contextlib.redirect_stdout(sys.stderr))  # Ray prints messages on stdout
        handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        where = address or os.environ.get("RAY_ADDRESS")
        # Ray runs workers at nice 15, so that tasks would starve on a shared machine. Read when a cluster starts here.
        os.environ.setdefault("RAY_worker_niceness", "0")
        started: dict[str, Any] = {} if where else {"num_cpus": cpus, "include_dashboard": False}
        try:
            ray.init(address=where or "local", log_to_driver=False, logging_level=logging.ERROR, **started)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise InputError(f"--engine ray: no cluster at {where or 'this machine'} ({printable(error)})") from None
        for signum, handler in handlers.items():  # Ray has replaced them
            signal.signal(signum, handler)
        if where:
            self.cpus = int(ray.cluster_resources().get("CPU", 1))

    def describe_loss(self, error: Exception) -> str:
        """Return in words that Ray has given up on a task."""
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = printable(lines[-1] if lines else type(error).__name__, 200)
        return f"lost by Ray after {RETRIES} retries: {reason}"

    def cancel(self, pending: Iterable[Any]) -> None:
        """Interrupt tasks and wait for their end, GRACE seconds at most."""
        refs = list(pending)
        for ref in refs:
            self.ray.cancel(ref)
        if refs:
            self.ray.wait(refs, num_returns=len(refs), timeout=GRACE)

    def close(self) -> None:
        """Disconnect from the cluster; one that was started on this machine ends."""
        self.ray.shutdown()
        self._redirected.close()
