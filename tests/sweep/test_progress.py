"""The time that a cell is expected to take, from those that are done."""

import pytest

from llgae_cli.sweep.progress import expect_seconds


def test_a_cell_is_expected_to_take_as_long_as_those_of_like_size() -> None:
    timed = [(1.0, 4.0), (100.0, 50.0)]  # the small cell takes long for its work: it also has to start
    assert expect_seconds(1.0, timed) == pytest.approx(4.0, rel=0.01)
    assert expect_seconds(100.0, timed) == pytest.approx(50.0, rel=0.01)
    assert 5.0 < expect_seconds(10.0, timed) < 40.0
    assert expect_seconds(7.0, [(2.0, 3.0)]) == pytest.approx(10.5)
