"""How a sweep looks while it runs: a live table on a terminal, plain lines in a log."""

import time
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from llgae_cli.cli.console import ERRORS, complain
from llgae_cli.errors import printable
from llgae_cli.formatting import five_digits

if TYPE_CHECKING:
    from llgae_cli.sweep.run import State

REDRAW = 0.25  # seconds
SHOWN_RUNNING = 12
NAMES = {"validation_mean_l2": "validation mean L2", "mean_l2": "test mean L2"}
LOWEST = {"validation_mean_l2": "best so far, by validation", "mean_l2": "lowest test mean L2 so far (no choice)"}


class Watching:
    """A sweep's watcher: done, running, failed, lowest so far and time left."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        shown = ERRORS.is_terminal and not quiet
        self.live = Live(console=ERRORS, auto_refresh=False, transient=True) if shown else None
        self.drawn = 0.0

    def __enter__(self) -> "Watching":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self.live.stop()

    def note(self, message: str) -> None:
        """Something worth a line."""
        if not self.quiet:
            ERRORS.print(Text(printable(message, 300)), soft_wrap=True)

    def complain(self, message: str) -> None:
        """Something that went wrong; shown even when quiet."""
        complain(message)

    def finished(self, label: str, result: dict[str, Any], state: "State") -> None:
        """A line for the cell, on a terminal above the table."""
        value, name = result[state.ranked_by], NAMES[state.ranked_by]
        self.note(f"{self._count(state)}  {label}: {name} {five_digits(value)}, {result['epoch']} epochs{_left(state)}")

    def failed(self, label: str, failure: dict[str, Any], state: "State") -> None:
        """A line for the failure at once; the end has them all again."""
        self.note(f"{self._count(state)}  {label}: failed, {failure['reason']}: {failure['last_line']}")

    def tick(self, state: "State") -> None:
        """Redraw the table, a few times a second."""
        if self.live is None or time.monotonic() - self.drawn < REDRAW:
            return
        self.drawn = time.monotonic()
        self.live.update(_table(state), refresh=True)

    def _count(self, state: "State") -> str:
        return f"{state.done + state.failed}/{state.total}"


def _table(state: "State") -> Table:
    waiting = state.total - state.done - state.failed - len(state.running)
    title = f"{state.done} done, {len(state.running)} running, {state.failed} failed, {waiting} waiting{_left(state)}"
    drawn = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    drawn.add_column(no_wrap=True)
    drawn.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for label, line in list(state.running.items())[:SHOWN_RUNNING]:
        drawn.add_row(Text(label, style="cyan"), Text(line))
    if state.lowest is not None:
        value, label = state.lowest
        drawn.add_row(Text(LOWEST[state.ranked_by], style="green"), Text(f"{five_digits(value)}  {label}"))
    return drawn


def _left(state: "State") -> str:
    if state.seconds_left is None or state.done + state.failed == state.total:
        return ""
    seconds = round(state.seconds_left)
    if seconds < 100:
        return f", about {seconds} s left"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f", about {hours} h {minutes} min left" if hours else f", about {minutes} min left"
