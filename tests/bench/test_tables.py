"""The states of `llgae bench tables`, its peer, and our passes from the peer's result."""

import numpy as np
import pytest

from llgae_cli.bench import tables
from llgae_cli.tasks import Samples

pytestmark = pytest.mark.numeric


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "TEMPERATURES", (1200.0,))
    monkeypatch.setattr(tables, "PRESSURES", (1.0,))
    monkeypatch.setattr(tables, "RATIOS", (1.0,))
    monkeypatch.setattr(tables, "LONGEST", 1e-2)


def test_the_states_ignite_and_keep_their_mass(few: None) -> None:
    states = tables.make_states("h2o2.yaml", "H2")
    assert states.shape[1] == 10 and len(states) > 50
    assert states[0, 0] == pytest.approx(1200, abs=1) and states[-1, 0] > 2000
    np.testing.assert_allclose(states[:, 1:].sum(1), 1, atol=1e-6)


def test_our_passes_never_worsen_the_peers_result() -> None:
    x = np.random.default_rng(0).normal(size=(400, 6)) ** 3
    peer = tables.fit_vqpca(x, 4, 2, seed=0)
    errors = np.stack([(((x - m) - (x - m) @ U @ U.T) ** 2).sum(1) for m, U in zip(peer.mu, peer.U, strict=True)], 1)
    assert peer.error == pytest.approx(errors.min(1).mean() / 6)
    assert tables.continue_fit(Samples(x, centring="none"), peer) <= peer.error * (1 + 1e-9)
