"""Trainers: each improves a model in place, an epoch at a time (see `progress.Trainer`)."""

from llgae_cli.training.closed_form import ClosedForm
from llgae_cli.training.gradient import Gradient
from llgae_cli.training.levels import Levels
from llgae_cli.training.progress import EpochRecord, Trainer
from llgae_cli.training.shifts import moved_back

__all__ = ["ClosedForm", "EpochRecord", "Gradient", "Levels", "Trainer", "moved_back"]
