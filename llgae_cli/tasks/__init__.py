"""Data sets by name: `load_task("fashion-mnist", Path("data"))` returns a Task with train and test Samples."""

from llgae_cli.tasks.registry import TASKS, load_samples, load_task
from llgae_cli.tasks.samples import Samples
from llgae_cli.tasks.subspaces import SUBSPACES_E, SUBSPACES_K, SUBSPACES_OPTIMUM
from llgae_cli.tasks.task import Task

__all__ = [
    "SUBSPACES_E",
    "SUBSPACES_K",
    "SUBSPACES_OPTIMUM",
    "TASKS",
    "Samples",
    "Task",
    "load_samples",
    "load_task",
]
