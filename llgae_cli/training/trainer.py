"""The interface that all trainers share."""

from typing import Any, NamedTuple, Protocol, TypedDict

from torch import Tensor

from llgae_cli.progress import NOBODY, Work


class EpochRecord(TypedDict, total=False):
    """Figures of one epoch: mean L2 in squared grey levels per pixel, components empty, and repaired so far."""

    train_mean_l2: float
    empty: int
    repaired: int


class Quantisation(NamedTuple):
    """What a model was trained for, at a bit rate: `step` Delta, variances of the latents (K, E), shares (K,)."""

    step: float
    variances: Tensor
    shares: Tensor


class Trainer(Protocol):
    """Improves a model in place: `initialise` or `load_state_dict` once, then `epoch` until `finished`.

    The defaults are for trainers without shortlists and without restarts that can be kept.
    """

    finished: bool
    work: Work = NOBODY

    def plan(self, work: Work, epochs: int, begun: bool) -> None:
        """Report work from now on, and expect what `initialise` (unless `begun`) and at most `epochs` epochs take."""
        self.work = work

    @property
    def row_operations(self) -> float:
        """Operations that one row takes in an epoch, about."""
        return 1.0

    @property
    def exact(self) -> bool:
        """Whether `train_mean_l2` scores all components; false where shortlists make it an upper bound."""
        return True

    def initialise(self) -> None:
        """Set the parameters of the model before the first epoch."""

    def use_best_restart(self) -> bool:
        """Set the model to the best restart of an interrupted `initialise`; return False where none is complete.

        `state_dict` then holds the complete restarts, and `initialise` after `load_state_dict` runs the others.
        """
        return False

    def epoch(self) -> EpochRecord:
        """Run one pass over the training samples and update the model."""

    @property
    def quantisation(self) -> Quantisation | None:
        """The quantiser that the model was trained for; None where no rate was given."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values from which a run resumes exactly, together with the model's own."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict`, in place of `initialise`. Raises ValueError where it does not fit."""
