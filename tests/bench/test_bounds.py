"""The peers of `llgae bench bounds` keep the bound, and what breaks it is noticed."""

import numpy as np
import pytest

from llgae_cli.bench import bounds

ROWS = np.cumsum(np.random.default_rng(0).normal(size=(500, 6)), axis=0)


@pytest.mark.parametrize("bound", bounds.BOUNDS)
def test_rounded_values_keep_the_bound(bound: float) -> None:
    whole, step = bounds.round_values(ROWS, bound)
    assert np.abs(whole * step - ROWS).max() <= bound
    assert np.abs(whole * step - ROWS).max() > 0.9 * bound


@pytest.mark.parametrize("peer", ["zfp", "Blosc2"])
def test_a_peer_needs_fewer_bytes_for_a_wider_bound(peer: str) -> None:
    code = bounds.load_peers()[peer]
    sizes = [code(ROWS, bound) for bound in (1e-1, 1e-3, 1e-5)]
    assert sizes == sorted(sizes) and 0 < sizes[0] < sizes[-1] < ROWS.nbytes


def test_an_error_beyond_the_bound_is_noticed() -> None:
    with pytest.raises(ArithmeticError, match="0.2, beyond the bound 0.1"):
        bounds.check_error(np.zeros((2, 2)), np.array([[0, 0.2], [0, 0]]), 0.1)


def test_stretches_keep_neighbours_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "STRETCH", 3)
    train, test = bounds.split_stretches(np.arange(18.0)[:, None])
    assert test[:, 0].tolist() == [0, 1, 2, 15, 16, 17] and len(train) == 12
