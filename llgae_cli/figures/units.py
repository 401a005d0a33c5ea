"""The unit of a mean L2, as figures and reports write it."""

from collections.abc import Iterable

GREY_LEVELS = "grey levels² per pixel"
OF_DATA = "squared units of the data"


def error_unit(grey: bool, scaled: bool) -> str:
    """Return the unit of a mean L2. `grey`: the samples are 8-bit images. `scaled`: their variables are scaled."""
    if scaled:
        return "scaled units²"
    return GREY_LEVELS if grey else OF_DATA


def error_unit_of_tasks(tasks: Iterable[str]) -> str:
    """Return the unit of a mean L2 where only the names of the tasks are known, as in a sweep's results.

    Data of the user may be scaled, and several tasks may have several units: that is "of the task".
    """
    names = set(tasks)
    own = {name for name in names if name == "subspaces" or (":" in name and not name.startswith("images:"))}
    if not own:
        return GREY_LEVELS
    return OF_DATA if names == {"subspaces"} else "squared units of the task"
