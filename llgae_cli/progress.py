"""Progress of a run: counted work, and the time that the rest will take.

Work is counted in operations (multiplications and additions). A trainer says how many it expects and then reports those
that are done; it knows nothing of who is listening. Every kind of work has a pace, in seconds an operation, which is
measured while it is done. A kind that has not been measured yet is expected to have the pace of all work so far:

    seconds left = sum over the stages of (expected - done operations) * pace of the stage's kind.
"""

import html
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from llgae_cli.formatting import describe_time_left, five_digits

MEASURED = 1.0  # seconds of a kind of work from which it has a pace of its own
# Time of a row after the last epoch over that of a row in an epoch, about: to encode it (after gradients, which take
# longer), and to fit a codec, for which some CODEC_ROWS rows are used, or NETWORK_ROWS where there is a network.
ENCODING, GRADIENT_ENCODING, CODEC, CODEC_ROWS = 2.4, 0.4, 18.0, 20_000
NETWORK_CODEC, NETWORK_ROWS = 8.0, 6000
INTERVAL = 0.1  # seconds between two reports, at least


@dataclass(frozen=True)
class Progress:
    """How far a run is. `str()` of it is a line such as `34 %, about 12 s left, epoch 3 of 40: mean L2 713.00`.

    done, total         operations done, and those expected in the whole run, an estimate that may change
    what                the present stage in words, as `restart 2 of 4, move 7`
    seconds_left        estimated seconds to the end; None before any work is done
    epoch, epochs       epochs done, 0 during the initialisation, and the largest number of epochs
    train_mean_l2       mean L2 on the training samples in the last complete epoch; None before it
    validation_mean_l2  mean L2 on the validation samples after that epoch; None where it was not measured
    test_mean_l2        mean L2 on the test samples after that epoch; None where it was not measured
    """

    done: float
    total: float
    what: str
    seconds_left: float | None
    epoch: int = 0
    epochs: int = 0
    train_mean_l2: float | None = None
    validation_mean_l2: float | None = None
    test_mean_l2: float | None = None

    def __str__(self) -> str:
        """Return the progress in one line."""
        share = [f"{100 * self.done / self.total:.0f} %"] if self.total else []
        left = [describe_time_left(self.seconds_left)] if self.seconds_left and self.seconds_left >= 0.5 else []
        where = (
            [f"epoch {self.epoch} of {self.epochs}: mean L2 {five_digits(self.train_mean_l2)}"] if self.epoch else []
        )
        return ", ".join(share + left + (where or [self.what or "starting"]))

    def _repr_html_(self) -> str:
        """Return a bar and the line, for notebooks."""
        share = self.done / self.total if self.total else 0.0
        bar = f'<progress value="{share:.3f}" max="1" aria-label="training"></progress>'
        return f"{bar} {html.escape(str(self))}"


OnProgress = Callable[[Progress], None]


@dataclass
class Stage:
    """A stage of a run: its kind of work, operations expected and done, and the step it is at, in words."""

    kind: str
    total: float = 0.0
    done: float = 0.0
    what: str = ""


@dataclass
class Schedule:
    """All stages of a run.

    Calls `report` at most every INTERVAL seconds, after each epoch, and at the end; one call at a time, any thread.
    """

    report: OnProgress
    clock: Callable[[], float] = time.monotonic
    epochs: int = 0
    row: Mapping[str, float] = field(default_factory=dict)  # figures of the last complete epoch, by their names
    stages: dict[tuple[str, str], Stage] = field(default_factory=dict)
    measured: dict[str, tuple[float, float]] = field(default_factory=dict)  # of each kind: operations, seconds

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._last = self.clock()
        self._reported = -math.inf

    def expect(self, part: str, kind: str, left: float) -> None:
        """Expect so many operations of a stage from now on."""
        with self._lock:
            stage = self.stages.setdefault((part, kind), Stage(kind))
            stage.total = stage.done + left

    def forget(self) -> None:
        """Expect nothing more of any stage."""
        with self._lock:
            for stage in self.stages.values():
                stage.total = stage.done

    def end(self) -> None:
        """Report that nothing more is expected."""
        with self._lock:
            self.forget()
            self.report(self.progress())

    def complete_epoch(self, row: Mapping[str, float]) -> None:
        """Report the figures of an epoch: `epoch`, `train_mean_l2`, and those of other splits that were measured."""
        with self._lock:
            self.row = row
            self.report(self.progress())

    def advance(self, part: str, kind: str, operations: float, what: str) -> None:
        """Count operations that are done; `what` names the step for the reader."""
        with self._lock:
            now = self.clock()
            stage = self.stages.setdefault((part, kind), Stage(kind))
            stage.done += operations
            stage.total = max(stage.total, stage.done)
            stage.what = ", ".join(filter(None, (part, what)))
            done, seconds = self.measured.get(kind, (0.0, 0.0))
            self.measured[kind] = done + operations, seconds + now - self._last
            self._last = now
            if now - self._reported >= INTERVAL:
                self._reported = now
                self.report(self.progress())

    def progress(self) -> Progress:
        """Return the progress now. Of stages that run at a time, `what` is that of the first."""
        stages = self.stages.values()
        what = next((stage.what for stage in stages if 0 < stage.done < stage.total), "")
        what = what or next((stage.what for stage in reversed(stages) if stage.done), "")
        return Progress(
            sum(stage.done for stage in stages),
            sum(stage.total for stage in stages),
            what,
            self.seconds_left(),
            int(self.row.get("epoch", 0)),
            self.epochs,
            *(self.row.get(f"{split}_mean_l2") for split in ("train", "validation", "test")),
        )

    def seconds_left(self) -> float | None:
        """Return the estimated seconds to the end; None before any work is done."""
        operations = sum(done for done, _ in self.measured.values())
        if not operations:
            return None
        overall = sum(seconds for _, seconds in self.measured.values()) / operations
        left = 0.0
        for stage in self.stages.values():
            done, seconds = self.measured.get(stage.kind, (0.0, 0.0))
            pace = seconds / done if done and seconds >= MEASURED else overall
            left += pace * (stage.total - stage.done)
        return left


@dataclass(frozen=True)
class Work:
    """What a trainer reports its work to: a part of a schedule, or nobody where `schedule` is None."""

    schedule: Schedule | None = None
    part: str = ""

    def within(self, part: str) -> "Work":
        """Return a part of this work, with stages of its own; `part` as `restart 2 of 4`."""
        return Work(self.schedule, ", ".join(filter(None, (self.part, part))))

    def expect(self, kind: str, left: float) -> None:
        """Expect so many operations of one kind of work in this part from now on, in place of what was expected."""
        if self.schedule is not None:
            self.schedule.expect(self.part, kind, left)

    def expect_only(self, kind: str, left: float) -> None:
        """Expect so many operations of one kind of work, and nothing more of any other in any part."""
        if self.schedule is not None:
            self.schedule.forget()
            self.expect(kind, left)

    def advance(self, kind: str, operations: float, what: str = "") -> None:
        """Count operations of that kind that are done; `what` names the step."""
        if self.schedule is not None:
            self.schedule.advance(self.part, kind, operations, what)

    def complete_epoch(self, row: Mapping[str, float]) -> None:
        """Report the figures of an epoch, a row of the history."""
        if self.schedule is not None:
            self.schedule.complete_epoch(row)

    def end(self) -> None:
        """Report that nothing more is expected of any kind of work, in any part."""
        if self.schedule is not None:
            self.schedule.end()


NOBODY = Work()


def expect_passes(done: int, gain: float, tol: float) -> float:
    """Return the number of passes after which one gains no more than the share `tol`; the last of `done` gained `gain`.

    Gains of alternating optimisation fall about as t^(-3/2) in the number of passes t, once the first are done. (On
    Fashion-MNIST with 11 components of 20 dimensions the 23rd of 23 passes is expected as the 28th after two, as the
    20th after five and as the 24th after ten.)
    """
    if tol <= 0:
        return math.inf
    return max(done, 1) * max(1.0, gain / tol) ** (2 / 3)


def count_evaluation_steps(
    row: float, n_train: int, n_test: int, *, by_gradient: bool, affine: bool, network: bool = False
) -> dict[str, float]:
    """Return the operations of the steps after the last epoch, about, from those of a row in an epoch.

    `affine`: the model gets a codec and a density for novelty scores. `network`: it gets a codec of a network.
    """
    encoding = row * (GRADIENT_ENCODING if by_gradient else ENCODING)
    steps = {"test samples": encoding * n_test, "training samples": encoding * n_train}
    if affine:
        steps |= {"codec": CODEC * row * min(n_train, CODEC_ROWS), "novelty": 0.6 * encoding * n_train}
    elif network:
        steps["codec"] = NETWORK_CODEC * row * min(n_train, NETWORK_ROWS)
    return steps
