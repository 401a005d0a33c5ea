"""The progress of a training: a bar on a terminal, and a line every few seconds in a log."""

import logging
import threading
import time
from contextlib import nullcontext

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from llgae_cli.cli.console import ERRORS
from llgae_cli.errors import printable
from llgae_cli.formatting import describe_time_left, five_digits
from llgae_cli.interrupts import postpone
from llgae_cli.progress import Progress as Done

LOG_EVERY = 3.0  # seconds between lines of a log
FIRST_EPOCHS = 5  # epochs that each have a line, however short they are
REDRAWS = 4  # a second
_FIGURES = {"train_mean_l2": "train", "validation_mean_l2": "validation", "test_mean_l2": "test"}


class TrainingProgress:
    """Shows what a training has done, and when it will end; nothing where messages are not shown.

    On a terminal it is a bar, and messages of the package stand above it. In a log there is a line for each of the
    first epochs, and then one every LOG_EVERY seconds.
    """

    def __init__(self) -> None:
        self.shown = logging.getLogger("llgae_cli").isEnabledFor(logging.INFO)
        self.began = self.written = time.monotonic()
        self.epochs_shown, self.pending, self.figures = 0, "", ""
        self.last: tuple[Done, float] | None = None  # the last report, and when it came
        self.bar: Progress | None = None
        if ERRORS.is_terminal and self.shown:
            self.bar = Progress(
                TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
                BarColumn(bar_width=12),
                _Times(self),
                console=ERRORS,
                refresh_per_second=REDRAWS,
                transient=True,
                expand=True,
            )
            self.task = self.bar.add_task("loading", total=None)

    def __enter__(self) -> "TrainingProgress":
        if self.bar:
            self.bar.start()
        return self

    @postpone()
    def __exit__(self, *exception: object) -> None:
        if self.bar:
            self.bar.stop()
        elif self.pending:
            self._write(self.pending)

    def show(self, done: Done) -> None:
        """Show the progress: `on_progress` of `experiment.train`, called from any thread."""
        # Interrupts reach the main thread only, and must not leave it with a lock of rich.
        with postpone() if threading.current_thread() is threading.main_thread() else nullcontext():
            self.last = done, time.monotonic()
            if self.bar:
                text = f"{done.what}{self.figures}"
                self.bar.update(self.task, completed=done.done, total=done.total, description=printable(text, 200))
            elif self._due():
                self._write(self.pending or f"{done.what or 'starting'}  {self._elapsed()}{self.describe_left()}")

    @postpone()
    def show_epoch(self, record: dict[str, float], epochs: int) -> None:
        """Show an epoch's figures: `on_epoch` of `experiment.train`."""
        figures = [f"{label} {five_digits(record[key])}" for key, label in _FIGURES.items() if key in record]
        figures += [f"{record[key]:.0f} {key}" for key in ("empty", "repaired") if record.get(key)]
        self.figures = f", mean L2 {', '.join(figures)}"
        self.epochs_shown += 1
        line = f"epoch {record['epoch']:.0f}/{epochs}  {self.figures[2:]}  {record['seconds']:.1f} s"
        self.pending = line
        if self.shown and not self.bar and (self.epochs_shown <= FIRST_EPOCHS or self._due()):
            self._write(f"{line}{self.describe_left()}")

    def describe_left(self) -> str:
        """Return words such as `, about 5 s left`; nothing while the time is unknown, or over."""
        if self.last is None or self.last[0].seconds_left is None:
            return ""
        left = self.last[0].seconds_left - (time.monotonic() - self.last[1])
        return f", {describe_time_left(left)}" if left >= 0.5 else ""

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self.began:.1f} s"

    def _due(self) -> bool:
        return self.shown and time.monotonic() - self.written >= LOG_EVERY

    def _write(self, line: str) -> None:
        self.written, self.pending = time.monotonic(), ""
        if self.shown:
            ERRORS.print(Text(printable(line, 300)), soft_wrap=True)


class _Times(ProgressColumn):
    """Share of the work, time since the beginning and time left."""

    def __init__(self, progress: TrainingProgress) -> None:
        super().__init__(Column(no_wrap=True))
        self.progress = progress

    def render(self, task: Task) -> Text:
        share = f"{100 * task.completed / task.total:.0f} %, " if task.total else ""
        elapsed = time.monotonic() - self.progress.began
        return Text(f"{share}{elapsed:.0f} s{self.progress.describe_left()}")
