"""The unit of a mean L2, as figures and reports write it."""

from collections.abc import Iterable

GREY_LEVELS = "grey levels² per pixel"


def error_unit(table: bool, scaled: bool) -> str:
    """Return the unit of a mean L2: of images, or of a table whose variables are scaled or not."""
    if not table:
        return GREY_LEVELS
    return "scaled units²" if scaled else "squared units of the data"


def error_unit_of_tasks(tasks: Iterable[str]) -> str:
    """Return the unit of a mean L2 where only the names of the tasks are known, as in a sweep's results."""
    own = [task for task in tasks if task == "subspaces" or (":" in task and not task.startswith("images:"))]
    return "in squared units of the task" if own else GREY_LEVELS
