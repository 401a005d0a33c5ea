"""What a trainer tells the experiment, and the shape that all trainers share."""

from typing import Any, Protocol, TypedDict


class EpochRecord(TypedDict, total=False):
    """One epoch's figures. `train_mean_l2`: squared grey levels per pixel."""

    train_mean_l2: float
    empty: int
    repaired: int


class Trainer(Protocol):
    """A trainer improves a model in place, an epoch (a pass over the samples) at a time."""

    finished: bool

    @property
    def exact(self) -> bool:
        """Whether an epoch's `train_mean_l2` is the model's own, and not an upper bound from shortlists."""

    def start(self) -> None:
        """Bring the model to its state before the first epoch."""

    def keep_start(self) -> bool:
        """Put the best start found so far into the model, of a `start` that was interrupted; False where none is done.

        `state_dict` then holds what is done, and `start` goes on from there.
        """

    def epoch(self) -> EpochRecord:
        """One pass; the model is better for it."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which an exact continuation is possible."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`, instead of `start`."""
