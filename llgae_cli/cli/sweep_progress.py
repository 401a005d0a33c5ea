"""The live table of a sweep on a terminal. In a log, the sweep's messages have to do."""

import logging
import time

from rich.live import Live
from rich.table import Table
from rich.text import Text

from llgae_cli.cli.console import ERRORS
from llgae_cli.formatting import five_digits
from llgae_cli.sweep import SweepProgress

REDRAW = 0.25  # seconds
MAX_RUNNING = 12  # running cells in the table
BEST = {"validation_mean_l2": "best so far, by validation", "mean_l2": "lowest test mean L2 so far (no choice)"}


class LiveTable:
    """Shows a sweep's progress while it runs; nothing where stderr is no terminal or messages are off."""

    def __init__(self) -> None:
        shown = ERRORS.is_terminal and logging.getLogger("llgae_cli").isEnabledFor(logging.INFO)
        self.live = Live(console=ERRORS, auto_refresh=False, transient=True) if shown else None
        self.drawn = 0.0

    def __enter__(self) -> "LiveTable":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self.live.stop()

    def draw(self, progress: SweepProgress) -> None:
        """Draw the table again, at most every REDRAW seconds."""
        if self.live is None or time.monotonic() - self.drawn < REDRAW:
            return
        self.drawn = time.monotonic()
        self.live.update(make_table(progress, self.live.console.width), refresh=True)


def make_table(progress: SweepProgress, width: int) -> Table:
    """Return the table: numbers of cells, the last line of each running one's log, and the best so far.

    width   columns of the terminal; lines of logs are cut before names of cells, which get up to half of it
    """
    running = len(progress.running)
    waiting = progress.total - progress.done - progress.failed - running
    title = f"{progress.done} done, {running} running, {progress.failed} failed, {waiting} waiting"
    table = Table(title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    table.title = title + progress.describe_time_left()
    rows = [
        (Text(label, style="cyan"), Text(line)) for label, line in list(progress.last_lines().items())[:MAX_RUNNING]
    ]
    if progress.best is not None:
        value, label = progress.best
        rows.append((Text(BEST[progress.plan.ranked_by], style="green"), Text(f"{five_digits(value)}  {label}")))
    longest = max((len(label) for label, _ in rows), default=0)
    table.add_column(no_wrap=True, min_width=min(longest, width // 2))
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows:
        table.add_row(*row)
    return table
