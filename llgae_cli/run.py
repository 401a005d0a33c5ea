"""A training in progress, and the state of it that a checkpoint holds."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from llgae_cli.config import Config
from llgae_cli.models import Model
from llgae_cli.progress import NOBODY, Work
from llgae_cli.storage import Checkpoint, RunFolder
from llgae_cli.tasks import Samples, Task
from llgae_cli.training import Trainer


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


def describe_rows(samples: Samples) -> dict[str, Any]:
    """Return what a checkpoint says of how rows are prepared: names of columns, centring and scaling."""
    columns = {} if samples.names is None else {"columns": list(samples.names)}
    scaling = {} if samples.scaling is None else {"scaling": samples.scaling.plain()}
    return {**columns, "centring": samples.centring, **scaling}
