"""Data sets by name: `load_task("fashion-mnist", Path("data"))` returns a Task with train and test Samples."""

from llgae_cli.tasks.parts import Part, list_positions, locate, take_part
from llgae_cli.tasks.registry import TASKS, is_one_file, load_samples, load_task, load_whole
from llgae_cli.tasks.samples import Samples
from llgae_cli.tasks.subspaces import SUBSPACES_E, SUBSPACES_K, SUBSPACES_OPTIMUM
from llgae_cli.tasks.table_options import TableOptions
from llgae_cli.tasks.task import Task, draw_rows

__all__ = [
    "SUBSPACES_E",
    "SUBSPACES_K",
    "SUBSPACES_OPTIMUM",
    "TASKS",
    "Part",
    "Samples",
    "TableOptions",
    "Task",
    "draw_rows",
    "is_one_file",
    "list_positions",
    "load_samples",
    "load_task",
    "load_whole",
    "locate",
    "take_part",
]
