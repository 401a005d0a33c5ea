"""Trainers: each improves a model in place, an epoch at a time (see `trainer.Trainer`)."""

from llgae_cli.training.closed_form import ClosedForm
from llgae_cli.training.gradient import Gradient
from llgae_cli.training.rate import RateClosedForm
from llgae_cli.training.residual import ResidualClosedForm
from llgae_cli.training.shift import undo_shifts
from llgae_cli.training.trainer import EpochRecord, Quantisation, Trainer

__all__ = [
    "ClosedForm",
    "EpochRecord",
    "Gradient",
    "Quantisation",
    "RateClosedForm",
    "ResidualClosedForm",
    "Trainer",
    "undo_shifts",
]
