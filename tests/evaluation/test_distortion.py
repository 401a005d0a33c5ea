"""Errors of decoded rows, and rows that break their bound."""

import numpy as np
import pytest

from llgae_cli.errors import RunError
from llgae_cli.evaluation.distortion import Bound, Distortion, absolute_difference

pytestmark = pytest.mark.numeric


def test_errors_add_up_over_blocks() -> None:
    generator = np.random.default_rng(3)
    x = generator.integers(0, 256, (70, 5)).astype(np.uint8)
    x_hat = generator.integers(0, 256, (70, 5)).astype(np.uint8)
    error = Distortion(Bound())
    for start in range(0, 70, 32):
        error.add(x[start : start + 32], x_hat[start : start + 32])
    squared = np.square(x.astype(int) - x_hat.astype(int))
    assert error.n == 70 and error.values == 350
    assert error.mean == pytest.approx(squared.mean(), rel=1e-12)
    assert error.largest_row == pytest.approx(squared.mean(1).max(), rel=1e-12)
    assert error.largest_value == np.sqrt(squared.max())


@pytest.mark.parametrize(
    ("bound", "kept"),
    [
        (Bound(), {0, 1, 2, 3}),
        (Bound(max_l2=1.0), {0, 1, 3}),
        (Bound(max_abs=np.array([1.5])), {0, 1, 3}),
        (Bound(max_abs=np.array([2.5, 0.5])), {0, 2, 3}),
        (Bound(lossless=True), {0}),
    ],
)
def test_rows_that_break_the_bound_are_found(bound: Bound, kept: set[int]) -> None:
    x = np.zeros((4, 2), np.float32)
    x_hat = np.array([[0, 0], [1, 1], [2, 0], [-0.0, 0]], np.float32)
    broken = bound.find_broken(x, x_hat, absolute_difference(x, x_hat))
    assert set(np.flatnonzero(~broken)) == kept
    if len(kept) < 4:
        with pytest.raises(RunError, match=f"row {min({0, 1, 2, 3} - kept)} decodes with an error beyond the bound"):
            Distortion(bound).add(x, x_hat)


@pytest.mark.parametrize("bound", [Bound(max_l2=1e300), Bound(max_abs=np.array([1e300]))])
def test_nan_keeps_no_bound(bound: Bound) -> None:
    with pytest.raises(RunError, match="row 0"):
        Distortion(bound).add(np.zeros((1, 2)), np.array([[0.0, np.nan]]))


def test_another_type_is_no_row() -> None:
    with pytest.raises(RunError, match="another shape or type"):
        Distortion(Bound()).add(np.zeros((1, 2)), np.zeros((1, 2), np.float32))


def test_differences_of_large_integers_are_exact() -> None:
    x = np.array([[(1 << 62) + 1, -(1 << 63)]])
    assert absolute_difference(x, x - [[1, -1]]).tolist() == [[1, 1]]
    assert absolute_difference(x[:, 1:], np.array([[(1 << 63) - 1]])).tolist() == [[2.0**64]]
