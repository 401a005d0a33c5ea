"""What a training shows while it runs, in a log."""

import logging
import time

import pytest

from llgae_cli.cli.console import set_up_logging
from llgae_cli.cli.training_progress import FIRST_EPOCHS, LOG_EVERY, TrainingProgress
from llgae_cli.progress import Progress

RECORD = {"epoch": 1.0, "seconds": 2.0, "train_mean_l2": 713.0}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    set_up_logging()
    return now


def test_a_log_has_a_line_every_few_seconds_with_the_time_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with TrainingProgress() as progress:
        for i in range(101):
            clock[0] = i / 10
            progress.show(Progress(i, 200, "restart 1 of 4, move 2", 20 - i / 10))
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 10 / LOG_EVERY + 1
    assert lines[0] == "restart 1 of 4, move 2  3.0 s, about 17 s left"


def test_short_epochs_do_not_fill_a_log_and_the_last_one_is_shown(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with TrainingProgress() as progress:
        for i in range(1, 1001):
            clock[0] = i / 1000
            progress.show_epoch({**RECORD, "epoch": i}, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == FIRST_EPOCHS + 1
    assert lines[0] == "epoch 1/1000  mean L2 train 713.00  2.0 s" and lines[-1].startswith("epoch 1000/1000  ")


def test_nothing_is_shown_where_messages_are_not(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(quiet=True)
    with TrainingProgress() as progress:
        clock[0] = 100.0
        progress.show(Progress(1, 2, "pass 1", 100.0))
        progress.show_epoch(RECORD, 2)
    set_up_logging()
    assert capsys.readouterr().err == "" and logging.getLogger("llgae_cli").isEnabledFor(logging.INFO)
