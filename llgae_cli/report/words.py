"""What samples are called on a page: images or rows of a table, and the unit of their errors."""

from collections.abc import Sequence
from dataclasses import dataclass

from llgae_cli.evaluation import Evaluated
from llgae_cli.figures.table.album import find_error_unit, is_table
from llgae_cli.figures.units import GREY_LEVELS, error_unit_of_tasks
from llgae_cli.sweep import Leaderboard


@dataclass(frozen=True)
class Words:
    """Words for the samples of a page.

    many   heading of a list of test samples
    one    a single one, within a sentence
    rows   several, within a sentence
    mean   what mu_k is
    unit   of a mean L2
    """

    many: str
    one: str
    rows: str
    mean: str
    unit: str


def choose_words(checkpoints: Sequence[Evaluated]) -> Words:
    """Return the words for these checkpoints: those for images where one of them has images, or where there is none."""
    units = {find_error_unit(one) for one in checkpoints} or {GREY_LEVELS}
    unit = units.pop() if len(units) == 1 else "squared units of each data set"
    if checkpoints and all(map(is_table, checkpoints)):
        return Words("Test rows", "test row", "test rows", "mean", unit)
    return Words("Test images", "test image", "test samples", "mean image", unit)


def find_board_unit(board: Leaderboard, checkpoints: Sequence[Evaluated]) -> str:
    """Return the unit of a leaderboard's mean L2: of its checkpoints, else by its tasks; "" if neither is known."""
    tasks = {str(row["task"]) for row in board.rows if row.get("task")}
    if checkpoints and len(tasks) < 2:
        return choose_words(checkpoints).unit
    return error_unit_of_tasks(tasks) if tasks else ""
