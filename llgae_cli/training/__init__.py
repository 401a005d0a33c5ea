"""Trainers: each improves a model in place, an epoch at a time (see `progress.Trainer`)."""

from llgae_cli.training.closed_form import ClosedForm
from llgae_cli.training.gradient import Gradient
from llgae_cli.training.residual import Levels
from llgae_cli.training.shift import moved_back
from llgae_cli.training.trainer import EpochRecord, Trainer

__all__ = ["ClosedForm", "EpochRecord", "Gradient", "Levels", "Trainer", "moved_back"]
