"""A training in progress, the state of it that a checkpoint holds, and its lock."""

import copy
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from llgae_cli import distributed
from llgae_cli.config import Config
from llgae_cli.errors import InputError, printable
from llgae_cli.models import Model
from llgae_cli.progress import NOBODY, Work
from llgae_cli.storage import Checkpoint, Lock, RunFolder
from llgae_cli.tasks import Samples, Task
from llgae_cli.training import Trainer

LOCK_POLL = 0.3  # seconds between attempts; the first refusal may be `clean_locks` of another process holding the lock

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """State of a run after a complete epoch, in tensors of its own: what its checkpoint holds."""

    history: list[dict[str, float]]
    seconds: float
    state: dict[str, Tensor]
    trainer_state: dict[str, Any]

    @property
    def epoch(self) -> int:
        """Epochs done; 0 while only initialisations are."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    @property
    def test_mean_l2(self) -> float | None:
        """Test mean L2 after the last epoch, None where it was not measured."""
        return self.history[-1].get("test_mean_l2") if self.history else None


@dataclass
class Run:
    """A training in progress. `fitted` are those of the training samples `train` that the trainer gets."""

    config: Config
    task: Task
    train: Samples
    fitted: Samples
    validation: Samples | None
    model: Model
    trainer: Trainer
    folder: RunFolder
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    snapshot: Snapshot | None = None  # None until something is worth saving
    work: Work = NOBODY
    checkpoint: Checkpoint | None = None  # the last one written or resumed from
    saves: bool = field(default_factory=lambda: distributed.rank() == 0)  # whether this process writes checkpoints

    @property
    def done(self) -> int:
        """Epochs done."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    @property
    def finished(self) -> bool:
        """Whether no epoch is left to do."""
        return self.done >= self.config.epochs or self.trainer.finished


def take_snapshot(run: Run) -> Snapshot:
    """Copy the present state."""
    state = {name: tensor.detach().clone() for name, tensor in run.model.state_dict().items()}
    return Snapshot(list(run.history), run.seconds, state, copy.deepcopy(run.trainer.state_dict()))


@contextmanager
def timed(run: Run) -> Iterator[None]:
    """Add the time that the block takes to the run's seconds."""
    began = time.perf_counter()
    try:
        yield
    finally:
        run.seconds += time.perf_counter() - began


def acquire(lock: Lock, patience: float) -> None:
    """Take the lock of a config, waiting up to `patience` seconds for another run to end; InputError after that.

    Only rank 0 takes it. The others take part in the exchange, because a process that is silent for minutes counts as
    dead.
    """
    began, announced = time.monotonic(), False
    while not distributed.any_process(distributed.rank() == 0 and lock.attempt()):
        waited = time.monotonic() - began
        if distributed.any_process(waited > max(patience, LOCK_POLL)):
            who = lock.holder or "another process"
            raise InputError(
                f"{printable(lock.path.parent, 300)}: {who} is already training this config ({lock.subject}) here; "
                "wait for its end with --wait, or choose another checkpoint-dir or seed"
            )
        if waited > LOCK_POLL and not announced:
            logger.info("waiting for %s, which is training this config (%s) here", lock.holder, lock.subject)
            announced = True
        time.sleep(LOCK_POLL)
    if not lock.supported:
        logger.info("this folder's file system has no locks: do not start a second run of this config here")
