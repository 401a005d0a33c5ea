"""Counted work, and the time left that follows from it. The clock is a number."""

import pytest

from llgae_cli.progress import INTERVAL, NOBODY, Progress, Schedule, Work, count_evaluation_steps, expect_passes


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reports() -> list[Progress]:
    return []


@pytest.fixture
def work(clock: Clock, reports: list[Progress]) -> Work:
    return Work(Schedule(reports.append, clock))


def test_the_time_left_is_the_work_left_at_the_pace_of_its_kind(work: Work, clock: Clock) -> None:
    assert work.schedule is not None and work.schedule.seconds_left() is None
    work.expect("restarts", 100)
    work.expect("passes", 1000)
    clock.now = 2.0
    work.advance("restarts", 20)  # 0.1 s an operation, which is all that is known of passes too
    assert work.schedule.seconds_left() == pytest.approx(8 + 100)
    clock.now = 4.0
    work.advance("passes", 200)  # 0.01 s an operation
    assert work.schedule.seconds_left() == pytest.approx(8 + 8)


def test_a_part_has_stages_of_its_own_and_the_pace_of_its_kind(work: Work, clock: Clock) -> None:
    first, second = work.within("restart 1 of 2"), work.within("restart 2 of 2")
    for part in (first, second):
        part.expect("restarts", 10)
    clock.now = 5.0
    first.advance("restarts", 5, "move 3")
    assert work.schedule is not None
    assert work.schedule.progress() == Progress(5, 20, "restart 1 of 2, move 3", 15.0)
    second.advance("restarts", 1, "annealing")
    assert work.schedule.progress().what == "restart 1 of 2, move 3"  # the first that runs
    first.expect("restarts", 0)
    assert work.schedule.progress().what == "restart 2 of 2, annealing"
    assert work.schedule.progress().total == 15  # what is done stays done


def test_reports_are_not_more_frequent_than_a_reader_needs(work: Work, clock: Clock, reports: list[Progress]) -> None:
    work.expect("passes", 1000)
    for i in range(1000):
        clock.now = i * INTERVAL / 10
        work.advance("passes", 1)
    assert 90 <= len(reports) <= 102
    assert [report.done for report in reports] == sorted(report.done for report in reports)


def test_an_epoch_and_the_end_are_reported_at_once(clock: Clock, reports: list[Progress]) -> None:
    work = Work(Schedule(reports.append, clock, epochs=9))
    work.expect("passes", 10)
    clock.now = 2.0
    work.advance("passes", 4, "pass <1>")
    assert str(reports[-1]) == "40 %, about 3 s left, pass <1>" and reports[-1].train_mean_l2 is None
    assert reports[-1]._repr_html_().endswith("</progress> 40 %, about 3 s left, pass &lt;1&gt;")
    work.complete_epoch({"epoch": 1, "train_mean_l2": 713.0, "test_mean_l2": 724.0})
    last = reports[-1]
    assert (last.epoch, last.epochs, last.train_mean_l2, last.test_mean_l2) == (1, 9, 713.0, 724.0)
    assert last.validation_mean_l2 is None and str(last).endswith("epoch 1 of 9: mean L2 713.00")
    work.expect_only("evaluation", 5)
    work.end()
    assert (reports[-1].done, reports[-1].total, reports[-1].epoch) == (4, 4, 1)


def test_unexpected_work_raises_the_total(work: Work) -> None:
    work.expect("passes", 10)
    work.advance("passes", 15)
    assert work.schedule is not None
    assert (work.schedule.progress().done, work.schedule.progress().total) == (15, 15)
    NOBODY.within("x").expect("passes", 1)  # and nobody is told
    NOBODY.advance("passes", 1)


def test_passes_are_expected_from_the_fall_of_the_gain() -> None:
    assert expect_passes(5, 1e-4, 1e-4) == 5
    assert expect_passes(5, 8e-4, 1e-4) == pytest.approx(20)
    assert expect_passes(1, 1e-5, 1e-4) == 1
    assert expect_passes(3, 0.1, 0.0) == float("inf")


def test_what_follows_the_last_epoch_grows_with_the_rows() -> None:
    few, many = (count_evaluation_steps(10.0, n, 100, by_gradient=False, affine=True) for n in (1000, 2000))
    assert few["test samples"] == many["test samples"] and 2 * few["codec"] == many["codec"]
    assert few.keys() > count_evaluation_steps(10.0, 1000, 100, by_gradient=True, affine=False).keys()
