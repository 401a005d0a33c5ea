"""Rows of several data sets are read as of one."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llgae_cli.tasks import Samples
from llgae_cli.tasks.rows import Rows


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(0, 120), st.integers(0, 130), st.integers(1, 50)
)
def test_rows_of_several_parts_are_read_as_of_one(lengths: list[int], start: int, stop: int, step: int) -> None:
    N = sum(lengths)
    start, stop = min(start, N - 1), min(max(stop, start + 1), N)
    x = np.arange(3 * N).reshape(N, 3).astype(np.uint16)
    cuts = np.cumsum([0, *lengths])
    rows = Rows([Samples(x[a:b], centring="none") for a, b in pairwise(cuts)], (3,))
    assert rows.n == N and rows.dtype == "uint16" and rows.row_bytes == 6
    at = range(start, max(stop, start + 1), step)
    assert np.array_equal(rows.read(at), x[at.start : at.stop : at.step])
    assert np.array_equal(np.concatenate(list(rows.chunks(7))), x)
    assert np.array_equal(rows.sample(), x)


def test_the_sample_is_every_nth_row() -> None:
    x = np.arange(100_000).reshape(-1, 1).astype(np.int32)
    assert np.array_equal(Rows([Samples(x, centring="none")], (1,)).sample(), x[::7])
